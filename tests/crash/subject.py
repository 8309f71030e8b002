"""A process that stores three groups in a spool, or drains a spool, while system calls of its choice fail.

    python -m tests.crash.subject puts|drains DESCRIPTOR

Forks a child for each command that comes over the socket with that descriptor, because a start with all imports takes
a second. The child says when it is ready to be traced, waits for a word, works, and says what came of it. It speaks by
send and recv, which no fault is put into.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from lake.spool.spool import Spool
from tests.crash.writer import group

GROUPS = ("one", "two", "three")
SEED = 4
PR_SET_PTRACER = 0x59616D61


class Talk:
    """Lines of JSON over a socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._rest = b""

    def say(self, *words: Any) -> None:
        self._end.sendall(json.dumps(words).encode() + b"\n")

    def hear(self) -> Any:
        """The next line; None when the other end is closed. Raises TimeoutError."""
        while b"\n" not in self._rest:
            part = self._end.recv(65_536)
            if not part:
                return None
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


def puts(talk: Talk, folder: Path) -> None:
    """Opens the spool and puts each group; retries those that failed once, as a client does."""
    wait(talk)
    try:
        spool = Spool(folder)
    except Exception as error:
        talk.say("unopened", kind(error), str(error))
        return
    failed = [name for name in GROUPS if not attempt(talk, spool, name)]
    for name in failed:
        attempt(talk, spool, name)
    try:
        spool.close()
    except Exception as error:
        talk.say("unclosed", kind(error), str(error))


def attempt(talk: Talk, spool: Spool, name: str) -> bool:
    try:
        outcomes = spool.put(group(SEED, name))
    except Exception as error:
        talk.say("failed", name, kind(error), str(error))
        return False
    talk.say("acked", name, outcomes)
    return True


def drains(talk: Talk, folder: Path) -> None:
    """Drains the spool of the lake in the folder; retries once if that failed, as a drainer does."""
    from lake import open_lake
    from lake.spool.drain import Drainer

    opened = open_lake.open(str(folder))
    spool = Spool(folder / "spool")
    with Drainer(opened, spool) as drainer:
        # Its decoder has started before the faults begin: they are meant for this process.
        first = spool.oldest(1, 1)[0]
        drainer.decoded([(first.image_id, spool.data(first) or b"")])
        wait(talk)
        for _ in range(3):
            try:
                while True:
                    report = drainer.batch()
                    assert report is not None
                    if not report.events:
                        talk.say("drained")
                        return
            except Exception as error:
                talk.say("failed", "", kind(error), str(error))


def wait(talk: Talk) -> None:
    talk.say("ready", os.getpid())
    talk.hear()


def kind(error: BaseException) -> str:
    """The most general class of the error that says what to do about it."""
    known = ("LakeloopError", "OperationalError", "OSError", "Error")
    names = [c.__name__ for c in type(error).__mro__]
    return next((name for name in known if name in names), names[0])


def main() -> None:
    work = {"puts": puts, "drains": drains}[sys.argv[1]]
    if work is drains:
        import lake.spool.drain
        import lake.storage.opening  # noqa: F401
    end = socket.socket(fileno=int(sys.argv[2]))
    talk = Talk(end)
    while (command := talk.hear()) is not None:
        child = os.fork()
        if not child:
            # Whoever traces it need not be its parent.
            ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1))
            code = 1
            try:
                work(talk, Path(command[0]))
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        talk.say("ended", os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
