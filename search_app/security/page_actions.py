"""The scope that each action of a page needs, as `scopes.py` says it of each request.

A handler of a page names its action (`search_app/ui/session.py`), and a name that is not in the table is an error.
"""

from __future__ import annotations

from lake.errors import LakeloopError

# The scope of the kind of the job, which `search_app/jobs/kinds.py` says.
OF_KIND = "that of the job's kind"
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
    "sql": "sql",
    "query save": "sql",
    "models register": "admin",
    "models promote": "admin",
    "models rollback": "admin",
    "models shadow": "admin",
    "models retire": "admin",
    "job start": OF_KIND,
    "job cancel": OF_KIND,
    "job retry": OF_KIND,
}


class NotAllowed(LakeloopError):
    """The user lacks the scope that an action needs."""

    exit_code = 3


def require(action: str, scopes: frozenset[str], of_kind: str = "admin") -> None:
    """Raises NotAllowed unless one of the user's scopes allows the action. `of_kind`: the scope of a job's kind."""
    needed = of_kind if ACTIONS[action] == OF_KIND else ACTIONS[action]
    if needed not in scopes and "admin" not in scopes:
        raise NotAllowed(f"this needs the scope {needed}, which you do not have; ask whoever runs this server")
