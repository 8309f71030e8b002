"""A map made in a process of its own while the page shows how far it is: minutes of work do not hold up a server.

As a program it makes one map and says on stdout, one JSON object a line, how far it is and what came of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

from lake.errors import LakeloopError

# Requests that wait come before it, as with every child of a server.
NICENESS = 10


class Making:
    """One map on its way. `share`: how much is done, 0 to 1; at the end `made` is its id, or `error` says why not."""

    def __init__(self, uri: str, how: dict[str, Any]) -> None:
        self.how = how
        self.share = 0.0
        self.made: str | None = None
        self.error: str | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "search_app.ui.map.making", uri, json.dumps(how)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        self._listener = threading.Thread(target=self._listen, name="making a map", daemon=True)
        self._listener.start()

    @property
    def done(self) -> bool:
        return self.made is not None or self.error is not None

    def wait(self, seconds: float) -> None:
        """Returns at its end, or after this long."""
        self._listener.join(seconds)

    def cancel(self) -> None:
        """Ends it; what it has done so far is lost."""
        self._process.terminate()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                facts = json.loads(line)
                self.share = facts.get("share", self.share)
                self.error = facts.get("error")
                self.made = facts.get("made")
        code = self._process.wait()
        if not self.done:
            self.error = "cancelled" if code == -15 else f"the process that made the map ended with code {code}"


def _main(uri: str, how: dict[str, Any]) -> None:
    import os

    import lake
    from embeddings import maps

    os.nice(NICENESS)
    told = -1

    def tell(share: float) -> None:
        nonlocal told
        if int(100 * share) > told:
            told = int(100 * share)
            _say(share=share)

    try:
        made = maps.make(lake.open(uri), progress=tell, **how)
    except LakeloopError as error:
        _say(error=str(error))
    else:
        _say(made=made.id)


def _say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
