"""A process that says that it needs no pandas does not import it, and can do so later."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lake.open_lake import OpenLake
from tests.crash.service import ROOT

pytest.importorskip("pandas")

PROGRAM = """
import sys
from lake.without_pandas import start_without_pandas
start_without_pandas()
from lake.spool.drain import drain
from lake.spool.spool import Spool, beside
from lake.storage import opening
lake = opening.open(sys.argv[1])
drain(lake, Spool(beside(sys.argv[1])))
assert "pandas" not in sys.modules
import pandas as pd
import pyarrow as pa
rows = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
assert pa.table(rows).to_pylist() == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
assert pa.array(pd.Series([1.0, None])).null_count == 1
assert lake.scan("samples", ["label"]).to_pandas().empty
"""


def test_a_lake_is_drained_without_pandas_which_can_be_used_later(lk: OpenLake) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, lk.uri], check=True, cwd=ROOT)
