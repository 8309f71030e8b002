"""The confusion matrix, whose cells open as images, and the balance of classes."""

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
NO_ANSWER = "no label"


def show(where: str | None) -> None:
    """The view."""
    counts = analysis.confusion(where)
    balance = analysis.classes(where)
    truth, said = session.param("truth"), session.param("said")
    matrix = _matrix(counts, truth, said) if counts else None
    report([[matrix, _balance(balance)] if len(balance) <= 8 else [matrix], [] if len(balance) <= 8 else [_balance(balance)]], key="classes")  # fmt: skip  # noqa: E501
    if not counts:
        return empty_states.empty(
            "No confusion to show", "A label of an image says what an answer should have been; none is here."
        )
    if truth:
        answer = None if said == NO_ANSWER else said
        ids = analysis.confused(truth, answer, where)
        rows = queries.answers_of(ids)
        what = f"rightly answered “{said}”" if answer == truth else f"answered “{said}” that are “{truth}”"
        title = f"{images(len(rows))} {what}, the surest first"
        image_grid(rows, "confidence", title, key="confused")
    return None


def _matrix(counts: dict[tuple[str, str | None], int], truth: str, said: str) -> Block:
    totals: dict[str, int] = {}
    for (true, _), n in counts.items():
        totals[true] = totals.get(true, 0) + n
    truths = sorted(totals, key=lambda one: (-totals[one], one))
    spoken = {answer for _, answer in counts}
    answers = [one for one in truths if one in spoken] + sorted((one for one in spoken if one not in totals), key=str)
    rows = []
    for true in truths[:MOST]:
        cells: list[Block | None] = []
        for answer in answers[:MOST]:
            n = counts.get((true, answer), 0)
            name = NO_ANSWER if answer is None else answer
            part = n / totals[true]
            cells.append(
                cell(
                    count(n),
                    share(part),
                    part,
                    "right" if answer == true else "wrong",
                    link("", "analyse", view="classes", truth=true, said=name),
                    f"{count(n)} answers about {true} said {name}",
                    (true, name) == (truth, said),
                )
                if n
                else None
            )
        rows.append((true, [*cells, cell(count(totals[true]))]))
    heads = [NO_ANSWER if one is None else one for one in answers[:MOST]]
    cut = max(len(truths), len(answers)) - MOST
    note = "Answers whose image has a label; the percentage is of its row. Choose a cell to see its images."
    note += f" {cut} rarer classes are not shown." if cut > 0 else ""
    return heat("Confusion", "truth \\ answer", [*heads, "all"], rows, note)


def _balance(balance: list[ClassMetrics]) -> Block:
    rows = [
        [
            link(one.name, "search", label=one.name),
            count(one.answered),
            count(one.labelled),
            percent(one.recall),
            span(one.recall),
            percent(one.precision),
            span(one.precision),
        ]
        for one in balance
    ]
    columns = [
        ("class", "left", ""),
        ("answered", "right", "Answers that say so"),
        ("labelled", "right", "Images that a label says are of it"),
        ("recall", "right", "Of the answers about its images, the share that says so"),
        ("95 %", "right", ""),
        ("precision", "right", "Of its answers whose image has a label, the share that is right"),
        ("95 %", "right", ""),
    ]
    return table("Class balance", columns, rows)  # type: ignore[arg-type]
