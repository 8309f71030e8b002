"""A drainer that aborts when it writes a certain event, as a crash in native code would."""

import os

from lake import open_lake
from lake.spool import drain
from lake.spool.spool import Spool


def drain_and_die(uri: str, fatal: str) -> None:
    lake = open_lake.open(uri)
    write = drain._Batch.write

    def written(self: drain._Batch) -> drain.DrainReport:
        if any(event.event_id == fatal for event in self.waiting):
            os.abort()
        return write(self)

    drain._Batch.write = written  # type: ignore[method-assign]
    assert lake.folder is not None
    drain.drain(lake, Spool(lake.folder / "spool"))
