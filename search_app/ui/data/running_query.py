"""A query of the page SQL on a thread of its own: the page shows its seconds and can cancel it."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from embeddings.search import near
from lake.access import audit
from lake.errors import LakeloopError, QueryStopped
from lake.sql import saved_queries
from lake.sql.sandbox import pool as sandbox
from search_app.backend import model_cache

if TYPE_CHECKING:
    from lake.sql.sandbox.results import QueryResult
    from lake.storage.store import Lake

# A browser shows more with difficulty, and the server keeps the result for each visitor.
MOST_ROWS = 10_000
MOST_BYTES = 32 << 20


@dataclass
class RunningQuery:
    """One query. `done` is set after `result` or `error`."""

    sql: str
    parameters: dict[str, Any]
    lake: Lake
    key_id: str | None
    user: str | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    result: QueryResult | None = None
    error: str | None = None
    done: bool = False
    started: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def cancel(self) -> None:
        sandbox.shared(self.lake).cancel(self.id)

    def run(self) -> None:
        facts: dict[str, Any] = {"key_id": self.key_id, "user": self.user}
        try:
            pool = sandbox.shared(self.lake)
            self.result = pool.run(
                self.sql,
                self.parameters,
                max_rows=MOST_ROWS,
                max_bytes=MOST_BYTES,
                id=self.id,
                prepare=near.preparation(self.lake, self.sql, self.parameters, partial(model_cache.loaded, self.lake)),
            )
            result = self.result
            facts |= {"rows": result.table.num_rows, "seconds": result.seconds, "truncated": result.truncated}
        except QueryStopped as stopped:
            self.error = "Cancelled." if stopped.reason == "cancelled" else str(stopped)
        except (LakeloopError, OSError) as error:
            self.error = str(error)
        finally:
            self.done = True
        entry = saved_queries.entry(self.sql, self.parameters or None, error=self.error, **facts)
        self.lake.insert("audit", audit.rows_to_table([entry]))


def begin(lake: Lake, sql: str, parameters: dict[str, Any], key_id: str | None, user: str | None) -> RunningQuery:
    """Starts the query and returns at once."""
    query = RunningQuery(sql, parameters, lake, key_id, user)
    threading.Thread(target=query.run, name="a page's query", daemon=True).start()
    return query
