"""A slice as a Python object, for notebooks and training scripts: `lake.slice("rainy_night")`."""

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
    """A version of a slice: its images and the labels it was frozen with. A live slice is evaluated at each call.

    `info`: its id, size, role and definition.
    """

    def __init__(self, lake: Lake, name: str) -> None:
        self.lake = lake
        self.info: Slice = versions.get(lake, name)

    def __repr__(self) -> str:
        return f"<slice {self.info.id}: {self.info.size:,} images of {self.lake.uri}>"

    def __len__(self) -> int:
        return len(self.members())

    def members(self) -> list[str]:
        """image_ids, sorted, without erased images."""
        names: list[str] = resolving.members(self.lake, self.info).to_pylist()
        return names

    def labels(self) -> pa.Table:
        """The rows of `labels` it was frozen with, by image_id and task; today's if it is live or froze no labels."""
        contents = resolving.contents(self.lake, self.info)
        events = contents["label_events"]
        names = [f.name for f in self.lake.dataset("labels").schema]
        if events.null_count:
            rows = connections.query(
                self.lake,
                "SELECT * FROM labels_current WHERE image_id IN (SELECT unnest(?))",
                [contents["image_id"].to_pylist()],
            )
        else:
            rows = self.lake.look_up("labels", names, "event_id", pc.list_flatten(events).to_pylist())
        return rows.select(names).sort_by([("image_id", "ascending"), ("task", "ascending")])

    def table(self) -> pa.Table:
        """image_id, label (of the classification; null: none), width, height, format, source.

        One row per image, by image_id. The last four are null if the lake does not have the image's bytes.
        """
        contents = resolving.contents(self.lake, self.info)
        labels = self.labels().to_pylist()
        label_of = {row["image_id"]: row["label"] for row in labels if row["task"] == "classification"}
        columns = ["width", "height", "format", "source"]
        names = contents["image_id"].to_pylist()
        rows = {
            r["image_id"]: r for r in self.lake.look_up("images", ["image_id", *columns], "image_id", names).to_pylist()
        }
        kinds = self.lake.dataset("images").schema
        table: dict[str, Any] = {
            "image_id": contents["image_id"],
            "label": pa.array(map(label_of.get, names), pa.string()),
        }
        for column in columns:
            values = [rows[name][column] if name in rows else None for name in names]
            table[column] = pa.array(values, kinds.field(column).type)
        return pa.table(table)

    def frame(self) -> pl.LazyFrame:
        """`table` as a Polars LazyFrame."""
        import polars as pl

        frame = pl.from_arrow(self.table())
        assert isinstance(frame, pl.DataFrame)
        return frame.lazy()

    def dataset(self, **options: Any) -> Any:
        """Its images and labels as a map-style dataset for torch's DataLoader: see `lake.slices.dataset`."""
        from lake.slices.dataset import SliceDataset

        return SliceDataset(self.lake, self.info, **options)
