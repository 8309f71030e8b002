"""A Lance table as DuckDB reads it: an Arrow dataset that hides columns and takes every filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads

if TYPE_CHECKING:
    from collections.abc import Sequence

    import lance

# Arrow hands a filter to Lance as Substrait, which takes twice as long for each further AND or OR: 15 take 0.3 s.
PUSHED_WORDS = 8


class LanceView(pads.Dataset):  # type: ignore[misc]
    """Shows only the named columns; filters that Lance does not take are applied here.

    DuckDB pushes filters on struct fields and dictionary columns that Lance refuses, and does not fall back.
    """

    def __init__(self, dataset: lance.LanceDataset, names: Sequence[str]) -> None:
        self._dataset = dataset
        self._names = [*names]
        whole = dataset.schema  # Lance converts it at every look: DuckDB looks often
        self._schema = pa.schema([_without_metadata(whole.field(n)) for n in self._names])

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def scanner(self, columns: Any = None, filter: Any = None, **options: Any) -> Any:
        """What DuckDB calls: a scanner over `columns` (all when None) of the rows that pass `filter`."""
        wanted = list(columns) if columns else self._names
        if filter is not None and not self._takes(wanted, filter):
            reader = self._dataset.scanner(columns=self._names).to_reader()
            return pads.Scanner.from_batches(reader, columns=wanted, filter=filter)
        return self._dataset.scanner(columns=wanted, filter=filter, batch_size=options.get("batch_size"))

    def _takes(self, columns: list[str], filter: Any) -> bool:
        text = str(filter)
        if text.count(" or ") + text.count(" and ") > PUSHED_WORDS:
            return False
        try:
            self._dataset.scanner(columns=columns, filter=filter).explain_plan()
        except Exception:  # Lance raises many kinds for filters it cannot translate
            return False
        return True


class ViewWithRowIds(LanceView):
    """All columns of a table, and Lance's row id as the column `_rowid`."""

    def __init__(self, dataset: lance.LanceDataset) -> None:
        super().__init__(dataset, [f.name for f in dataset.schema])

    @property
    def schema(self) -> pa.Schema:
        return super().schema.append(pa.field("_rowid", pa.uint64()))

    def scanner(self, columns: Any = None, filter: Any = None, **options: Any) -> Any:
        wanted = list(columns) if columns else [*self._names, "_rowid"]
        # The filter's columns are found by name in its text: this may read a column too many, never one too few.
        read = [n for n in self._names if n in wanted or (filter is not None and n in str(filter))]
        reader = self._dataset.scanner(columns=read, with_row_id=True).to_reader()
        return pads.Scanner.from_batches(reader, columns=wanted, filter=filter)


def _without_metadata(field: pa.Field) -> pa.Field:
    return pa.field(field.name, field.type, field.nullable)
