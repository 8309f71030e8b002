"""Whose request it is, from the gate to every route, page handler and row of the audit log."""

from __future__ import annotations

from typing import NamedTuple


class Identity(NamedTuple):
    """Whose request it is: an access key, a user of the identity provider, or anyone of an open server.

    `scopes` are those of a user; a key's are read from the lake at every use.
    """

    key_id: str | None = None
    user: str | None = None
    scopes: tuple[str, ...] = ()
