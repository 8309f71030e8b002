"""What is in a lake, in numbers: what `lakeloop status` prints and the app's first page starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lake import schema

if TYPE_CHECKING:
    from lake.store import Lake


def status(lake: Lake) -> dict[str, Any]:
    """Counts of everything, per model and per embedder. `missing` counts images without a vector."""
    counts = {name: lake.dataset(name).count_rows() for name in schema.TABLES}
    images = counts["images"]
    models = lake.sql(
        "SELECT model, model_version, count(*) AS answers, min(timestamp) AS first, max(timestamp) AS last"
        " FROM answers GROUP BY ALL ORDER BY answers DESC, model, model_version LIMIT 100"
    ).to_pylist()
    return {
        "lake": lake.uri,
        "images": images,
        "predictions": counts["predictions"],
        "answers": lake.dataset("predictions").count_rows("model IS NOT NULL"),
        "labels": counts["labels"],
        "slices": counts["slices"],
        "models": models,
        "embedders": [embedder_progress(lake, r.name, r.column, r.dim) for r in lake.embedders()],
        "columns": {name: str(kind) for name, kind in lake.promoted().items()},
        "tables": {name: {"rows": rows, "version": lake.version(name)} for name, rows in counts.items()},
    }


def embedder_progress(lake: Lake, name: str, column: str, dim: int | None) -> dict[str, Any]:
    """How many distinct images have this embedder's vector, and how many lack it."""
    total = int(lake.sql("SELECT count(DISTINCT image_id) AS n FROM predictions")["n"][0].as_py())
    done = 0
    if dim is not None:
        names = lake.scan("predictions", ["image_id"], f"{column} is not null")["image_id"]
        done = len(names.unique())
    return {"name": name, "dim": dim, "column": column, "embedded": done, "missing": total - done}
