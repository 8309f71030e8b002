"""Opens a lake in a process that is killed before its n-th step: a file system call on the lake, or a commit."""

import ctypes
import os
import signal
import sys
from typing import Any

import lake
from lake.storage.store import Lake

_CALLS = {"open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir", "shutil.rmtree"}


def killed_open(root: str, fatal: int) -> None:
    """`fatal`: the number of the step, from 1; 0: is not killed and prints how many steps there are."""
    ctypes.CDLL(None)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        of_the_lake = event in _CALLS and root in str(arguments[0])
        if of_the_lake or (event == "ctypes.dlsym" and "renameat2" in str(arguments[1])):
            step()

    commit = Lake.commit

    def counted(self: Lake, name: str, write: Any) -> Any:
        step()
        result = commit(self, name, write)
        step()
        return result

    Lake.commit = counted  # type: ignore[method-assign]
    sys.addaudithook(audited)
    lake.open(root)
    sys.stdout.write(str(steps))
    sys.stdout.flush()
