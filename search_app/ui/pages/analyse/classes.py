"""The confusion matrix, whose cells open as images, and precision and recall of each class."""

from __future__ import annotations

from lake.analytics.metrics import ClassMetrics
from search_app.ui import session
from search_app.ui.components import empty_states
from search_app.ui.components.grid import image_grid
from search_app.ui.components.report import Block, link, report, table
from search_app.ui.components.report.tables import cell, heat
from search_app.ui.data import analysis, queries
from search_app.ui.text.numbers import count, images, percent, share, span

MOST = 24
SIDE_BY_SIDE = 8  # classes up to which both tables fit side by side
NO_LABEL = "no label"


def show(where: str | None) -> None:
    """The view."""
    counts = analysis.confusion(where)
    balance = analysis.classes(where)
    ground_truth, predicted = session.param("truth"), session.param("said")
    matrix = _matrix(counts, ground_truth, predicted) if counts else None
    classes = _balance(balance)
    report([[matrix, classes]] if len(balance) <= SIDE_BY_SIDE else [[matrix], [classes]], key="classes")
    if not counts:
        return empty_states.empty(
            "No confusion matrix", "It compares predictions with labels, and no image with a prediction has a label."
        )
    if ground_truth:
        prediction = None if predicted == NO_LABEL else predicted
        rows = queries.predictions_of(analysis.confused(ground_truth, prediction, where))
        kind = "correctly predicted" if prediction == ground_truth else f"labelled “{ground_truth}”, predicted"
        title = f"{images(len(rows))} {kind} “{predicted}”, most confident first"
        image_grid(rows, "confidence", title, key="confused")
    return None


def _matrix(counts: dict[tuple[str, str | None], int], ground_truth: str, predicted: str) -> Block:
    totals: dict[str, int] = {}
    for (label, _), n in counts.items():
        totals[label] = totals.get(label, 0) + n
    labels = sorted(totals, key=lambda label: (-totals[label], label))
    predictions = {prediction for _, prediction in counts}
    others = sorted((prediction for prediction in predictions if prediction not in totals), key=str)
    columns = [label for label in labels if label in predictions] + others
    rows = []
    for label in labels[:MOST]:
        cells: list[Block | None] = []
        for prediction in columns[:MOST]:
            n = counts.get((label, prediction), 0)
            name = NO_LABEL if prediction is None else prediction
            part = n / totals[label]
            cells.append(
                cell(
                    count(n),
                    share(part),
                    part,
                    "right" if prediction == label else "wrong",
                    link("", "analyse", view="classes", truth=label, said=name),
                    f"{count(n)} predictions of {name} on images labelled {label}",
                    (label, name) == (ground_truth, predicted),
                )
                if n
                else None
            )
        rows.append((label, [*cells, cell(count(totals[label]))]))
    heads = [NO_LABEL if prediction is None else prediction for prediction in columns[:MOST]]
    cut = max(len(labels), len(columns)) - MOST
    note = "Predictions on labelled images. Percentages are of the row. Click a cell to see its images."
    note += f" {cut} less frequent classes are not shown." if cut > 0 else ""
    return heat("Confusion matrix", "label \\ prediction", [*heads, "all"], rows, note)


def _balance(balance: list[ClassMetrics]) -> Block:
    rows = [
        [
            link(class_.name, "search", label=class_.name),
            count(class_.predicted),
            count(class_.labelled),
            percent(class_.recall),
            span(class_.recall),
            percent(class_.precision),
            span(class_.precision),
        ]
        for class_ in balance
    ]
    columns = [
        ("class", "left", ""),
        ("predicted", "right", "Predictions of this class"),
        ("labelled", "right", "Images with this label"),
        ("recall", "right", "Share of the predictions on images of this class that are correct"),
        ("95 %", "right", ""),
        ("precision", "right", "Share of its predictions on labelled images that are correct"),
        ("95 %", "right", ""),
    ]
    return table("Classes", columns, rows)  # type: ignore[arg-type]
