"""What was found about groups of answers, in sentences, cards and tables.

From groups to blocks of a report; every sentence is computed and turns round when the numbers do. It asks the
lake nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from search_app.ui.components.report import Align, Block, Link, alarm, card, link, links, table, voice, voices
from search_app.ui.data.groups import ENOUGH, TOLD, Group, Sureness
from search_app.ui.text.numbers import count, images, share, span

REASONS = 4  # why images have no picture, told one by one
OPEN_DIGITS = 16  # hex digits of an image that a link opens
MakeUp = Mapping[str, Sequence[tuple[str, str, float]]]

_COLUMNS = {
    "answers": "Predictions a model made",
    "labelled": "Of its answers, those whose image has a label",
    "balanced acc.": "Balanced accuracy: mean share answered right over the true classes. Guessing scores 1 / classes",
    "accuracy": "Share of the labelled answers that are right",
    "guess": "Commoner-class guess: the accuracy of always answering its commonest true class",
    "confidence": "Mean belief of the model in its own answers, 0 to 1",
}


def group_link(group: Group, filter_sql: str = "") -> Link:
    """Where its images are: Drill-down for a cluster, else Search with the group as filter.

    `filter_sql` is the SQL filter of the page, which a further one joins.
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
            both = f"({filter_sql}) AND {group.sql()}" if filter_sql else group.sql()
            return link(group.title, "search", where=both)


def failure(group: Group, faces: Sequence[str], of: MakeUp, filter_sql: str = "") -> Block:
    """The card of a group that fails."""
    wrong = group.wrong
    small = f"{count(group.known - group.right)} of {count(group.known)} labelled, 95 % {span(wrong)}"
    first = [f"{count(group.answers)} answers"]
    first += [f"{share(part)} {name} {value}" for name, value, part in of.get(group.value, ()) if part >= TOLD]
    if group.kind != "label" and group.called is not None and group.called_share >= TOLD:
        first.append(f"{share(group.called_share)} called “{group.called}”")
    if group.confidence is not None:
        first.append(f"mean confidence {group.confidence:.2f}")
    lines = [_sentence(", ".join(first))]
    if group.kind != "label":  # its answers are all alike, so recall says nothing
        rates = f"Balanced accuracy {share(group.balanced)}, accuracy {share(group.right / group.known)}, "
        lines.append(f"{rates}commoner-class guess {share(group.guess)}.")
    to = group_link(group, filter_sql)
    title = {**to, "text": to["text"][:1].upper() + to["text"][1:]}
    return card(title, f"{share(wrong.value)} wrong", small, lines, faces)


def by_group(
    column: str, groups: Sequence[Group], whole: Group, worst: Sequence[Group] = (), filter_sql: str = ""
) -> Block:
    """One promoted column as a table, its values by number of answers, all answers last; `worst` stand out."""
    rows = [[{**group_link(one, filter_sql), "text": one.value}, *_facts(one, one in worst)] for one in groups]
    columns: list[tuple[str, Align, str]] = [(head, "right", help) for head, help in _COLUMNS.items()]
    name = column.replace("_", " ")
    return table(f"By {name}", [(name, "left", ""), *columns], [*rows, ["all", *_facts(whole)]])


def on_confidence(whole: Sureness, worst: Sureness | None = None, name: str = "") -> str:
    """Whether low confidence alone would have found the failure, in one or two sentences; "" with few errors.

    `worst` are the errors of the group `name` that fails most, when one does: then "it" is that group.
    """
    if whole.errors < ENOUGH:
        return ""
    judged = worst if worst is not None and worst.errors else whole
    found = judged.low >= judged.errors / 2
    opening = "Low confidence points at it" if found else "Low confidence alone does not find it"
    low, high = share(whole.low / whole.errors), share(whole.high / whole.errors)
    text = (
        f"{opening}: of the {count(whole.errors)} known errors, {low} are among the least confident fifth of answers; "
        f"{high} were made with confidence above 0.9."
    )
    if judged is not whole:
        text += (
            f" Of the {count(judged.errors)} of “{name}” it is {share(judged.low / judged.errors)} and "
            f"{share(judged.high / judged.errors)}."
        )
    return text


def customers(verdicts: Mapping[str, int], newest: Sequence[Mapping[str, Any]]) -> Block | None:
    """What customers say: how many of each verdict, and their `newest` complaints; None when nobody said anything."""
    if not verdicts:
        return None
    parts = [f"{count(n)} {verdict}" for verdict, n in sorted(verdicts.items(), key=lambda one: _GRAVEST.index(one[0]))]
    wrong = verdicts.get("incorrect", 0)
    note = f"Their verdicts: {', '.join(parts)}. None of them is a label until somebody has looked."
    every = [link(f"All {count(wrong)} complaints", "search", show="complaints")] if wrong > len(newest) else []
    return voices("What customers say", note, [_complaint(one) for one in newest], every)


_GRAVEST = ("incorrect", "unsure", "correct")


def _complaint(said: Mapping[str, Any]) -> Block:
    image = said["image_id"]
    answer = "Answered without a label" if said["label"] is None else f"Answered “{said['label']}”"
    sure = "" if said["confidence"] is None else f"confidence {said['confidence']:.2f}"
    to = link(answer, "search", show="complaints", open=image[:OPEN_DIGITS])
    alike = link("Find its like", "search", like=image, open=image[:OPEN_DIGITS])
    moment: dt.datetime = said["timestamp"]
    known = said["truth"] and f"labelled {said['truth']}"
    facts = [one for one in (sure, known, said["ticket"]) if one]
    return voice(to, alike, "incorrect", facts, image, said["comment"] or "", moment.isoformat())


def pictureless(reasons: Sequence[Mapping[str, Any]]) -> Block | None:
    """How many images cannot be shown, and why; None when all can."""
    if not reasons:
        return None
    total = sum(one["images"] for one in reasons)
    why = ", ".join(f"{count(one['images'])} {one['reason']}" for one in reasons[:REASONS])
    more = f", and {count(len(reasons) - REASONS)} other reasons" if len(reasons) > REASONS else ""
    to = link(f"{images(total)} without a picture", "search", where="image_status IS NOT NULL")
    return links("Not shown", [(to, why + more)])


def _facts(group: Group, worst: bool = False) -> list[Any]:
    sure = "–" if group.confidence is None else f"{group.confidence:.2f}"
    rates = [share(group.balanced), share(group.right / group.known) if group.known else "–"]
    shown = [alarm(one) for one in rates] if worst else rates
    return [count(group.answers), count(group.known), *shown, share(group.guess), sure]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""
