"""Types of DuckDB that Arrow cannot carry: their values come as text, with every digit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

# Arrow has bytes for BIT and BIGNUM, and -1 for the largest UHUGEINT.
_WITHOUT_ARROW = re.compile(r"\b(BIT|BIGNUM|VARINT|UHUGEINT|TIME WITH TIME ZONE|TIME_NS)\b(?!\")")


def portable(result: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The same rows, whose columns of such types, also inside of lists and structs, are VARCHAR."""
    types = [str(type_) for type_ in result.types]
    if not any(map(_WITHOUT_ARROW.search, types)):
        return result
    columns = [
        f"#{i}::{_WITHOUT_ARROW.sub('VARCHAR', type_)}" if _WITHOUT_ARROW.search(type_) else f"#{i}"
        for i, type_ in enumerate(types, 1)
    ]
    quoted = ['"' + name.replace('"', '""') + '"' for name in result.columns]
    return result.project(", ".join(f"{column} AS {name}" for column, name in zip(columns, quoted, strict=True)))
