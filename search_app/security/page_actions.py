"""The scope that each action of a page needs, as `scopes.py` says it of each request.

An action that is not in the table is refused to everybody: `search_app/ui/session.py` asks here before it is done.
"""

from __future__ import annotations

from lake.errors import LakeloopError

# By the name that the action has in the audit log.
ACTIONS = {
    "slice create": "edit",
    "slice role": "edit",
    "slice tag": "edit",
    "slice untag": "edit",
    "slice delete": "edit",
    "search start": "edit",
    "search mark": "edit",
    "search accept": "edit",
    "search refuse": "edit",
    "search rename": "edit",
    "cluster": "edit",
    "cluster uncut": "edit",
    "cluster rename": "edit",
    "map place": "edit",
    "query save": "sql",
    "models register": "admin",
    "models promote": "admin",
    "models rollback": "admin",
    "models shadow": "admin",
    "models retire": "admin",
}


class NotAllowed(LakeloopError):
    """The user lacks the scope that an action needs."""

    exit_code = 3


def require(action: str, scopes: frozenset[str]) -> None:
    """Raises NotAllowed unless one of the user's scopes allows the action."""
    needed = ACTIONS[action]
    if needed not in scopes and "admin" not in scopes:
        raise NotAllowed(f"this needs the scope {needed}, which you do not have; ask whoever runs this server")
