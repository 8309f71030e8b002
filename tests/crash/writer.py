"""A process that does nothing but put events into a spool, to be killed thousands of times.

    python -m tests.crash.writer SPOOL SEED

It forks a child for each line of its stdin, because a fork costs a tenth of an interpreter's start; nothing of the
spool is open before. A line is a life's number and the groups to send again; the child says what it sends and what is
acknowledged. What a group holds follows from its name, so that the one who kills knows it without being told.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
import uuid
from concurrent.futures import Future
from pathlib import Path

from lake.spool.committer import Entry, RepeatedKey
from lake.spool.events import Event
from lake.spool.journal import Outcome
from lake.spool.spool import Spool

THREADS = 4


def group(seed: int, name: str) -> list[Event]:
    """The events of the group of that name; most carry bytes."""
    chance = random.Random(f"{seed} {name}")
    events = []
    for number in range(chance.randint(1, 4)):
        data = chance.randbytes(chance.choice((200, 2_000, 9_000))) if chance.random() < 0.8 else None
        own = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        image = hashlib.sha256(data or own.encode()).hexdigest()
        row = f'{{"label": "{name}", "number": {number}}}'
        digest = hashlib.sha256(f"{own}{image}{row}".encode()).digest()
        events.append(Event("prediction", own, image, row, digest, data))
    return events


def put(spool: Spool, seed: int, name: str) -> list[Outcome]:
    """Puts a group under an Idempotency-Key of its name, and waits. Known when the key has a receipt already."""
    future: Future[list[Outcome]] = Future()

    def notify(entries: list[Entry]) -> None:
        for entry in entries:
            if entry.error is None:
                entry.waiter.set_result(entry.outcomes)
            else:
                entry.waiter.set_exception(entry.error)

    spool.submit(Entry(group(seed, name), notify, name, name.encode(), name, waiter=future))
    try:
        return future.result()
    except RepeatedKey as repeated:
        return ["known" for _ in repeated.receipt.outcomes]


def live(folder: Path, seed: int, life: str, again: list[str]) -> None:
    """Puts groups from several threads until it is killed."""
    spool = Spool(folder)
    say(f"open {os.getpid()}")

    def work(thread: int) -> None:
        names = again[thread::THREADS]
        number = 0
        while True:
            if not names:
                number += 1
                names.append(f"{life}.{thread}.{number}")
            name = names.pop()
            say(f"send {name}")
            say(f"ack {name} {','.join(put(spool, seed, name))}")

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())  # one write: lines of several threads do not mix


def main() -> None:
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    for line in sys.stdin:
        life, *again = line.split()
        child = os.fork()
        if not child:
            try:
                live(folder, seed, life, again)
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        say("dead")


if __name__ == "__main__":
    main()
