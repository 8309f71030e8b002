"""Counts of everything in a lake, for `lakeloop status` and the app's first page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lake.sql import connections
from lake.storage import schema
from lake.storage.missing_vectors import MissingVectors
from lake.storage.store import literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lake.storage.store import EmbedderRecord, Lake


def status(lake: Lake) -> dict[str, Any]:
    """Counts of everything, per model and per embedder. `incomplete`: by task, images whose label is incomplete;
    `missing`: images that `lakeloop embed` would embed.

    `image_status`: reason -> distinct images that have no thumbnail for it, the twenty most frequent.
    """
    counts = {name: lake.dataset(name).count_rows() for name in schema.TABLES}
    images = counts["images"]
    models = connections.query(
        lake,
        "SELECT model, model_version, count(*) AS predictions, min(timestamp) AS first, max(timestamp) AS last"
        " FROM predictions GROUP BY ALL ORDER BY predictions DESC, model, model_version LIMIT 100",
    ).to_pylist()
    return {
        "lake": lake.uri,
        "images": images,
        "samples": counts["samples"],
        "predictions": lake.dataset("samples").count_rows("model IS NOT NULL"),
        "labels": counts["labels"],
        "incomplete": incomplete(lake),
        "slices": counts["slices"],
        "models": models,
        "image_status": image_status(lake),
        "embedders": embedding_progress(lake, lake.embedders()),
        "columns": {name: str(kind) for name, kind in lake.promoted().items()},
        "tables": {name: {"rows": rows, "version": lake.version(name)} for name, rows in counts.items()},
    }


def incomplete(lake: Lake) -> dict[str, int]:
    """By task, the images whose current label is incomplete: they count neither as labelled nor as background."""
    rows = connections.query(
        lake, "SELECT task, count(*) AS images FROM labels_current WHERE incomplete GROUP BY task ORDER BY task"
    )
    return dict(zip(rows["task"].to_pylist(), rows["images"].to_pylist(), strict=True))


def image_status(lake: Lake) -> dict[str, int]:
    """Why images have no thumbnail: reason -> distinct images, the twenty most frequent first."""
    rows = connections.query(
        lake,
        "SELECT image_status AS reason, count(DISTINCT image_id) AS images FROM samples"
        " WHERE image_status IS NOT NULL GROUP BY reason ORDER BY images DESC, reason LIMIT 20",
    )
    return dict(zip(rows["reason"].to_pylist(), rows["images"].to_pylist(), strict=True))


def embedding_progress(lake: Lake, records: Sequence[EmbedderRecord]) -> list[dict[str, Any]]:
    """For each embedder how many distinct images have its vector, and how many lack it, by reason.

    `embedded`: every row of the image has it; `missing`: `lakeloop embed` would embed it; `failed`: the embedder gave
    none (table `embedding_failures`), `lakeloop embed --retry-failed` tries it again; `unreadable`: it cannot be
    decoded (`image_status`); `without_bytes`: the lake does not have its bytes, because of sampling or retention.
    """
    total = int(connections.query(lake, "SELECT count(DISTINCT image_id) AS n FROM samples")["n"][0].as_py())
    progress = []
    for record in records:
        gaps = MissingVectors(lake, record.column).look()
        counts = gaps.counts()
        failed = gaps.waiting_among(_failed(lake, record.name))
        entry: dict[str, Any] = {"name": record.name, "dim": record.dim, "column": record.column}
        entry |= {"embedded": total - sum(counts.values()), "missing": counts["waiting"] - failed, "failed": failed}
        progress.append(entry | {reason: counts[reason] for reason in ("unreadable", "without_bytes")})
    return progress


def _failed(lake: Lake, embedder: str) -> list[str]:
    names: list[str] = lake.scan("embedding_failures", ["image_id"], f"embedder = {literal(embedder)}")[
        "image_id"
    ].to_pylist()
    return names
