"""Sentences, cards and tables about failing groups, customers' verdicts and missing thumbnails.

It turns groups into blocks of a report. Every sentence follows from the numbers. It does not query the lake.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from lake.sql.where import conjunction
from search_app.ui.components.report import Align, Block, Link, alarm, card, link, links, table, voice, voices
from search_app.ui.data.groups import ENOUGH, NEARLY_ALL, ErrorConfidence, Group
from search_app.ui.text.numbers import count, images, share, span

REASONS = 4  # why images have no thumbnail, listed one by one
OPEN_DIGITS = 16  # hex digits of an image_id in a link that opens the image
Composition = Mapping[str, Sequence[tuple[str, str, float]]]

_COLUMNS = {
    "predictions": "",
    "labelled": "Predictions on images that have a label",
    "balanced acc.": "Balanced accuracy: mean recall over the classes. Guessing scores 1 / number of classes",
    "accuracy": "Share of the labelled predictions that are correct",
    "baseline": "Majority-class baseline: the accuracy of always predicting the most frequent class",
    "confidence": "Mean confidence, 0 to 1",
}


def group_link(group: Group, filter_sql: str = "") -> Link:
    """A link to the group's images: Drill-down for a cluster, else Search with the group as filter.

    `filter_sql` is the SQL filter of the page; it is combined with the group's own.
    """
    match group.kind:
        case "node":
            tree, _, path = group.value.partition("/")
            return link(group.title, "drilldown", tree=tree, at=path)
        case "label":
            return link(group.title, "search", label=group.value)
        case "model":
            return link(group.title, "search", model=group.value)
        case _:
            return link(group.title, "search", where=conjunction(filter_sql, group.sql()))


def failure(group: Group, image_ids: Sequence[str], composition: Composition, filter_sql: str = "") -> Block:
    """The card of a failing group. `composition`: see `groups.make_up`."""
    wrong = group.wrong
    small = f"{count(wrong.n - group.correct)} of {count(group.labelled)} labelled, 95 % {span(wrong)}"
    first = [f"{count(group.predictions)} predictions"]
    values = composition.get(group.value, ())
    first += [f"{share(part)} {name} {value}" for name, value, part in values if part >= NEARLY_ALL]
    if group.kind != "label" and group.predicted is not None and group.predicted_share >= NEARLY_ALL:
        first.append(f"{share(group.predicted_share)} predicted “{group.predicted}”")
    if group.confidence is not None:
        first.append(f"mean confidence {group.confidence:.2f}")
    lines = [_sentence(", ".join(first))]
    if group.kind != "label":  # all its predictions are the same class, so recall means nothing
        rates = f"Balanced accuracy {share(group.balanced)}, accuracy {share(group.correct / group.labelled)}, "
        lines.append(f"{rates}majority-class baseline {share(group.baseline)}.")
    to = group_link(group, filter_sql)
    title = {**to, "text": to["text"][:1].upper() + to["text"][1:]}
    return card(title, f"{share(wrong.value)} wrong", small, lines, image_ids)


def by_group(
    column: str, groups: Sequence[Group], whole: Group, worst: Sequence[Group] = (), filter_sql: str = ""
) -> Block:
    """One promoted column as a table: its values by number of predictions, then all. `worst` are highlighted."""
    rows = [
        [{**group_link(group, filter_sql), "text": group.value}, *_facts(group, group in worst)] for group in groups
    ]
    columns: list[tuple[str, Align, str]] = [(head, "right", help) for head, help in _COLUMNS.items()]
    name = column.replace("_", " ")
    return table(f"By {name}", [(name, "left", ""), *columns], [*rows, ["all", *_facts(whole)]])


def on_confidence(whole: ErrorConfidence, worst: ErrorConfidence | None = None, name: str = "") -> str:
    """Whether low confidence alone finds the errors, in one or two sentences; "" with few errors.

    `worst`: the errors of the group with the highest error rate, which is called `name`; None if no group fails.
    """
    if whole.errors < ENOUGH:
        return ""
    decisive = worst if worst is not None and worst.errors else whole
    finds_most = decisive.low >= decisive.errors / 2
    errors = "the errors" if decisive is whole else f"the errors of “{name}”"
    opening = f"Low confidence finds most of {errors}" if finds_most else f"Low confidence does not find {errors}"
    low, high = share(whole.low / whole.errors), share(whole.high / whole.errors)
    text = (
        f"{opening}. Of all {count(whole.errors)} known errors, {low} are in the least confident fifth of the "
        f"predictions and {high} have a confidence above 0.9."
    )
    if decisive is not whole:
        low, high = share(decisive.low / decisive.errors), share(decisive.high / decisive.errors)
        text += f" For the {count(decisive.errors)} errors of “{name}”, these shares are {low} and {high}."
    return text


def customers(verdicts: Mapping[str, int], newest: Sequence[Mapping[str, Any]]) -> Block | None:
    """What customers report: the number of each verdict, and their `newest` complaints; None if there is no verdict."""
    if not verdicts:
        return None
    parts = [
        f"{count(n)} {verdict}" for verdict, n in sorted(verdicts.items(), key=lambda item: _VERDICTS.index(item[0]))
    ]
    wrong = verdicts.get("incorrect", 0)
    note = f"Verdicts: {', '.join(parts)}. A verdict is not a label until a person has reviewed it."
    more = [link(f"All {count(wrong)} complaints", "search", show="complaints")] if wrong > len(newest) else []
    return voices("What customers report", note, [_complaint(row) for row in newest], more)


_VERDICTS = ("incorrect", "unsure", "correct")


def _complaint(row: Mapping[str, Any]) -> Block:
    image_id = row["image_id"]
    prediction = "Predicted without a label" if row["label"] is None else f"Predicted “{row['label']}”"
    confidence = "" if row["confidence"] is None else f"confidence {row['confidence']:.2f}"
    to = link(prediction, "search", show="complaints", open=image_id[:OPEN_DIGITS])
    similar = link("Find similar", "search", like=image_id, open=image_id[:OPEN_DIGITS])
    timestamp: dt.datetime = row["timestamp"]
    label = row["truth"] and f"labelled {row['truth']}"
    facts = [fact for fact in (confidence, label, row["ticket"]) if fact]
    return voice(to, similar, "incorrect", facts, image_id, row["comment"] or "", timestamp.isoformat())


def without_thumbnail(reasons: Sequence[Mapping[str, Any]]) -> Block | None:
    """How many images cannot be shown, and why; None if all can."""
    if not reasons:
        return None
    total = sum(row["images"] for row in reasons)
    why = ", ".join(f"{count(row['images'])} {row['reason']}" for row in reasons[:REASONS])
    more = f", and {count(len(reasons) - REASONS)} other reasons" if len(reasons) > REASONS else ""
    to = link(f"{images(total)} without a thumbnail", "search", where="image_status IS NOT NULL")
    return links("Not shown", [(to, why + more)])


def _facts(group: Group, worst: bool = False) -> list[Any]:
    confidence = "–" if group.confidence is None else f"{group.confidence:.2f}"
    rates = [share(group.balanced), share(group.correct / group.labelled) if group.labelled else "–"]
    cells = [alarm(rate) for rate in rates] if worst else rates
    return [count(group.predictions), count(group.labelled), *cells, share(group.baseline), confidence]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""
