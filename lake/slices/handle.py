"""A slice as a Python object: `lake.slice("rainy_night")`, for notebooks and retraining scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from lake.slices import members as resolving
from lake.slices import versions
from lake.sql import connections

if TYPE_CHECKING:
    import polars as pl

    from lake.slices.versions import Slice
    from lake.storage.store import Lake


class SliceHandle:
    """One version of a slice: its images and the labels it was frozen with. A live slice is looked at anew each time.

    `made` has its facts: id, size, role, definition.
    """

    def __init__(self, lake: Lake, name: str) -> None:
        self.lake = lake
        self.made: Slice = versions.get(lake, name)

    def __repr__(self) -> str:
        return f"<slice {self.made.id}: {self.made.size:,} images of {self.lake.uri}>"

    def __len__(self) -> int:
        return len(self.members())

    def members(self) -> list[str]:
        """image_ids, sorted; erased ones are left out."""
        names: list[str] = resolving.members(self.lake, self.made).to_pylist()
        return names

    def labels(self) -> pa.Table:
        """The rows of `labels` it was frozen with, by image_id and task; today's when it is live or older than that."""
        contents = resolving.contents(self.lake, self.made)
        events = contents["label_events"]
        names = [f.name for f in self.lake.dataset("labels").schema]
        if events.null_count:
            found = connections.query(
                self.lake,
                "SELECT * FROM labels_current WHERE image_id IN (SELECT unnest(?))",
                [contents["image_id"].to_pylist()],
            )
        else:
            found = self.lake.look_up("labels", names, "event_id", pc.list_flatten(events).to_pylist())
        return found.select(names).sort_by([("image_id", "ascending"), ("task", "ascending")])

    def table(self) -> pa.Table:
        """image_id, label (of the classification it was frozen with; null: none), width, height, format, source.

        One row an image, by image_id. The last four are null when the lake does not have its bytes.
        """
        contents = resolving.contents(self.lake, self.made)
        labels = self.labels().to_pylist()
        said = {row["image_id"]: row["label"] for row in labels if row["task"] == "classification"}
        columns = ["width", "height", "format", "source"]
        names = contents["image_id"].to_pylist()
        rows = {
            r["image_id"]: r for r in self.lake.look_up("images", ["image_id", *columns], "image_id", names).to_pylist()
        }
        kinds = self.lake.dataset("images").schema
        out: dict[str, Any] = {"image_id": contents["image_id"], "label": pa.array(map(said.get, names), pa.string())}
        for column in columns:
            values = [rows[name][column] if name in rows else None for name in names]
            out[column] = pa.array(values, kinds.field(column).type)
        return pa.table(out)

    def frame(self) -> pl.LazyFrame:
        """`table` as a Polars LazyFrame."""
        import polars as pl

        found = pl.from_arrow(self.table())
        assert isinstance(found, pl.DataFrame)
        return found.lazy()

    def dataset(self, **options: Any) -> Any:
        """Its images and labels as a map-style dataset, which torch's DataLoader takes: see `lake.dataset`."""
        from lake.slices.dataset import SliceDataset

        return SliceDataset(self.lake, self.made, **options)
