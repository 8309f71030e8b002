"""Gives new samples of an image the vectors that the image has already, so that a search with any filter finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from lake.storage.missing_vectors import MissingVectors, embedded_elsewhere

if TYPE_CHECKING:
    from collections.abc import Collection

    from lake.storage.store import Lake


class KnownVectors:
    """The vectors of images in the lake. For one thread; keep it, since a second look is cheap.

    If an embedder stores an image's first vector while a new sample of it is on its way, the sample has none:
    `lakeloop embed` copies it.
    """

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._missing: dict[str, MissingVectors] = {}

    def added_to(self, samples: pa.Table, new_images: Collection[str] = ()) -> pa.Table:
        """The rows for table samples with a column for each embedder that has a vector of one of their images.

        `new_images` are known to have no vector.
        """
        records = [record for record in self._lake.embedders() if record.dim is not None]
        candidates = sorted({*samples["image_id"].to_pylist()} - {*new_images}) if records else []
        # Most images that arrive are new; one look-up by the index says so.
        image_ids = pa.array(sorted(self._lake.known("samples", "image_id", candidates)) if candidates else [])
        for record in records if len(image_ids) else []:
            missing = self._missing.setdefault(record.column, MissingVectors(self._lake, record.column))
            gaps = missing.rows()
            rows = embedded_elsewhere(gaps.dataset, image_ids, gaps.address)
            if not rows.num_rows:
                continue
            addresses = ",".join(map(str, rows["_rowaddr"].to_pylist()))
            # Without stable row ids, which the lake's tables do not have, a row's id is its address.
            vectors = gaps.dataset.to_table(["image_id", record.column], filter=f"_rowid in ({addresses})")
            of_sample = pc.index_in(samples["image_id"], value_set=vectors["image_id"].combine_chunks())
            column = vectors[record.column].combine_chunks().take(of_sample.combine_chunks())
            samples = samples.append_column(record.column, column)
        return samples
