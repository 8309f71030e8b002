"""Overview, "Is the model well today?": where it fails comes first, then how it went, then what to do next."""

from __future__ import annotations

from typing import Any

from lake.analytics.statistics import Performance, Rate, performance, wilson
from search_app.ui.components import charts, empty_states, findings, scope
from search_app.ui.components.report import Block, arriving, cards, link, links, numbers, progress, report, stack, table
from search_app.ui.data import groups, queries
from search_app.ui.data.groups import Group
from search_app.ui.text.commands import for_this_lake
from search_app.ui.text.numbers import count, interval, percent

TABLES = 3  # promoted columns that are shown as tables
COMPLAINTS = 3  # of customers, the newest


def page() -> None:
    """The Overview page."""
    stamp = queries.stamp()
    status, live = queries.status(stamp), arriving(queries.news(stamp))
    if not status["images"]:
        report([], live)
        return empty_states.no_images()
    where = scope.current().where()
    totals = queries.totals(where)
    if not totals["images"]:
        return empty_states.nothing_passes()
    judged = performance(queries.confusion(where))
    rows: list[list[Block | None]] = [[_numbers(totals, judged)]]
    if totals["answers"]:
        found = groups.judged(where)
        rows += [*_failing(where, found, _customers(where), _next(totals, judged, status))]
        rows += [_charts(where), _answers(where)]
    else:
        rows.append([_next(totals, judged, status)])
    return report([*rows, [_embedding(status), findings.pictureless(queries.pictureless(where))]], live)


def _numbers(totals: queries.Row, judged: Performance) -> Block:
    items = [
        ("Images", count(totals["images"]), "", ""),
        ("Answers", count(totals["answers"]), "", "Predictions a model made"),
        ("Labelled images", count(totals["labelled"]), "", "Images of which a label says what they are"),
    ]
    note = ""
    if judged.accuracy.n:
        items += [
            _rate("Accuracy", judged.accuracy, "Share of answers that agree with the label, where there is one"),
            _rate(
                "Balanced accuracy",
                judged.balanced_accuracy,
                "Mean of the classes' recalls: every class counts alike, however rare it is",
            ),
            _rate(
                "Commoner-class guess",
                judged.commoner,
                f"What always answering “{judged.commoner_class}” would score: a model must beat it",
            ),
        ]
    elif totals["answers"]:
        note = "No answer has a label to compare with, so accuracy is not known. Labels of a random check would tell."
    else:
        command = for_this_lake("ingest", "predictions.csv")
        note = f"No model has answered yet. Bring its answers in as a table, one row an answer: {command}"
    return numbers("", *items, note=note)


def _rate(name: str, rate: Rate, how: str) -> tuple[str, str, str, str]:
    return name, percent(rate), f"95 % {interval(rate)}", how


def _customers(where: str | None) -> Block | None:
    verdicts = queries.verdicts(where)
    return findings.customers(verdicts, queries.complaints(where, COMPLAINTS) if verdicts.get("incorrect") else [])


def _failing(where: str | None, found: list[Group], said: Block | None, to_do: Block) -> list[list[Block | None]]:
    """Where it fails and what customers say; beside it the first promoted column, what confidence would have told,
    what to do next.
    """
    filter_sql = scope.current().sql
    whole = next(one for one in found if one.kind == "all")
    worst = groups.worst(found)
    columns = list(groups.by_column(found).items())[:TABLES]
    tables = [findings.by_group(name, some, whole, worst, filter_sql) for name, some in columns]
    if not whole.known:
        return [[*tables, stack(said, to_do) if said else to_do]]
    faces = groups.surest_errors(where, worst)
    of = groups.make_up([one.value for one in worst if one.kind == "node"])
    sure, *of_worst = groups.sureness(where, [whole, *worst[:1]])
    told = findings.on_confidence(sure, of_worst[0], worst[0].title) if worst else findings.on_confidence(sure)
    failures = [findings.failure(one, ids, of, filter_sql) for one, ids in zip(worst, faces, strict=True)]
    more = [link("All clusters, most wrong first", "drilldown", sort="error")] if queries.trees() else []
    block = cards("Where does it fail?", "" if tables else told, failures, _NONE_WORSE, more)
    beside = [tables[0] | {"note": told}, to_do] if tables else [to_do]
    return [[stack(block, said, wide=5), stack(*beside, wide=4)], [*tables[1:]]]


_NONE_WORSE = (
    f"No group with at least {groups.ENOUGH} labelled answers is surely worse than the whole. "
    "Compared are values of promoted columns, models, answered classes and clusters."
)


def _charts(where: str | None) -> list[Block | None]:
    days, bins = queries.by_day(where), queries.histogram(where)
    over_time: list[Block | None] = [charts.volume(days), charts.accuracy(days)] if days else []
    return [*over_time, charts.confidence(bins) if bins else None]


def _answers(where: str | None) -> list[Block | None]:
    models = [
        [
            link(name, "search", model=name),
            *_counts(row),
            "–" if row["last"] is None else f"{row['last']:%Y-%m-%d}",
        ]
        for row in queries.by_model(where)
        for name in [f"{row['model']} {row['model_version'] or ''}".strip()]
    ]
    labels = [
        [link(row["label"], "search", label=row["label"]) if row["label"] else "no label", *_counts(row)]
        for row in queries.by_label(where)
    ]
    return [
        table("Models", [("model", "left", ""), *_COUNTS, ("last answer", "right", "")], models),
        table("Answered classes", [("answered", "left", ""), *_COUNTS], labels),
    ]


_COUNTS: list[Any] = [
    ("answers", "right", ""),
    ("confidence", "right", "Mean belief of the model in its own answers, 0 to 1"),
    ("wrong", "right", "Share of the labelled answers that are wrong"),
    ("95 % interval", "right", ""),
]


def _counts(row: queries.Row) -> list[str]:
    wrong = wilson(row["known"] - row["right"], row["known"])
    sure = "–" if row["confidence"] is None else f"{row['confidence']:.2f}"
    return [count(row["answers"]), sure, percent(wrong), interval(wrong) if row["known"] else "no labels"]


def _embedding(status: dict[str, Any]) -> Block:
    items = []
    for one in status["embedders"]:
        total = one["embedded"] + one["missing"]
        text = f"{one['name']}: {count(one['embedded'])} of {count(total)} images have their vector"
        command = for_this_lake("embed", "--embedder", one["name"]) if one["missing"] else ""
        items.append((text, one["embedded"] / total if total else 1.0, command))
    note = "" if items else f"The lake has no embedder yet. Run: {for_this_lake('embed')}"
    return progress("Embedding", items, note)


def _next(totals: queries.Row, judged: Performance, status: dict[str, Any]) -> Block:
    ideas = [(link("Look at a random check", "search"), "what no metric asked about is found by looking")]
    if totals["answers"]:
        unsure = link("Look at the least confident answers", "search", show="unsure")
        ideas.append((unsure, "they alone do not find every failure"))
    if any(one["embedded"] for one in status["embedders"]):
        drill = link("Drill down", "drilldown", sort="error" if judged.accuracy.n else None)
        ideas.append((drill, "groups that look alike, most wrong first"))
    return links("What to do next", ideas)
