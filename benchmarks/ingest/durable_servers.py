"""The peer servers of `durable_ingest`: the same HTTP stack with other ways to store an event.

    python -m benchmarks.ingest.durable_servers KIND FOLDER

`echo` reads the body and returns its length: the limit of the server itself. `files` writes image and event to one file
each, and syncs them and their folder. `lance` appends each request's row to a Lance table from a thread pool and syncs
the file system before it responds; `lance_unsynced` does not sync, so its events do not survive a power loss. `sqlite`
is lakeloop's spool with the images in SQLite instead of segment files. Prints its port.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn

Store = Callable[[bytes, dict[str, Any]], Awaitable[None]]


def app(store: Store | None) -> Any:
    """An ASGI app: the body is the image, header Lakeloop-Event the event. Returns 201 after `store`."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        parts = []
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = b"".join(parts)
        if store is not None:
            event = next((value for name, value in scope["headers"] if name == b"lakeloop-event"), b"{}")
            await store(body, json.loads(event) | {"image_id": hashlib.sha256(body).hexdigest()})
        response = b'{"bytes": %d}' % len(body)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(response))]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": response})

    return call


def files(folder: Path) -> Store:
    pool = ThreadPoolExecutor(32)

    def write(body: bytes, event: dict[str, Any]) -> None:
        for suffix, data in ((".jpg", body), (".json", json.dumps(event).encode())):
            handle, name = tempfile.mkstemp(dir=folder)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fdatasync(file.fileno())
            os.replace(name, folder / (event["prediction_id"] + suffix))
        entries = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(entries)
        os.close(entries)

    async def store(body: bytes, event: dict[str, Any]) -> None:
        await asyncio.get_running_loop().run_in_executor(pool, write, body, event)

    return store


def lance(folder: Path, synced: bool) -> Store:
    import ctypes

    import lance as engine
    import pyarrow as pa

    uri = str(folder / "events.lance")
    kinds = {"prediction_id": pa.string(), "image_id": pa.string(), "model": pa.string(), "label": pa.string()}
    schema = pa.schema(kinds | {"confidence": pa.float64(), "image": pa.large_binary()})
    engine.write_dataset(schema.empty_table(), uri)
    pool = ThreadPoolExecutor(32)
    libc = ctypes.CDLL(None)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def write(body: bytes, event: dict[str, Any]) -> None:
        row = {name: event.get(name) for name in schema.names} | {"image": body}
        engine.write_dataset(pa.Table.from_pylist([row], schema=schema), uri, mode="append")
        if synced and libc.syncfs(descriptor):
            raise OSError("syncfs failed")

    async def store(body: bytes, event: dict[str, Any]) -> None:
        await asyncio.get_running_loop().run_in_executor(pool, write, body, event)

    return store


def sqlite(folder: Path) -> Store:
    import sqlite3
    import threading
    from collections import deque

    connection = sqlite3.connect(folder / "events.sqlite", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE events(seq INTEGER PRIMARY KEY, id TEXT UNIQUE, row TEXT, image BLOB)")
    queue: deque[Any] = deque()
    wake = threading.Condition()

    def settle(group: list[Any]) -> None:
        for _, _, future in group:
            future.set_result(None)

    def commit() -> None:
        while True:
            with wake:
                while not queue:
                    wake.wait()
                group = [queue.popleft() for _ in range(len(queue))]
            connection.execute("BEGIN IMMEDIATE")
            marks = ",".join(["(?,?,?)"] * len(group))
            values = [v for body, event, _ in group for v in (event["prediction_id"], json.dumps(event), body)]
            connection.execute(f"INSERT INTO events(id, row, image) VALUES {marks}", values)
            connection.execute("COMMIT")
            group[0][2].get_loop().call_soon_threadsafe(settle, group)

    threading.Thread(target=commit, daemon=True).start()

    async def store(body: bytes, event: dict[str, Any]) -> None:
        future = asyncio.get_running_loop().create_future()
        with wake:
            queue.append((body, event, future))
            wake.notify()
        await future

    return store


def main(kind: str, folder: str) -> None:
    path = Path(folder)
    stores: dict[str, Callable[[], Store | None]] = {
        "echo": lambda: None,
        "files": lambda: files(path),
        "lance": lambda: lance(path, True),
        "lance_unsynced": lambda: lance(path, False),
        "sqlite": lambda: sqlite(path),
    }
    store = stores[kind]()
    listener = socket.create_server(("127.0.0.1", 0))
    sys.setswitchinterval(0.0005)  # as lakeloop's own server
    config = uvicorn.Config(
        app(store), log_level="warning", access_log=False, loop="uvloop", http="httptools", server_header=False
    )
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
