"""A table and its columns as declared, and the Arrow types that several tables share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

UTC = pa.timestamp("us", tz="UTC")

SCORES_TYPE = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float64())]))
BOXES = pa.list_(
    pa.struct(
        [
            ("label", pa.string()),
            ("score", pa.float64()),
            ("x", pa.float64()),
            ("y", pa.float64()),
            ("width", pa.float64()),
            ("height", pa.float64()),
        ]
    )
)
MASKS = pa.list_(
    pa.struct(
        [
            ("label", pa.string()),
            ("score", pa.float64()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("counts", pa.string()),
        ]
    )
)


@dataclass(frozen=True)
class Column:
    name: str
    type: pa.DataType | str
    doc: str
    nullable: bool = True


@dataclass(frozen=True)
class Table:
    """One Lance table. `key` names the column that identifies a row: inserting a known key adds nothing."""

    name: str
    doc: str
    columns: Sequence[Column]
    key: str
    indexed: Sequence[str] = ()

    def arrow(self) -> pa.Schema:
        """The Arrow schema; the key column carries Lance's unenforced-primary-key mark."""
        fields = []
        for c in self.columns:
            if c.type == "blob":
                import lance

                fields.append(lance.blob_field(c.name))
                continue
            assert isinstance(c.type, pa.DataType)
            # Without this mark two processes that insert the same key at once would both succeed.
            mark = {b"lance-schema:unenforced-primary-key": b"true"} if c.name == self.key else None
            fields.append(pa.field(c.name, c.type, c.nullable, metadata=mark))
        return pa.schema(fields)


# Types a user may promote a metadata column to (`lakeloop init --column NAME:TYPE`).
PROMOTABLE: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": UTC,
}

VECTOR_PREFIX = "emb_"


def vector_column(embedder: str) -> str:
    """`emb_<name>`, every non-alphanumeric character as `_`."""
    return VECTOR_PREFIX + "".join(c if c.isascii() and c.isalnum() else "_" for c in embedder)


def vector_type(dim: int) -> pa.DataType:
    return pa.list_(pa.float32(), dim)
