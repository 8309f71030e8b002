"""The process that runs SQL: it attaches the files it is given, runs a query within limits, and returns its rows.

It knows nothing of Lance, the lake or the network. Before the first query it gives up every right it does not need.
It also checks what the query may contain, so that a parser that crashes on the query crashes here. It ends when its
stdin is closed. For the messages on stdin and stdout see `lake/sql/sandbox/frames.py`.
"""

from __future__ import annotations

import json
import math
import os
import resource
import select
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, BinaryIO

from lake.sql import portable
from lake.sql.sandbox import confinement, frames

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from lake.sql.sandbox.parsing import Parser

BATCH_ROWS = 8_192
# Of an error, which may repeat a name of any length.
MESSAGE_CHARACTERS = 4_000


def main(memory_bytes: int, threads: int) -> None:
    """Runs queries until stdin ends."""
    source, sink = _own_pipes()
    threading.Thread(target=_exit_at_hang_up, args=(source.fileno(),), daemon=True).start()
    import duckdb
    import pyarrow as pa

    runner = QueryRunner(threads, memory_bytes)
    warm_up = duckdb.connect(":memory:")  # loads now what DuckDB and Arrow would load after the confinement
    warm_up.sql("SELECT json_serialize_sql('SELECT 1')").to_arrow_reader(1).read_all()
    warm_up.close()
    confined = confinement.confine(memory_bytes)
    frames.write(sink, frames.READY, json.dumps({"confined": confined}).encode())
    while True:
        letter, payload = frames.read(source)
        assert letter == frames.QUERY
        request = json.loads(payload)
        tables = {name: pa.ipc.open_stream(frames.read(source)[1]).read_all() for name in request["tables"]}
        runner.run(request, tables, sink)
        del tables


class QueryRunner:
    """Runs one query after the other, and keeps its connection while the queries attach the same files."""

    def __init__(self, threads: int, memory_bytes: int) -> None:
        # The rest is for what DuckDB does not count: Python, Arrow, the parser's trees. There is no folder to spill
        # into: without one DuckDB reports that memory ran out, and not that a file could not be written.
        limit = f"{memory_bytes * 6 // 10 >> 20}MiB"
        self._settings: dict[str, Any] = {"threads": threads, "memory_limit": limit, "temp_directory": ""}
        self._threads = threads
        self._setup: list[str] | None = None
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._parser: Parser | None = None

    def run(self, request: dict[str, Any], tables: dict[str, pa.Table], sink: BinaryIO) -> None:
        """Writes the query's columns, rows and end, or its failure."""
        import duckdb
        import pyarrow as pa

        from lake.errors import BadInput
        from lake.sql.sandbox import statement

        started = time.monotonic()
        _limit_cpu(request["timeout"] * self._threads)
        text, parameters = request["sql"], request["parameters"]
        try:
            if request["format"] == "parsed":
                _write_value(self._parsed(text, request["wanted"], tables), request["max_bytes"], sink)
                return
            connection = self._connected(request["setup"])
            names = [*request["names"], *tables]
            for name, table in tables.items():
                connection.register(name, table)
            for macro in request["macros"].values():
                connection.execute(macro)
            try:
                statement.parse(connection, text, names, request["macros"])
                self._write_rows(connection, text, parameters, request, sink, started)
            except (duckdb.BinderException, duckdb.CatalogException) as error:
                raise type(error)(_with_position(connection, text, parameters, error)) from None
            finally:
                for name in tables:
                    connection.unregister(name)
        except duckdb.IOException as error:
            _write_failure(sink, "io", str(error))
        except duckdb.OutOfMemoryException as error:
            self._setup = None
            _write_failure(sink, "memory", str(error).split("\n")[0])
        except (MemoryError, RecursionError) as error:
            self._setup = None
            _write_failure(sink, "memory", f"the query needs too much memory ({type(error).__name__})")
        except (BadInput, duckdb.Error) as error:
            reason = "unknown" if isinstance(error, duckdb.CatalogException) else "invalid"
            _write_failure(sink, reason, str(error))
        except (OSError, pa.ArrowException) as error:  # DuckDB's errors, raised through the Arrow stream
            memory = "Out of Memory Error" in str(error)
            _write_failure(sink, "memory" if memory else "invalid", str(error))
        except Exception as error:  # such as a parameter of a type that DuckDB does not take
            _write_failure(sink, "invalid", f"{type(error).__name__}: {error}")

    def _parsed(self, text: str, wanted: dict[str, Any], tables: dict[str, pa.Table]) -> Any:
        """The calls of the table functions `wanted["calls"]`; without them, the filter in Lance's dialect."""
        from lake.sql.sandbox.parsing import Parser

        self._parser = self._parser or Parser(self._settings, wanted["lock"])
        if "calls" in wanted:
            return self._parser.calls(text, wanted["calls"])
        return self._parser.lance_filter(text, tables["samples"].schema, wanted["bounded"])

    def _connected(self, setup: list[str]) -> duckdb.DuckDBPyConnection:
        import duckdb

        if self._connection is not None and self._setup == setup:
            return self._connection
        if self._connection is not None:
            self._connection.close()
        self._setup = self._connection = None
        connection = duckdb.connect(":memory:", config=self._settings)
        for line in setup:
            connection.execute(line)
        self._connection, self._setup = connection, setup
        return connection

    def _write_rows(
        self,
        connection: duckdb.DuckDBPyConnection,
        text: str,
        parameters: Any,
        request: dict[str, Any],
        sink: BinaryIO,
        started: float,
    ) -> None:
        result = portable.portable(connection.sql(text, params=parameters))
        columns = [{"name": n, "type": str(t)} for n, t in zip(result.columns, result.types, strict=True)]
        reader = result.to_arrow_reader(BATCH_ROWS)
        writer = (_JsonWriter if request["format"] == "json" else _ArrowWriter)(
            sink, reader.schema, request["max_bytes"]
        )
        frames.write(sink, frames.COLUMNS, json.dumps({"columns": columns}).encode())
        left, rows, truncated = request["max_rows"], 0, False
        for batch in reader:
            wanted = batch if left is None or batch.num_rows <= left else batch.slice(0, left)
            written = writer.write_batch(wanted)
            rows += written
            left = None if left is None else left - written
            if written < batch.num_rows:
                truncated = True
                break
        reader.close()
        writer.close()
        summary = {"rows": rows, "truncated": truncated, "seconds": round(time.monotonic() - started, 6)}
        frames.write(sink, frames.END, json.dumps(summary).encode())


class _ArrowWriter:
    """Writes rows as an Arrow IPC stream of at most `max_bytes`. It is the file that Arrow's own writer writes to."""

    closed = False

    def __init__(self, sink: BinaryIO, schema: pa.Schema, max_bytes: int) -> None:
        import pyarrow as pa

        self._sink, self._left = sink, max_bytes
        self._written: list[bytes] = []
        self._stream = pa.ipc.new_stream(self, schema)

    def write(self, data: Any) -> int:
        self._written.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def write_batch(self, batch: pa.RecordBatch) -> int:
        """Writes as many of the rows as fit; returns how many."""
        import pyarrow as pa

        while batch.num_rows and (size := pa.ipc.get_record_batch_size(batch)) > self._left:
            fewer = min(batch.num_rows - 1, batch.num_rows * self._left // size)
            batch = batch.slice(0, fewer)
        if batch.num_rows:
            self._left -= size
            self._stream.write_batch(batch)
            self._send()
        return int(batch.num_rows)

    def close(self) -> None:
        self._stream.close()
        self._send()

    def _send(self) -> None:
        if self._written:
            frames.write(self._sink, frames.ROWS, b"".join(self._written))
            self._written.clear()


class _JsonWriter:
    """Writes rows as JSON arrays with commas between them, at most `max_bytes`."""

    def __init__(self, sink: BinaryIO, schema: pa.Schema, max_bytes: int) -> None:
        self._sink, self._left = sink, max_bytes
        self._comma = b""

    def write_batch(self, batch: pa.RecordBatch) -> int:
        """Writes as many of the rows as fit; returns how many."""
        from lake.sql.tables import plain, values

        names = batch.schema.names
        columns = [[plain(v) for v in values(*pair)] for pair in zip(batch.columns, names, strict=True)]
        rows = []
        for row in zip(*columns, strict=True) if columns else ([] for _ in range(batch.num_rows)):
            text = json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
            if len(text) + 1 > self._left:
                break
            self._left -= len(text) + 1
            rows.append(text)
        if rows:
            frames.write(self._sink, frames.ROWS, self._comma + b",".join(rows))
            self._comma = b","
        return len(rows)

    def close(self) -> None:
        pass


def _write_value(value: Any, most_bytes: int, sink: BinaryIO) -> None:
    from lake.errors import BadInput

    written = json.dumps(value).encode()
    if len(written) > most_bytes:
        raise BadInput(f"the arguments of the calls have {len(written):,} bytes; the limit is {most_bytes:,}")
    frames.write(sink, frames.COLUMNS, b'{"columns": []}')
    frames.write(sink, frames.ROWS, written)
    frames.write(sink, frames.END, b'{"rows": 1, "truncated": false}')


def _write_failure(sink: BinaryIO, reason: str, message: str) -> None:
    message = message if len(message) <= MESSAGE_CHARACTERS else message[: MESSAGE_CHARACTERS - 1] + "…"
    frames.write(sink, frames.FAILURE, json.dumps({"reason": reason, "message": message}).encode())


def _with_position(connection: Any, text: str, parameters: Any, error: Exception) -> str:
    """The error's message; if it lacks the position in the query, the message of a second attempt, which has it."""
    import duckdb

    if "LINE " not in str(error):
        try:
            connection.execute(text, parameters)
        except duckdb.Error as again:
            return str(again)
    return str(error)


def _limit_cpu(seconds: float) -> None:
    """Limits the processor time from now on: the end if nobody is left to kill the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_CPU)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    limit = limit if hard_limit == resource.RLIM_INFINITY else min(limit, hard_limit)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard_limit))


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """stdin and stdout for the frames alone; what libraries print is discarded."""
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    return os.fdopen(source, "rb"), os.fdopen(sink, "wb")


def _exit_at_hang_up(descriptor: int) -> None:
    """Ends the process when nobody can write to its stdin any more, whatever it is doing."""
    watch = select.poll()
    watch.register(descriptor, 0)  # poll always reports a hang-up
    watch.poll()
    os._exit(0)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    except (EOFError, BrokenPipeError):
        os._exit(0)
