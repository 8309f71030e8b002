"""Parquet and Lance: the row of `lake/formats/metadata.py` as Arrow, with the image's bytes in it.

Parquet has Hugging Face's column `image` {"bytes", "path"}; Lance has the bytes, as the tables that the Lance project
publishes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from lake.errors import BadInput
from lake.formats import annotation, splits
from lake.formats.annotation import ExportSample
from lake.formats.export_files import ExportPart, WholeExport
from lake.formats.item import Item, ReadOptions, printable
from lake.formats.metadata import RowContext, annotations_of, row_of
from lake.formats.paths import inside
from lake.prediction_logs.table_rows import as_dicts

_TEXTS, _NUMBERS = pa.list_(pa.string()), pa.list_(pa.float64())
_ROW = {
    "image_id": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "label": pa.string(),
    "objects": pa.struct([("bbox", pa.list_(_NUMBERS)), ("category", _TEXTS), ("score", _NUMBERS)]),
    "segments": pa.struct(
        [
            ("bbox", pa.list_(_NUMBERS)),
            ("category", _TEXTS),
            ("score", _NUMBERS),
            ("size", pa.list_(pa.list_(pa.int32()))),
            ("counts", _TEXTS),
        ]
    ),
    "prediction": pa.string(),
    "incomplete": _TEXTS,
    "crowds": pa.struct([("bbox", pa.list_(_NUMBERS)), ("category", _TEXTS)]),
    "crowd_segments": pa.struct(
        [
            ("bbox", pa.list_(_NUMBERS)),
            ("category", _TEXTS),
            ("size", pa.list_(pa.list_(pa.int32()))),
            ("counts", _TEXTS),
        ]
    ),
}
PARQUET = pa.schema({"image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]), **_ROW})
LANCE = pa.schema({"image": pa.large_binary(), **_ROW})
LANCE_NAME = "slice.lance"
# Rows with images in memory at once, of up to 20 MB each.
_BATCH_ROWS = 16


# Reading ---------------------------------------------------------------------------------------------------


def holds_images(path: Path) -> bool:
    """Whether a Parquet file has a column `image` with bytes in it."""
    import pyarrow.parquet as pq

    try:
        kind = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError):
        return False
    return "image" in kind.names and _has_bytes(kind.field("image").type)


def _has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" for f in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files with images: `path` itself, or those in it and in its folder `data`."""
    paths = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    return [p for p in paths if p.suffix.lower() == ".parquet" and holds_images(p)]


def read_parquet(path: Path, options: ReadOptions) -> Iterator[Item]:
    import pyarrow.parquet as pq

    paths = parquet_files(path)
    if not paths:
        raise BadInput(f"{path} has no .parquet with a column image of bytes")
    for part in paths:
        try:
            with pq.ParquetFile(part) as file:
                context = _context(path, part, options)
                yield from _items(part, file.iter_batches(batch_size=_BATCH_ROWS), context)
        except (pa.ArrowInvalid, OSError) as error:
            yield Item(printable(part), error=f"not a readable Parquet file: {error}")


def lance_table(path: Path) -> Path | None:
    """The Lance table at a path: itself, or the one that an export wrote into it."""
    return next((p for p in (path, path / LANCE_NAME) if (p / "_versions").is_dir()), None)


def read_lance(path: Path, options: ReadOptions) -> Iterator[Item]:
    import lance

    table = lance_table(path)
    if table is None:
        raise BadInput(f"{path} is not a Lance table")
    try:
        dataset = lance.dataset(str(table))
    except (ValueError, OSError) as error:
        raise BadInput(f"{path} is not a readable Lance table: {error}") from error
    kind = dataset.schema.field("image").type if "image" in dataset.schema.names else pa.null()
    if not _has_bytes(kind) or pa.types.is_struct(kind):
        raise BadInput(f"{path} has no column image with the files' bytes")
    batches = dataset.scanner(batch_size=_BATCH_ROWS, scan_in_order=True).to_batches()
    yield from _items(table, batches, RowContext(os.path.abspath(table), options))


def _context(path: Path, part: Path, options: ReadOptions) -> RowContext:
    split = splits.of_path(path if path.is_dir() else path.parent, part)
    return RowContext(os.path.abspath(part), options, split)


def _items(path: Path, batches: Any, context: RowContext) -> Iterator[Item]:
    number = 0
    for batch in batches:
        for row in as_dicts(batch):
            number += 1
            source = printable(f"{path}:{number}")
            if isinstance(row, str):
                yield Item(source, error=row)
                continue
            columns = {k: v for k, v in row.items() if k != "image"}
            image = row["image"]
            data = image.get("bytes") if isinstance(image, dict) else image
            if data is not None:
                reader = partial(annotations_of, columns, source, data, context)
                yield Item(source, data=data, read_annotations=reader)
                continue
            try:
                file = inside(path.parent, (image or {}).get("path"))
            except BadInput as error:
                yield Item(source, error=f"image: {error}")
            else:
                yield Item(source, path=file, read_annotations=partial(annotations_of, columns, source, file, context))


# Writing ---------------------------------------------------------------------------------------------------


def _row(part: ExportPart, sample: ExportSample) -> dict[str, Any]:
    row = row_of(part, sample, None)
    if row["prediction"] is not None:
        row["prediction"] = annotation.as_json(row["prediction"])
    return row


def write_parquet(part: ExportPart, samples: Iterator[ExportSample]) -> None:
    import pyarrow.parquet as pq

    with (
        part.open(f"data/train-{part.number:05d}.parquet") as out,
        # Images do not compress; small row groups let readers read few at a time.
        pq.ParquetWriter(pa.PythonFile(out, "w"), PARQUET, compression="none") as file,
    ):
        for sample in samples:
            image = {"bytes": sample.image.data, "path": sample.name}
            file.write_batch(pa.RecordBatch.from_pylist([_row(part, sample) | {"image": image}], PARQUET))


def write_lance(part: ExportPart, samples: Iterator[ExportSample]) -> None:
    import lance

    table = part.root / LANCE_NAME
    version = lance.dataset(str(table)).version if (table / "_versions").is_dir() else 0
    rows = [_row(part, s) | {"image": s.image.data} for s in samples]
    # Each part is one commit. A resumed export does not write a committed part again.
    if version <= part.number:
        lance.write_dataset(pa.Table.from_pylist(rows, LANCE), str(table), mode="append" if version else "create")


def finish_parquet(whole: WholeExport) -> None:
    """There is no file beyond the parts' own."""


def finish_lance(whole: WholeExport) -> None:
    """Deletes all versions but the newest, and hashes its files."""
    import datetime as dt

    import lance

    table = whole.root / LANCE_NAME
    if not table.is_dir():
        return
    lance.dataset(str(table)).cleanup_old_versions(dt.timedelta(0), delete_unverified=True)
    whole.hash_all(table)
