"""Where a run comes from: slices by version, splits and classes, every setting, files, and the machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import streamlit as st

from search_app.ui.components.report import Align, Block, link, report, table
from search_app.ui.text.commands import for_this_lake
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count

if TYPE_CHECKING:
    from training.registry.runs import Run

USES = {"train": "trained on", "replay": "replayed, against forgetting", "validation": "validation", "test": "test",
        "protected": "watched while training"}  # fmt: skip


def show(run: Run) -> None:
    """The view."""
    report([[_slices(run), _splits(run)], [_settings(run), _files(run)]], key=f"origin-{run.id}")
    dropped = run.data.get("left_out", {})
    if dropped:
        said = "; ".join(f"{count(n)} {reason}" for reason, n in dropped.items())
        st.caption(f"Images left out: {escape(said)}.")
    facts = run.environment
    packages = ", ".join(f"{name} {version}" for name, version in facts.get("packages", {}).items() if version)
    where = [
        f"lakeloop {facts.get('lakeloop', '?')}",
        f"Python {facts.get('python', '?')}",
        packages,
        facts.get("machine"),
    ]
    where.append(f"commit {facts['commit'][:12]}" if facts.get("commit") else None)
    st.caption(escape(" · ".join(one for one in where if one)))
    st.caption("The whole record on the command line")
    st.code(for_this_lake("runs", "show", run.id, "--json"), language="bash")


def _slices(run: Run) -> Block:
    rows: list[list[Any]] = [
        [link(one["id"], "slices", set=one["id"]), USES.get(one["use"], one["use"]), count(one["images"])]
        for one in run.data.get("slices", [])
    ]
    columns: list[tuple[str, Align, str]] = [
        ("Slice", "left", "Pinned by version: its images and labels stay what they were"),
        ("Use", "left", ""),
        ("Images", "right", "In the slice"),
    ]
    return table("Slices", columns, rows)


def _splits(run: Run) -> Block:
    splits = {use: one for use, one in run.data.get("splits", {}).items() if one["images"]}
    classes = list(dict.fromkeys(name for one in splits.values() for name in one["classes"]))
    rows: list[list[Any]] = [
        [USES.get(use, use), count(one["images"]), *(count(one["classes"].get(name, 0)) for name in classes[:8])]
        for use, one in splits.items()
    ]
    columns: list[tuple[str, Align, str]] = [
        ("Split", "left", "What the run used: labelled, readable, and near-duplicates never in two splits"),
        ("Images", "right", ""),
        *((name, "right", "") for name in classes[:8]),
    ]
    return table("Images used", columns, rows)


def _settings(run: Run) -> Block:
    from training.registry.recipe import Recipe

    usual = json.loads(Recipe().json())
    own = {name: value for name, value in run.settings.items() if value != usual.get(name)}
    rest = {name: value for name, value in run.settings.items() if name not in own}
    rows: list[list[Any]] = [[name, _said(value), "chosen"] for name, value in own.items()]
    rows += [[name, _said(value), ""] for name, value in rest.items()]
    columns: list[tuple[str, Align, str]] = [
        ("Setting", "left", "docs/training.md has a line for each"),
        ("Value", "left", ""),
        ("", "left", ""),
    ]
    return table("Recipe", columns, rows)


def _files(run: Run) -> Block:
    rows: list[list[Any]] = [
        [name, _size(one["bytes"]), one["sha256"][:16], one["path"]] for name, one in run.artifacts.items()
    ]
    columns: list[tuple[str, Align, str]] = [
        ("File", "left", ""), ("Size", "right", ""), ("SHA-256", "left", "Its first digits"),
        ("In the lake's folder", "left", ""),
    ]  # fmt: skip
    return table("Files", columns, rows)


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(one) for one in value) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value) or "–"


def _size(n: int) -> str:
    return f"{n / 2**20:,.1f} MiB" if n >= 2**20 else f"{n / 2**10:,.1f} KiB"
