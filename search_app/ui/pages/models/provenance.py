"""The view Data and recipe of a run: slices, splits and classes, settings, files, machine."""

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

USES = {"train": "trained on", "replay": "replayed", "validation": "validation", "test": "test",
        "protected": "measured during training"}  # fmt: skip


def show(run: Run) -> None:
    """The view."""
    report([[_slices(run), _splits(run)], [_settings(run), _files(run)]], key=f"provenance-{run.id}")
    dropped = run.data.get("left_out", {})
    if dropped:
        reasons = "; ".join(f"{count(n)} {reason}" for reason, n in dropped.items())
        st.caption(f"Images left out: {escape(reasons)}.")
    environment = run.environment
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items() if version)
    parts = [
        f"lakeloop {environment.get('lakeloop', '?')}",
        f"Python {environment.get('python', '?')}",
        packages,
        environment.get("machine"),
    ]
    parts.append(f"commit {environment['commit'][:12]}" if environment.get("commit") else None)
    st.caption(escape(" · ".join(part for part in parts if part)))
    st.caption("The whole record on the command line")
    st.code(for_this_lake("runs", "show", run.id, "--json"), language="bash")


def _slices(run: Run) -> Block:
    rows: list[list[Any]] = [
        [link(row["id"], "slices", set=row["id"]), USES.get(row["use"], row["use"]), count(row["images"])]
        for row in run.data.get("slices", [])
    ]
    columns: list[tuple[str, Align, str]] = [
        ("Slice", "left", "The version that was used, with its images and labels"),
        ("Use", "left", ""),
        ("Images", "right", "In the slice"),
    ]
    return table("Slices", columns, rows)


def _splits(run: Run) -> Block:
    splits = {use: split for use, split in run.data.get("splits", {}).items() if split["images"]}
    classes = list(dict.fromkeys(name for split in splits.values() for name in split["classes"]))
    rows: list[list[Any]] = [
        [USES.get(use, use), count(split["images"]), *(count(split["classes"].get(name, 0)) for name in classes[:8])]
        for use, split in splits.items()
    ]
    columns: list[tuple[str, Align, str]] = [
        ("Split", "left", "The labelled, readable images. Near-duplicates are never in two splits"),
        ("Images", "right", ""),
        *((name, "right", "") for name in classes[:8]),
    ]
    return table("Images used", columns, rows)


def _settings(run: Run) -> Block:
    from training.registry.recipe import Recipe

    defaults = json.loads(Recipe().json())
    own = {name: value for name, value in run.settings.items() if value != defaults.get(name)}
    rest = {name: value for name, value in run.settings.items() if name not in own}
    rows: list[list[Any]] = [[name, _text(value), "changed"] for name, value in own.items()]
    rows += [[name, _text(value), ""] for name, value in rest.items()]
    columns: list[tuple[str, Align, str]] = [
        ("Setting", "left", "docs/training.md explains each setting"),
        ("Value", "left", ""),
        ("", "left", ""),
    ]
    return table("Recipe", columns, rows)


def _files(run: Run) -> Block:
    rows: list[list[Any]] = [
        [name, _size(file["bytes"]), file["sha256"][:16], file["path"]] for name, file in run.artifacts.items()
    ]
    columns: list[tuple[str, Align, str]] = [
        ("File", "left", ""), ("Size", "right", ""), ("SHA-256", "left", "The first 16 digits"),
        ("Path in the lake", "left", ""),
    ]  # fmt: skip
    return table("Files", columns, rows)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value) or "–"


def _size(n: int) -> str:
    return f"{n / 2**20:,.1f} MiB" if n >= 2**20 else f"{n / 2**10:,.1f} KiB"
