"""The process that answers SQL: it gets files to attach, a query and limits, and gives back Arrow or rows of JSON.

It knows nothing of Lance, the lake or the network. Before the first query it gives up what it does not need; what the
query may say is checked here too, since a parser that crashes on it must crash here. It ends with its stdin.

On stdin and stdout are frames: one letter, eight bytes of length (big-endian), the payload. In: Q, a query (JSON), and
after it a T for each of its tables (Arrow). Out: R, ready; H, the columns (JSON); D, rows; then E, the end (JSON), or
X, why there is none (JSON).
"""

from __future__ import annotations

import json
import math
import os
import resource
import select
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, BinaryIO

from lake.sql.sandbox import confinement

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

HEAD = struct.Struct(">cQ")
BATCH_ROWS = 8_192


def main(memory_bytes: int, threads: int) -> None:
    """A child's whole life."""
    source, sink = _own_pipes()
    threading.Thread(target=_end_with, args=(source.fileno(),), daemon=True).start()
    import duckdb
    import pyarrow as pa

    desk = Desk(threads, memory_bytes)
    warmed = duckdb.connect(":memory:")  # what is loaded late is loaded now
    warmed.sql("SELECT json_serialize_sql('SELECT 1')").to_arrow_reader(1).read_all()
    warmed.close()
    confined = confinement.confine(memory_bytes)
    write(sink, b"R", json.dumps({"confined": confined}).encode())
    while True:
        kind, said = read(source)
        assert kind == b"Q"
        question = json.loads(said)
        tables = {name: pa.ipc.open_stream(read(source)[1]).read_all() for name in question["tables"]}
        desk.answer(question, tables, sink)
        del tables


def read(source: BinaryIO) -> tuple[bytes, bytes]:
    """One frame. Raises EOFError when there are no more."""
    head = source.read(HEAD.size)
    if len(head) < HEAD.size:
        raise EOFError
    kind, size = HEAD.unpack(head)
    return kind, source.read(size)


def write(sink: BinaryIO, kind: bytes, payload: bytes | memoryview) -> None:
    sink.write(HEAD.pack(kind, len(payload)))
    sink.write(payload)
    sink.flush()


class Desk:
    """Answers one query after the other, and keeps its connection for as long as the same files are asked about."""

    def __init__(self, threads: int, memory_bytes: int) -> None:
        # What is beside DuckDB's own count (Python, Arrow, the parser's trees) has the rest. There is no folder to
        # spill into: without one it says that memory ran out, and not that a file could not be made.
        limit = f"{memory_bytes * 6 // 10 >> 20}MiB"
        self._settings: dict[str, Any] = {"threads": threads, "memory_limit": limit, "temp_directory": ""}
        self._threads = threads
        self._setup: list[str] | None = None
        self._connection: duckdb.DuckDBPyConnection | None = None

    def answer(self, question: dict[str, Any], tables: dict[str, pa.Table], sink: BinaryIO) -> None:
        import duckdb
        import pyarrow as pa

        from lake.errors import BadInput
        from lake.sql.sandbox import statement

        started = time.monotonic()
        _limit_cpu(question["timeout"] * self._threads)
        text, parameters = question["sql"], question["parameters"]
        try:
            connection = self._connected(question["setup"])
            names = [*question["names"], *tables]
            for name, table in tables.items():
                connection.register(name, table)
            for made in question["macros"].values():
                connection.execute(made)
            try:
                if question["format"] == "tree":
                    _say_tree(connection, text, sink)
                    return
                statement.parse(connection, text, names, question["macros"])
                self._rows(connection, text, parameters, question, sink, started)
            except (duckdb.BinderException, duckdb.CatalogException) as error:
                raise type(error)(_with_place(connection, text, parameters, error)) from None
            finally:
                for name in tables:
                    connection.unregister(name)
        except duckdb.IOException as error:
            _say_no(sink, "io", str(error))
        except duckdb.OutOfMemoryException as error:
            self._setup = None
            _say_no(sink, "memory", str(error).split("\n")[0])
        except (MemoryError, RecursionError) as error:
            self._setup = None
            _say_no(sink, "memory", f"the query needs too much memory ({type(error).__name__})")
        except (BadInput, duckdb.Error) as error:
            kind = "unknown" if isinstance(error, duckdb.CatalogException) else "invalid"
            _say_no(sink, kind, str(error))
        except (OSError, pa.ArrowException) as error:  # DuckDB's, by way of the Arrow stream
            memory = "Out of Memory Error" in str(error)
            _say_no(sink, "memory" if memory else "invalid", str(error))
        except Exception as error:  # such as a parameter of a kind DuckDB does not take
            _say_no(sink, "invalid", f"{type(error).__name__}: {error}")

    def _connected(self, setup: list[str]) -> duckdb.DuckDBPyConnection:
        import duckdb

        if self._connection is not None and self._setup == setup:
            return self._connection
        if self._connection is not None:
            self._connection.close()
        self._setup = self._connection = None
        made = duckdb.connect(":memory:", config=self._settings)
        for line in setup:
            made.execute(line)
        self._connection, self._setup = made, setup
        return made

    def _rows(
        self,
        connection: duckdb.DuckDBPyConnection,
        text: str,
        parameters: Any,
        question: dict[str, Any],
        sink: BinaryIO,
        started: float,
    ) -> None:
        found = connection.sql(text, params=parameters)
        columns = [{"name": n, "type": str(t)} for n, t in zip(found.columns, found.types, strict=True)]
        reader = found.to_arrow_reader(BATCH_ROWS)
        sent = (_Json if question["format"] == "json" else _Arrow)(sink, reader.schema, question["max_bytes"])
        write(sink, b"H", json.dumps({"columns": columns}).encode())
        left, rows, truncated = question["max_rows"], 0, False
        for batch in reader:
            wanted = batch if left is None or batch.num_rows <= left else batch.slice(0, left)
            took = sent.take(wanted)
            rows += took
            left = None if left is None else left - took
            if took < batch.num_rows:
                truncated = True
                break
        reader.close()
        sent.close()
        facts = {"rows": rows, "truncated": truncated, "seconds": round(time.monotonic() - started, 6)}
        write(sink, b"E", json.dumps(facts).encode())


class _Arrow:
    """Rows as an Arrow IPC stream of at most so many bytes. It is the file that Arrow's writer writes to."""

    closed = False

    def __init__(self, sink: BinaryIO, schema: pa.Schema, most: int) -> None:
        import pyarrow as pa

        self._sink, self._left = sink, most
        self._written: list[bytes] = []
        self._writer = pa.ipc.new_stream(self, schema)

    def write(self, data: Any) -> int:
        self._written.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def take(self, batch: pa.RecordBatch) -> int:
        """Sends as many of the rows as there is room for; returns how many."""
        import pyarrow as pa

        while batch.num_rows and (size := pa.ipc.get_record_batch_size(batch)) > self._left:
            fewer = min(batch.num_rows - 1, batch.num_rows * self._left // size)
            batch = batch.slice(0, fewer)
        if batch.num_rows:
            self._left -= size
            self._writer.write_batch(batch)
            self._send()
        return int(batch.num_rows)

    def close(self) -> None:
        self._writer.close()
        self._send()

    def _send(self) -> None:
        if self._written:
            write(self._sink, b"D", b"".join(self._written))
            self._written.clear()


class _Json:
    """Rows as JSON arrays with commas between them, of at most so many bytes."""

    def __init__(self, sink: BinaryIO, schema: pa.Schema, most: int) -> None:
        self._sink, self._left = sink, most
        self._comma = b""

    def take(self, batch: pa.RecordBatch) -> int:
        from lake.sql.tables import plain

        columns = [[plain(v) for v in column.to_pylist()] for column in batch.columns]
        said, took = [], 0
        for row in zip(*columns, strict=True) if columns else ([] for _ in range(batch.num_rows)):
            text = json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
            if len(text) + 1 > self._left:
                break
            self._left -= len(text) + 1
            said.append(text)
            took += 1
        if said:
            write(self._sink, b"D", self._comma + b",".join(said))
            self._comma = b","
        return took

    def close(self) -> None:
        pass


def _say_tree(connection: duckdb.DuckDBPyConnection, text: str, sink: BinaryIO) -> None:
    said = connection.execute("SELECT json_serialize_sql(?)", [text]).fetchall()[0][0]
    write(sink, b"H", b'{"columns": []}')
    write(sink, b"D", said.encode())
    write(sink, b"E", b'{"rows": 1, "truncated": false}')


def _say_no(sink: BinaryIO, reason: str, message: str) -> None:
    write(sink, b"X", json.dumps({"reason": reason, "message": message}).encode())


def _with_place(connection: Any, text: str, parameters: Any, error: Exception) -> str:
    """The error's words; where they lack the place in the query, those of a second try that has it."""
    import duckdb

    if "LINE " not in str(error):
        try:
            connection.execute(text, parameters)
        except duckdb.Error as again:
            return str(again)
    return str(error)


def _limit_cpu(seconds: float) -> None:
    """So much processor time from now: the end, should nobody be there to kill it."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    limit = math.ceil(spent.ru_utime + spent.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """stdin and stdout for the frames alone; what libraries print goes nowhere."""
    source, sink = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
    return os.fdopen(source, "rb"), os.fdopen(sink, "wb")


def _end_with(descriptor: int) -> None:
    """Ends the process when nobody can write to its stdin any more, whatever it is doing."""
    watch = select.poll()
    watch.register(descriptor, 0)  # a hang-up is always told
    watch.poll()
    os._exit(0)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    except (EOFError, BrokenPipeError):
        os._exit(0)
