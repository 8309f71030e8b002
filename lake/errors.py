"""Every error that lakeloop raises on purpose, in one tree.

The command line exits with `exit_code`; the HTTP API turns the classes into status codes.
A message is one sentence that a person can act on: what is wrong, with which value, and what to do.

    LakeloopError
    ├── BadInput               2  the caller's input is wrong
    │   ├── UnreadableImage    2  bytes that we cannot (or will not) decode as an image
    │   ├── NotALake           2  there is no lake at this place
    │   ├── WeightsMismatch    2  vectors of different weights would mix
    │   └── NotAllowed         1  the gate does not allow it
    └── CouldNot               3  right request, impossible now
        ├── MissingExtra       3  an optional dependency is not installed
        ├── HubUnreachable     3  weights are not on this machine and cannot be fetched
        ├── LakeBusy           3  commits kept conflicting with other writers
        ├── NewerLake          3  written by a later lakeloop
        └── QueryStopped       3  a SQL query exceeded its limits, or too many were running
"""

from __future__ import annotations


class LakeloopError(Exception):
    """The base of all. `exit_code` is the exit code of the command line."""

    exit_code = 1


class BadInput(LakeloopError):
    exit_code = 2


class UnreadableImage(BadInput):
    """The message is only the reason; the caller adds the source."""


class NotALake(BadInput):
    pass


class WeightsMismatch(BadInput):
    pass


class NotAllowed(BadInput):
    exit_code = 1


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
