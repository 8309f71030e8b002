"""The numbered migration steps of a lake, and the record of those that were applied.

A step is written once and never edited; it must be safe to repeat after a kill half way. A lake with unknown steps is
refused, because an older writer could break what a newer one relies on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from lake.errors import CouldNot, NewerLake, NotALake
from lake.storage import renaming, schema
from lake.storage.store import now
from lake.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from lake.storage.store import Lake


def _first_tables(lake: Lake) -> None:
    for table in schema.TABLES.values():
        lake.create_table(table)


def _service_tables(lake: Lake) -> None:
    for name in ("reviews", "keys", "audit", "forgotten"):
        lake.create_table(schema.TABLES[name])
    for column in ("image_status", "image_share"):
        lake.add_column("samples", schema.SAMPLES.arrow().field(column))


def _exploring_tables(lake: Lake) -> None:
    for name in ("searches", "marks", "maps", "map_points"):
        lake.create_table(schema.TABLES[name])
    columns = {
        "clusters": (
            "borderline", "errors", "persistence", "confidence", "answers", "known", "wrong", "labels", "first_at",
            "last_at", "suggested", "name",
        ),
        "cluster_members": ("similarity", "assigned_at"),
    }  # fmt: skip
    for table, names in columns.items():
        for name in names:
            lake.add_column(table, schema.TABLES[table].arrow().field(name))


def _slices_as_code(lake: Lake) -> None:
    for name in ("slice_tags", "saved_queries"):
        lake.create_table(schema.TABLES[name])
    columns = {
        "slices": ("spec", "role", "live", "deleted_at"),
        "slice_members": ("label_events",),
        "embedders": ("duplicates_from",),
    }
    for table, names in columns.items():
        for name in names:
            lake.add_column(table, schema.TABLES[table].arrow().field(name))


def _training_tables(lake: Lake) -> None:
    for name in ("runs", "metrics", "scores", "gates", "releases"):
        lake.create_table(schema.TABLES[name])


def _plain_names(lake: Lake) -> None:
    renaming.rename_table(lake)
    renaming.rewrite_saved_sql(lake)


def _canaries(lake: Lake) -> None:
    for column in ("share", "limits"):
        lake.add_column("releases", schema.RELEASES.arrow().field(column))


def _jobs_table(lake: Lake) -> None:
    lake.create_table(schema.JOBS)


def _incomplete_labels(lake: Lake) -> None:
    for column in ("incomplete", "crowd_boxes", "crowd_masks", "source"):
        lake.add_column("labels", schema.LABELS.arrow().field(column))


def _white_points(lake: Lake) -> None:
    lake.create_table(schema.EMBEDDING_FAILURES)
    for column in ("pixel_type", "black", "white", "white_from"):
        lake.add_column("images", schema.IMAGES.arrow().field(column))


def _comments_on_labels(lake: Lake) -> None:
    lake.add_column("labels", schema.LABELS.arrow().field("comment"))


STEPS: list[tuple[int, str, Callable[[Lake], None]]] = [
    (1, "tables of images, predictions, labels, embedders, clusters and slices", _first_tables),
    (2, "reviews, keys, audit, erasures; what became of a prediction's image", _service_tables),
    (3, "active searches and maps; facts about clusters", _exploring_tables),
    (4, "slices as code with roles, tags and the labels they froze; saved queries", _slices_as_code),
    (5, "training runs, their metrics and predictions, gates, releases of models", _training_tables),
    (6, "table predictions is named samples, also in saved SQL", _plain_names),
    (7, "canaries: the share of images and the limits of a release", _canaries),
    (8, "jobs", _jobs_table),
    (9, "labels that say a part only, crowd regions, and the source of imported labels", _incomplete_labels),
    (10, "black and white of images of more than 8 bits; images that an embedder gave no vector of", _white_points),
    (11, "comments of annotators", _comments_on_labels),
]


def applied(lake: Lake) -> list[int]:
    """Numbers of the applied steps, ascending; empty if there is no lake. Raises CouldNot if the table is damaged."""
    try:
        return sorted(lake.scan("migrations", ["number"])["number"].to_pylist())
    except NotALake:
        return []
    except (OSError, ValueError) as error:
        raise CouldNot(f"table 'migrations' of {lake.uri} is damaged; mend it with lakeloop doctor --repair") from error


def refuse_newer(lake: Lake) -> list[int]:
    """As `applied`. Raises NewerLake if the lake has a step that this software does not know."""
    done = applied(lake)
    newest = STEPS[-1][0]
    if done and done[-1] > newest:
        raise NewerLake(
            f"{lake.uri} was written by a newer lakeloop (step {done[-1]}; this one knows {newest}): upgrade lakeloop"
        )
    return done


def apply(lake: Lake) -> list[int]:
    """Applies the missing steps in order, and records each when it is done; returns their numbers.

    Raises NewerLake if the lake has a step that this software does not know.
    """
    done = refuse_newer(lake)
    fresh = []
    for number, name, step in STEPS:
        if number in done:
            continue
        step(lake)
        _record(lake, number, name)
        fresh.append(number)
    return fresh


def _record(lake: Lake, number: int, name: str) -> None:
    row = {"number": number, "name": name, "applied_at": now(), "lakeloop_version": VERSION}
    lake.insert("migrations", pa.Table.from_pylist([row], schema=schema.MIGRATIONS.arrow()))


def repeat(lake: Lake) -> None:
    """Gives tables and columns again that a step added: a table that lost commits may lack them.

    Saved SQL is not rewritten again: what was saved since means the new names.
    """
    done = applied(lake)
    for number, _, step in STEPS:
        if number in done and step is not _plain_names:
            step(lake)


def record_again(lake: Lake) -> None:
    """Records all steps of a lake whose records were lost, and gives it again what they added."""
    for number, name, step in STEPS:
        if number not in applied(lake):
            if step is not _plain_names:
                step(lake)
            _record(lake, number, name)
