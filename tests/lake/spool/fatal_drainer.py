"""A drainer that aborts when it writes a certain event, as a crash in native code would."""

import os

from lake import open_lake
from lake.spool import batch, drain
from lake.spool.spool import Spool


def drain_and_die(uri: str, fatal: str) -> None:
    lake = open_lake.open(uri)
    write = batch.Batch.write

    def written(self: batch.Batch) -> batch.DrainReport:
        if any(event.event_id == fatal for event in self.waiting):
            os.abort()
        return write(self)

    batch.Batch.write = written  # type: ignore[method-assign]
    assert lake.folder is not None
    drain.drain(lake, Spool(lake.folder / "spool"))
