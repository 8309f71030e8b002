"""Overview page: headline numbers, failing groups, what customers report, charts, and what to do next."""

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
    where = scope.where()
    totals = queries.totals(where)
    if not totals["images"]:
        return empty_states.nothing_passes()
    scores = performance(queries.confusion(where))
    rows: list[list[Block | None]] = [[_numbers(totals, scores)]]
    if totals["predictions"]:
        all_groups = groups.reviewed(where)
        rows += _failing(where, all_groups, _customers(where), _next(totals, scores, status))
        rows += [_charts(where), _tables(where)]
    else:
        rows.append([_next(totals, scores, status)])
    return report([*rows, [_embedding(status), findings.without_thumbnail(queries.without_thumbnail(where))]], live)


def _numbers(totals: queries.Row, scores: Performance) -> Block:
    items = [
        ("Images", count(totals["images"]), "", ""),
        ("Predictions", count(totals["predictions"]), "", ""),
        ("Labelled images", count(totals["labelled"]), "", "Images that have a label"),
    ]
    note = ""
    if scores.accuracy.n:
        items += [
            _rate("Accuracy", scores.accuracy, "Share of the predictions on labelled images that match the label"),
            _rate(
                "Balanced accuracy",
                scores.balanced_accuracy,
                "Mean recall over the classes: rare classes count as much as frequent ones",
            ),
            _rate(
                "Majority-class baseline",
                scores.majority_baseline,
                f"Accuracy of always predicting “{scores.majority_class}”. A useful model is better",
            ),
        ]
    elif totals["predictions"]:
        note = "Accuracy is not known: no image with a prediction has a label. Label a random sample to estimate it."
    else:
        command = for_this_lake("ingest", "predictions.csv")
        note = f"There are no predictions yet. Ingest them as a table with one row per prediction: {command}"
    return numbers("", *items, note=note)


def _rate(name: str, rate: Rate, help: str) -> tuple[str, str, str, str]:
    return name, percent(rate), f"95 % {interval(rate)}", help


def _customers(where: str | None) -> Block | None:
    verdicts = queries.verdicts(where)
    return findings.customers(verdicts, queries.complaints(where, COMPLAINTS) if verdicts.get("incorrect") else [])


def _failing(
    where: str | None, all_groups: list[Group], customers: Block | None, to_do: Block
) -> list[list[Block | None]]:
    """The failing groups and what customers report; beside them the first promoted column, whether low confidence
    points at the errors, and what to do next.
    """
    filter_sql = scope.current().sql
    whole = next(group for group in all_groups if group.kind == "all")
    worst = groups.worst(all_groups)
    columns = list(groups.by_column(all_groups).items())[:TABLES]
    tables = [findings.by_group(name, values, whole, worst, filter_sql) for name, values in columns]
    if not whole.labelled:
        return [[*tables, stack(customers, to_do) if customers else to_do]]
    image_ids = groups.most_confident_errors(where, worst)
    composition = groups.make_up([group.value for group in worst if group.kind == "node"])
    of_whole, *of_worst = groups.error_confidence(where, [whole, *worst[:1]])
    sentence = findings.on_confidence(of_whole, *((of_worst[0], worst[0].title) if worst else ()))
    failures = [findings.failure(group, ids, composition, filter_sql)
                for group, ids in zip(worst, image_ids, strict=True)]  # fmt: skip
    more = [link("All clusters, highest error first", "drilldown", sort="error")] if queries.trees() else []
    block = cards("Where the model fails", "" if tables else sentence, failures, _NONE_WORSE, more)
    beside = [tables[0] | {"note": sentence}, to_do] if tables else [to_do]
    return [[stack(block, customers, wide=5), stack(*beside, wide=4)], [*tables[1:]]]


_NONE_WORSE = (
    f"No group with at least {groups.ENOUGH} labelled predictions is worse than the overall rate (p < 0.05). "
    "Groups are the values of promoted columns, models, predicted classes and clusters."
)


def _charts(where: str | None) -> list[Block | None]:
    days, bins = queries.by_day(where), queries.histogram(where)
    over_time: list[Block | None] = [charts.volume(days), charts.accuracy(days)] if days else []
    return [*over_time, charts.confidence(bins) if bins else None]


def _tables(where: str | None) -> list[Block | None]:
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
        table("Models", [("model", "left", ""), *_COUNTS, ("last prediction", "right", "")], models),
        table("Predicted classes", [("class", "left", ""), *_COUNTS], labels),
    ]


_COUNTS: list[Any] = [
    ("predictions", "right", ""),
    ("confidence", "right", "Mean confidence, 0 to 1"),
    ("wrong", "right", "Share of the labelled predictions that are wrong"),
    ("95 % interval", "right", ""),
]


def _counts(row: queries.Row) -> list[str]:
    wrong = wilson(row["known"] - row["right"], row["known"])
    confidence = "–" if row["confidence"] is None else f"{row['confidence']:.2f}"
    return [count(row["predictions"]), confidence, percent(wrong), interval(wrong) if row["known"] else "no labels"]


def _embedding(status: dict[str, Any]) -> Block:
    items = []
    for embedder in status["embedders"]:
        total = embedder["embedded"] + embedder["missing"]
        text = f"{embedder['name']}: {count(embedder['embedded'])} of {count(total)} images have a vector"
        command = for_this_lake("embed", "--embedder", embedder["name"]) if embedder["missing"] else ""
        items.append((text, embedder["embedded"] / total if total else 1.0, command))
    note = "" if items else f"The lake has no embedder yet. Run: {for_this_lake('embed')}"
    return progress("Embeddings", items, note)


def _next(totals: queries.Row, scores: Performance, status: dict[str, Any]) -> Block:
    ideas = [(link("Look at a random sample", "search"), "finds failures that no metric measures")]
    if totals["predictions"]:
        unsure = link("Look at the least confident predictions", "search", show="unsure")
        ideas.append((unsure, "finds some failures, not all"))
    if any(embedder["embedded"] for embedder in status["embedders"]):
        drill = link("Drill down", "drilldown", sort="error" if scores.accuracy.n else None)
        ideas.append((drill, "groups of similar images, highest error first"))
    return links("What to do next", ideas)
