"""A process whose children train, to be killed: started once, since importing torch takes seconds.

Reads lines "URI RUN" from stdin. For each it forks a child that goes on with the run, says the child's process id,
then whatever the child says (a line a step), and at last "over STATUS". The parent never opens a lake.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from embeddings.embedders import torch_import
from lake import open_lake
from training.fit import train_model


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def child(uri: str, run: str) -> None:
    def step(said: dict[str, Any]) -> None:
        say("step", said["step"])

    train_model.resume(open_lake.open(uri), run, progress=step, workers=0)


def main() -> None:
    torch_import.timm()
    for line in sys.stdin:
        uri, run = line.split()
        number = os.fork()
        if number == 0:
            child(uri, run)
            sys.stdout.flush()
            os._exit(0)
        say("child", number)
        _, status = os.waitpid(number, 0)
        say("over", os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
