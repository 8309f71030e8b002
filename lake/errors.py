"""Every error lakeloop raises on purpose, in one tree.

The command line turns `exit_code` into its own; the HTTP API turns the classes into status codes.
A message is one sentence a person can act on: what was wrong, with which value, and the way out.

    LakeloopError
    ├── BadInput               2  the caller's words or data are wrong
    │   ├── UnreadableImage    2  bytes that are no image we can (or will) decode
    │   ├── NotALake           2  nothing there, or something else
    │   └── WeightsMismatch    2  vectors of different weights would mix
    └── CouldNot               3  right request, impossible now
        ├── MissingExtra       3  an optional dependency is not installed
        ├── HubUnreachable     3  weights are not here and cannot be fetched
        ├── LakeBusy           3  commits kept conflicting with another writer
        ├── NewerLake          3  written by a later lakeloop
        └── QueryStopped       3  a SQL query went beyond its limits, or found no room
"""

from __future__ import annotations


class LakeloopError(Exception):
    """Base of all. `exit_code` is what the command line leaves with."""

    exit_code = 1


class BadInput(LakeloopError):
    exit_code = 2


class UnreadableImage(BadInput):
    """The reason alone is the message, so that it can be put beside any source."""


class NotALake(BadInput):
    pass


class WeightsMismatch(BadInput):
    pass


class CouldNot(LakeloopError):
    exit_code = 3


class MissingExtra(CouldNot):
    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'lakeloop[{extra}]'")


class HubUnreachable(CouldNot):
    pass


class LakeBusy(CouldNot):
    pass


class NewerLake(CouldNot):
    pass


class QueryStopped(CouldNot):
    """`reason` is timeout, memory, cancelled, busy (its turn did not come) or died (its process crashed)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
