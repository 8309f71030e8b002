"""The row of `lake/formats/metadata.py` as Arrow has it, with the image's bytes in it: for Parquet and for Lance.

Parquet has Hugging Face's column `image` {"bytes", "path"}; Lance the bytes themselves, as the tables that the Lance
project publishes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from lake.errors import BadInput
from lake.formats import annotation
from lake.formats.annotation import ExportSample, ModelName
from lake.formats.export_files import ExportPart, WholeExport
from lake.formats.item import Item, printable
from lake.formats.metadata import annotations_of, row_of
from lake.formats.paths import inside
from lake.formats.table_rows import as_dicts

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
}
PARQUET = pa.schema({"image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]), **_ROW})
LANCE = pa.schema({"image": pa.large_binary(), **_ROW})
LANCE_NAME = "slice.lance"
# Rows with pictures in them: as many as memory holds easily at 20 MB each.
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
    """The Parquet files with images at a path, in it or in its folder `data`."""
    found = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    return [p for p in found if p.suffix.lower() == ".parquet" and holds_images(p)]


def read_parquet(path: Path, model: ModelName) -> Iterator[Item]:
    import pyarrow.parquet as pq

    found = parquet_files(path)
    if not found:
        raise BadInput(f"{path} holds no .parquet with a column image of bytes")
    for place in found:
        try:
            with pq.ParquetFile(place) as file:
                yield from _items(place, file.iter_batches(batch_size=_BATCH_ROWS), model)
        except (pa.ArrowInvalid, OSError) as error:
            yield Item(printable(place), error=f"no readable Parquet file: {error}")


def lance_table(path: Path) -> Path | None:
    """The Lance table at a path: itself, or the one that an export put there."""
    return next((p for p in (path, path / LANCE_NAME) if (p / "_versions").is_dir()), None)


def read_lance(path: Path, model: ModelName) -> Iterator[Item]:
    import lance

    place = lance_table(path)
    if place is None:
        raise BadInput(f"{path} is no Lance table")
    try:
        dataset = lance.dataset(str(place))
    except (ValueError, OSError) as error:
        raise BadInput(f"{path} is no readable Lance table: {error}") from error
    kind = dataset.schema.field("image").type if "image" in dataset.schema.names else pa.null()
    if not _has_bytes(kind) or pa.types.is_struct(kind):
        raise BadInput(f"{path} has no column image with the files' bytes")
    yield from _items(place, dataset.scanner(batch_size=_BATCH_ROWS, scan_in_order=True).to_batches(), model)


def _items(place: Path, batches: Any, model: ModelName) -> Iterator[Item]:
    number = 0
    for batch in batches:
        for row in as_dicts(batch):
            number += 1
            where = printable(f"{place}:{number}")
            if isinstance(row, str):
                yield Item(where, error=row)
                continue
            rest = {k: v for k, v in row.items() if k != "image"}
            image = row["image"]
            said = partial(annotations_of, rest, where, model)
            data = image.get("bytes") if isinstance(image, dict) else image
            if data is not None:
                yield Item(where, data=data, read_annotations=said)
                continue
            try:
                yield Item(where, path=inside(place.parent, (image or {}).get("path")), read_annotations=said)
            except BadInput as error:
                yield Item(where, error=f"image: {error}")


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
        # Pictures do not compress; small groups of rows let readers take few at a time.
        pq.ParquetWriter(pa.PythonFile(out, "w"), PARQUET, compression="none") as file,
    ):
        for sample in samples:
            image = {"bytes": sample.image.data, "path": sample.name}
            file.write_batch(pa.RecordBatch.from_pylist([_row(part, sample) | {"image": image}], PARQUET))


def write_lance(part: ExportPart, samples: Iterator[ExportSample]) -> None:
    import lance

    place = part.root / LANCE_NAME
    there = lance.dataset(str(place)).version if (place / "_versions").is_dir() else 0
    rows = [_row(part, s) | {"image": s.image.data} for s in samples]
    # Each part is one commit: a part that was committed before the export was stopped is not written again.
    if there <= part.number:
        lance.write_dataset(pa.Table.from_pylist(rows, LANCE), str(place), mode="append" if there else "create")


def finish_parquet(whole: WholeExport) -> None:
    """Nothing is common to all parts."""


def finish_lance(whole: WholeExport) -> None:
    """Leaves the newest version alone, and hashes its files."""
    import datetime as dt

    import lance

    place = whole.root / LANCE_NAME
    if not place.is_dir():
        return
    lance.dataset(str(place)).cleanup_old_versions(dt.timedelta(0), delete_unverified=True)
    whole.hash_all(place)
