"""What `lake.open` and `lake.create` return: a lake with SQL, slices, frames and images as methods."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from lake.storage import opening, schema, views
from lake.storage.store import Lake, literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import polars as pl
    import pyarrow as pa

    from lake.slices.handle import SliceHandle
    from lake.storage.blobs import StoredImage


class OpenLake(Lake):
    """A `Lake` for notebooks, scripts and pages. Inside the packages, functions take a `Lake`."""

    def sql(self, query: str, parameters: Sequence[Any] | dict[str, Any] | None = None) -> pa.Table:
        """Runs one SELECT over the lake's tables and views. See `lake.sql.connections.query`."""
        from lake.sql import connections

        return connections.query(self, query, parameters)

    def frame(self, name: str, version: int | str | None = None) -> pl.LazyFrame:
        """The table or view as a Polars LazyFrame, without the columns Polars cannot read.

        Of a table, filters and columns are pushed down, and `version` may be a number or the name of a tag; by default
        it is the newest. A view is computed now, whole, and has no versions. The frame does not change afterwards.
        Raises BadInput if the table, the view, the version or the tag does not exist.
        """
        import polars as pl

        if name in views.VIEWS:
            if version is not None:
                raise BadInput(f"{name} is a view, which has no versions: leave version {version!r} out")
            return pl.DataFrame(self.sql(f"SELECT * FROM {name}")).lazy()
        if name not in schema.TABLES:
            names = [*schema.TABLES, *views.VIEWS]
            near = [views.RENAMED[name]] if name in views.RENAMED else difflib.get_close_matches(name, names, 3)
            raise BadInput(f"no table or view {name!r}; did you mean {', '.join(near or sorted(names))}?")
        number = self.tags(name).get(version) if isinstance(version, str) else version
        if isinstance(version, str) and number is None:
            raise BadInput(f"{name} has no tag {version!r}; it has {', '.join(sorted(self.tags(name))) or 'none'}")
        try:
            dataset = self.dataset(name, number)
        except (ValueError, OSError) as error:
            raise BadInput(f"{name} has no version {version} any more, or not yet; see: lakeloop maintain") from error
        hidden = {c.name for c in schema.TABLES[name].columns if c.type == "blob"}
        frame: pl.LazyFrame = pl.scan_lance(dataset, version=int(dataset.version))
        return frame.select([f.name for f in dataset.schema if f.name not in hidden])

    def slice(self, name: str) -> SliceHandle:
        """A slice, as NAME, NAME@VERSION or NAME@TAG. Raises BadInput if it does not exist."""
        from lake.slices.handle import SliceHandle

        return SliceHandle(self, name)

    def images(self, image_ids: Sequence[str]) -> Iterator[StoredImage]:
        """The images among `image_ids` that the lake has. See `lake.storage.blobs.images`."""
        from lake.storage import blobs

        return blobs.images(self, image_ids)

    def image(self, image_id: str) -> StoredImage | None:
        """The image as it was received, or None if the lake does not have it."""
        return next(self.images([image_id]), None)

    def thumbnail(self, image_id: str) -> bytes | None:
        """The image's thumbnail, a JPEG of at most 16 KiB, or None if the lake does not have it."""
        rows = self.scan("thumbnails", ["jpeg"], f"image_id = {literal(image_id)}")["jpeg"]
        return rows[0].as_py() if len(rows) else None


def create(
    uri: str,
    *,
    embedders: Sequence[str] = (),
    columns: dict[str, str] | None = None,
    storage_options: dict[str, str] | None = None,
) -> OpenLake:
    """Makes an empty lake and opens it: see `lake.storage.opening.create`."""
    return opening.create_as(OpenLake, uri, embedders=embedders, columns=columns, storage_options=storage_options)


def open(uri: str, *, storage_options: dict[str, str] | None = None) -> OpenLake:
    """Opens the lake at `uri`: see `lake.storage.opening.open`."""
    return opening.open_as(OpenLake, uri, storage_options=storage_options)
