"""The scope and filters as plain data: from and to the URL, as chips, as one SQL filter.

Pure functions over strings. It knows no lake and no screen, so tests can check every predicate.
"""

from __future__ import annotations

import datetime as dt
import re
import shlex
from dataclasses import dataclass

from lake.sql.where import conjunction
from lake.storage.store import literal

Params = dict[str, list[str]]


@dataclass(frozen=True)
class Chip:
    """One filter as the user sees it: its text, its SQL, and the URL parameter it came from."""

    text: str
    sql: str
    param: str
    value: str | None = None  # of a repeated parameter; None: removing the chip removes the whole parameter


@dataclass(frozen=True)
class Filters:
    """The rows of table samples that every page shows. Empty means the whole lake."""

    slice: str = ""  # NAME@VERSION
    node: str = ""  # TREE/NODE
    labels: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # "name" or "name version"
    confidence: tuple[float, float] | None = None  # both ends included
    since: dt.date | None = None
    until: dt.date | None = None  # the day itself is included
    sql: str = ""

    @classmethod
    def from_params(cls, params: Params) -> Filters:
        """Reads the URL. Parameters that are not valid are ignored."""
        last = {name: values[-1] for name, values in params.items() if values}
        return cls(
            slice=last.get("slice", "") if re.fullmatch(r".+@\d+", last.get("slice", "")) else "",
            node=last.get("node", "") if re.fullmatch(r"\w+/[\d.]*", last.get("node", "")) else "",
            labels=tuple(params.get("label", ())),
            models=tuple(params.get("model", ())),
            confidence=_range(last.get("conf", "")),
            since=_day(last.get("from", "")),
            until=_day(last.get("to", "")),
            sql=last.get("where", "").strip(),
        )

    def to_params(self) -> Params:
        """As URL parameters; an empty list means that the parameter is absent."""
        low_high = [f"{self.confidence[0]:g}-{self.confidence[1]:g}"] if self.confidence else []
        return {
            "slice": [self.slice] if self.slice else [],
            "node": [self.node] if self.node else [],
            "label": list(self.labels),
            "model": list(self.models),
            "conf": low_high,
            "from": [self.since.isoformat()] if self.since else [],
            "to": [self.until.isoformat()] if self.until else [],
            "where": [self.sql] if self.sql else [],
        }

    def scope(self) -> list[Chip]:
        """The scope, before filters: a slice, a cluster, or nothing (the whole lake)."""
        chips = []
        if self.slice:
            sql = f"image_id IN (SELECT image_id FROM slice_members WHERE id = {literal(self.slice)})"
            chips.append(Chip(f"slice {self.slice.replace('@', ' v')}", sql, "slice"))
        if self.node:
            sql = f"image_id IN (SELECT image_id FROM cluster_members WHERE id = {literal(self.node)})"
            chips.append(Chip(f"cluster {self.node}", sql, "node"))
        return chips

    def chips(self) -> list[Chip]:
        """The filters inside the scope, in the order they are shown."""
        chips = [Chip(f"label = {label}", f"label = {literal(label)}", "label", label) for label in self.labels]
        chips += [Chip(f"model = {model}", _model(model), "model", model) for model in self.models]
        if self.confidence:
            low, high = self.confidence
            chips.append(Chip(*_between(low, high), "conf"))
        if self.since:
            chips.append(Chip(f"from {self.since}", f"timestamp >= TIMESTAMPTZ '{self.since} 00:00:00+00'", "from"))
        if self.until:
            after = self.until + dt.timedelta(days=1)
            chips.append(Chip(f"to {self.until}", f"timestamp < TIMESTAMPTZ '{after} 00:00:00+00'", "to"))
        if self.sql:
            chips.append(Chip(self.sql, self.sql, "where"))
        return chips

    def where(self) -> str | None:
        """One SQL filter over samples, or None for everything. Raises BadInput if the SQL is not one expression.

        Values of one repeated parameter (labels, models) are joined by OR, different parameters by AND.
        """
        groups: dict[str, list[str]] = {}
        for chip in [*self.scope(), *self.chips()]:
            groups.setdefault(chip.param, []).append(chip.sql)
        return conjunction(*(" OR ".join(group) for group in groups.values()))

    def without(self, chip: Chip) -> Filters:
        """The filters without this chip."""
        params = self.to_params()
        params[chip.param] = (
            [] if chip.value is None else [value for value in params[chip.param] if value != chip.value]
        )
        return Filters.from_params(params)


def command(verb: str, where: str | None) -> str:
    """The command for the same rows, e.g. `lakeloop search ... --where '...'`."""
    return f"lakeloop {verb}" + (f" --where {shlex.quote(where)}" if where else "")


def _model(model: str) -> str:
    name, space, version = model.partition(" ")
    return f"(model = {literal(name)} AND model_version = {literal(version)})" if space else f"model = {literal(name)}"


def _between(low: float, high: float) -> tuple[str, str]:
    if low <= 0:
        return f"confidence ≤ {high:g}", f"confidence <= {high:g}"
    if high >= 1:
        return f"confidence ≥ {low:g}", f"confidence >= {low:g}"
    return f"confidence {low:g} to {high:g}", f"confidence BETWEEN {low:g} AND {high:g}"


def _range(text: str) -> tuple[float, float] | None:
    match = re.fullmatch(r"([01](?:\.\d{1,6})?)-([01](?:\.\d{1,6})?)", text)
    if not match:
        return None
    low, high = float(match[1]), float(match[2])
    return (low, high) if 0 <= low <= high <= 1 and (low, high) != (0, 1) else None


def _day(text: str) -> dt.date | None:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        return None
