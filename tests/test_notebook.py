"""docs/notebook.md, run from top to bottom on a lake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lake import open_lake
from lake.slices import Slice
from tests.lake import stock

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parent.parent / "docs" / "notebook.md"


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lk = open_lake.create(str(tmp_path / "photos.lake"), embedders=["x"])
    stock.bind(lk)
    stock.add(lk, range(30))
    stock.embed(lk, range(30))

    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    known: dict[str, Any] = {}
    for block in blocks:
        lines = [line for line in block.splitlines() if "with pandas installed" not in line]
        exec("\n".join(lines), known)
    assert isinstance(known["by_class"], pa.Table)
    assert known["by_class"]["n"].to_pylist()[0] > 0
    assert known["like"].num_rows > 0
    slice_: Slice = known["made"]
    assert (slice_.id, slice_.role) == ("unsure@1", "evaluation")
    assert known["unsure"].members() == lk.slice("unsure").members() != []
