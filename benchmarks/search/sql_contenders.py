"""The contenders of `sql`, one process each. The work folder has the lake, native.duckdb and parquet.

Each returns the milliseconds of every query: the first run in a new process with none of its files in the page cache
(`cold`), the median of the next runs (`warm`), and a digest of the result, which must be equal for all contenders.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.harness.contender import Stopwatch

COMMIT_ROWS = 500_000
WARM_TURNS = 3
Ask = Callable[[str], Any]

# Each image has two predictions, with the columns of production, a metadata object of three keys and three scores.
_ANSWERS = """
    SELECT lower(format('{{:08x}}-0000-4000-8000-{{:012x}}', i % 4294967296, i)) AS prediction_id,
           sha256((i // 2)::VARCHAR) AS image_id,
           TIMESTAMPTZ '2026-01-01 00:00:00+00' + INTERVAL (i * 7) SECOND AS "timestamp",
           CASE WHEN hash(i, 1) % 3 = 0 THEN 'gate' ELSE 'dock' END AS model,
           'v' || (1 + i * 4 // {total}) AS model_version,
           'classification' AS task,
           'class_' || (hash(i, 2) % 20) AS label,
           (hash(i, 3) % 1000000) / 1000000.0 AS confidence,
           [{{'label': 'class_' || (hash(i, 2) % 20), 'score': (hash(i, 3) % 1000000) / 1000000.0}},
            {{'label': 'class_' || (hash(i, 4) % 20), 'score': (hash(i, 5) % 1000) / 2000.0}},
            {{'label': 'class_' || (hash(i, 6) % 20), 'score': (hash(i, 7) % 1000) / 4000.0}}] AS scores,
           's3://bucket/' || (i % 97) || '/' || i || '.jpg' AS source,
           5.0 + (hash(i, 8) % 1000) / 50.0 AS latency_ms,
           '{{"camera": ' || (hash(i, 9) % 40) || ', "site": "site-' || (hash(i, 10) % 8)
               || '", "night": ' || CASE WHEN hash(i, 11) % 4 = 0 THEN 'true' ELSE 'false' END || '}}' AS metadata,
           TIMESTAMPTZ '2026-01-01 00:00:00+00' + INTERVAL (i * 7 + 2) SECOND AS ingested_at
    FROM range({first}, {last}) t(i)"""

_LABELS = """
    SELECT lower(format('{{:08x}}-0000-4000-8000-{{:012x}}', 7, i)) AS event_id, sha256(i::VARCHAR) AS image_id,
           TIMESTAMPTZ '2026-06-01 00:00:00+00' + INTERVAL (i) SECOND AS "timestamp",
           'classification' AS task, 'class_' || (hash(2 * i, 2) % 20) AS label, 'human' AS origin, 'ann' AS annotator
    FROM range({first}, {last}) t(i) WHERE i % 5 = 0"""

QUERIES = {
    "count by class": """
        SELECT label, count(*) AS n, avg(confidence) AS c FROM samples GROUP BY label ORDER BY label""",
    "count by day and model": """
        SELECT CAST("timestamp" AS DATE) AS day, model, count(*) AS n, avg(confidence) AS c
        FROM samples GROUP BY ALL ORDER BY ALL""",
    "rare filter": """
        SELECT model, count(*) AS n, avg(latency_ms) AS ms FROM samples
        WHERE confidence < 0.02 AND label IN ('class_3', 'class_4') AND "timestamp" >= TIMESTAMPTZ '2026-01-10 00:00+00'
        GROUP BY model ORDER BY model""",
    "least sure 100": """
        SELECT prediction_id, image_id, label, confidence FROM samples
        ORDER BY confidence, prediction_id LIMIT 100""",
    "one image": """
        SELECT prediction_id, model_version, label, confidence FROM samples
        WHERE image_id = sha256('1234') ORDER BY prediction_id""",
    "quantiles": """
        SELECT model_version, quantile_disc(confidence, [0.05, 0.5, 0.95]) AS q, max(latency_ms) AS most
        FROM samples GROUP BY model_version ORDER BY model_version""",
    "right by class": """
        SELECT l.label, count(*) AS n, count_if(p.label = l.label) AS ok
        FROM samples p JOIN labels l USING (image_id) GROUP BY l.label ORDER BY l.label""",
    "distinct images": "SELECT model_version, count(DISTINCT image_id) AS n FROM samples GROUP BY ALL ORDER BY ALL",
    "top 3 of a class": """
        SELECT label, prediction_id, confidence FROM samples
        QUALIFY row_number() OVER (PARTITION BY label ORDER BY confidence DESC, prediction_id) <= 3 ORDER BY ALL""",
    "second guess": """
        SELECT scores[2].label AS second, count(*) AS n FROM samples
        WHERE list_max(list_transform(scores, lambda s: s.score)) < 0.5 GROUP BY ALL ORDER BY ALL""",
    "unnested scores": """
        SELECT s.label, avg(s.score) AS score FROM (SELECT unnest(scores) AS s FROM samples)
        GROUP BY s.label ORDER BY s.label""",
    "metadata": """
        SELECT metadata->>'$.site' AS site, count(*) AS n, avg(confidence) AS c FROM samples
        WHERE (metadata->>'$.camera')::INTEGER = 7 GROUP BY ALL ORDER BY ALL""",
}


def build(turn: int, work: str, rows: int) -> dict[str, Any]:
    """The same rows as a lake, as a DuckDB file and as Parquet files."""
    import duckdb
    import lance

    from lake import open_lake
    from lake.sql import columnar

    source = duckdb.connect()
    lake = open_lake.create(str(Path(work, "lake")), embedders=["x"])
    native = duckdb.connect(str(Path(work, "native.duckdb")))
    Path(work, "parquet").mkdir()
    seconds = {"lake": 0.0, "native": 0.0}
    for start in range(0, rows, COMMIT_ROWS):
        end = min(rows, start + COMMIT_ROWS)
        tables = {
            "samples": source.sql(_ANSWERS.format(first=start, last=end, total=rows)).to_arrow_table(),
            "labels": source.sql(_LABELS.format(first=start // 2, last=end // 2)).to_arrow_table(),
        }
        for name, columns in tables.items():
            table = _whole(columns, name)
            with Stopwatch() as clock:
                lance.write_dataset(table, lake.table_uri(name), mode="append")
            seconds["lake"] += clock.seconds
            with Stopwatch() as clock:
                native.register("incoming", table)
                if start == 0:
                    native.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
                else:
                    native.execute(f"INSERT INTO {name} SELECT * FROM incoming")
                native.unregister("incoming")
            seconds["native"] += clock.seconds
            out = Path(work, "parquet", f"{name}-{start:012}.parquet")
            native.register("incoming", table)
            native.execute(f"COPY (SELECT * FROM incoming) TO '{out}' (FORMAT parquet, COMPRESSION zstd)")
            native.unregister("incoming")
    with Stopwatch() as clock:
        native.close()
    seconds["native"] += clock.seconds
    with Stopwatch() as clock:
        columnar.pin(lake)
    seconds["copy"] = clock.seconds
    size = {"copy": _bytes(columnar.folder(lake)), "native": Path(work, "native.duckdb").stat().st_size}
    size["parquet"] = _bytes(Path(work, "parquet"))
    size["lance"] = sum(_bytes(Path(lake.table_uri(name))) for name in ("samples", "labels"))
    return {"seconds": seconds, "bytes": size}


def append(turn: int, work: str, first: int, rows: int, total: int) -> dict[str, Any]:
    """Adds `rows` new predictions for every contender, as a drainer commits them; the next query updates the copy."""
    import duckdb

    from lake import open_lake

    source = duckdb.connect()
    columns = source.sql(_ANSWERS.format(first=first, last=first + rows, total=total)).to_arrow_table()
    table = _whole(columns, "samples")
    open_lake.open(str(Path(work, "lake"))).insert("samples", table)
    with duckdb.connect(str(Path(work, "native.duckdb"))) as native:
        native.register("incoming", table)
        native.execute("INSERT INTO samples SELECT * FROM incoming")
        out = Path(work, "parquet", f"predictions-{first:012}.parquet")
        native.execute(f"COPY (SELECT * FROM incoming) TO '{out}' (FORMAT parquet, COMPRESSION zstd)")
    return {}


def _whole(result: Any, name: str) -> Any:
    """The rows with every column of table `name` in its type; missing columns are null."""
    import pyarrow as pa

    from lake.storage import schema

    wanted = schema.TABLES[name].arrow()
    names = {*result.column_names}
    columns = [result[f.name].cast(f.type) if f.name in names else pa.nulls(len(result), f.type) for f in wanted]
    return pa.table(columns, schema=wanted)


def lakeloop(turn: int, work: str) -> dict[str, Any]:
    """`lake.sql`, in this process. Its first query includes copying the new rows."""
    from lake import open_lake

    def start() -> Ask:
        return open_lake.open(str(Path(work, "lake"))).sql

    return _asked(start, [Path(work, "lake")])


def sandbox(turn: int, work: str) -> dict[str, Any]:
    """The locked child process, as in `lakeloop sql` and POST /v1/sql."""
    from lake import open_lake
    from lake.sql.sandbox.pool import Pool

    def start() -> Ask:
        pool = Pool(open_lake.open(str(Path(work, "lake"))))
        pool.ready()  # as in a server
        return lambda text: pool.run(text).table

    return _asked(start, [Path(work, "lake")])


def native(turn: int, work: str) -> dict[str, Any]:
    """DuckDB on its own file."""
    import duckdb

    def start() -> Ask:
        connection = duckdb.connect(str(Path(work, "native.duckdb")), read_only=True)
        connection.execute("SET TimeZone = 'UTC'")
        return lambda text: connection.sql(text).to_arrow_table()

    return _asked(start, [Path(work, "native.duckdb")])


def parquet(turn: int, work: str) -> dict[str, Any]:
    """DuckDB on Parquet files."""
    import duckdb

    def start() -> Ask:
        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        for name in ("samples", "labels"):
            connection.execute(f"CREATE VIEW {name} AS FROM read_parquet('{work}/parquet/{name}-*.parquet')")
        return lambda text: connection.sql(text).to_arrow_table()

    return _asked(start, [Path(work, "parquet")])


def lance_by_arrow(turn: int, work: str) -> dict[str, Any]:
    """DuckDB on the Lance tables through Arrow's scanner, without the copy."""
    import duckdb

    from lake import open_lake
    from lake.sql import columnar
    from lake.sql.lance_view import LanceView

    def start() -> Ask:
        lake, connection = open_lake.open(str(Path(work, "lake"))), duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        for name in ("samples", "labels"):
            dataset = lake.dataset(name)
            connection.register(name, LanceView(dataset, columnar.columns(name, dataset)))
        return lambda text: connection.sql(text).to_arrow_table()

    return _asked(start, [Path(work, "lake")])


def _asked(start: Callable[[], Ask], files: list[Path]) -> dict[str, Any]:
    """Runs the queries with what `start` returns; imports do not count, opening counts as `open_ms`."""
    import duckdb  # noqa: F401
    import lance  # noqa: F401
    import pyarrow.dataset  # noqa: F401

    _evict(files)
    with Stopwatch() as opened:
        ask = start()
    cold, warm, digests = {}, {}, {}
    for name, text in QUERIES.items():
        _evict(files)
        before = perf_counter()
        table = ask(text)
        cold[name] = (perf_counter() - before) * 1e3
        digests[name] = hashlib.sha256(_rounded(table).encode()).hexdigest()
    for name, text in QUERIES.items():
        taken = []
        for _ in range(WARM_TURNS):
            before = perf_counter()
            ask(text)
            taken.append((perf_counter() - before) * 1e3)
        warm[name] = float(np.median(taken))
    return {"open_ms": opened.seconds * 1e3, "cold": cold, "warm": warm, "digests": digests}


def _rounded(table: Any) -> str:
    """The rows as text, floats rounded: averages in another order differ in their last digits."""
    return repr([{k: f"{v:.9g}" if isinstance(v, float) else v for k, v in row.items()} for row in table.to_pylist()])


def _evict(files: list[Path]) -> None:
    """Drops the files from the page cache; dirty pages are written first. Needs no special rights."""
    for root in files:
        for path in root.rglob("*") if root.is_dir() else [root]:
            if path.is_file():
                number = os.open(path, os.O_RDONLY)
                try:
                    os.fdatasync(number)
                    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(number)


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
