"""A slice of a server's lake: its facts, members and labels, and the doors that change it or pull it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from lake.client.json_requests import in_path

if TYPE_CHECKING:
    from lake.client.json_requests import JsonRequests
    from lake.client.pull import PullReport

PATH = "/v1/slices"
Role = Literal["train", "evaluation", "regression"]


@dataclass(frozen=True)
class SliceInfo:
    """One version of a slice. `definition`: in words; `size`: images when it was created; `created_at`: ISO 8601, UTC.

    `role`: train, evaluation, regression or None. `live`: its images are found at every use.
    """

    id: str
    name: str
    version: int
    kind: str
    definition: str
    size: int
    created_at: str
    role: str | None
    live: bool
    tags: Sequence[str]

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> SliceInfo:
        """From the server's JSON; further facts are left out."""
        return cls(**{field.name: facts[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class SliceChange:
    """An image that two slices differ in. `change`: added, removed or labels_changed."""

    image_id: str
    change: str


class RemoteSlice:
    """The slice NAME at its newest version, NAME@VERSION or NAME@TAG. Every method raises RequestFailed.

    Nothing is requested until you call a method. Without @ each call means the version that is the newest then; the
    slices that `create` and `freeze` return are pinned.
    """

    def __init__(self, requests: JsonRequests, name: str) -> None:
        self._requests = requests
        self.name = name
        self._path = f"{PATH}/{in_path(name, 'slice', '@')}"

    def __repr__(self) -> str:
        return f"<slice {self.name} of {self._requests.url}>"

    def info(self) -> SliceInfo:
        """Its facts now."""
        return SliceInfo.of(self._requests.get(self._path))

    def spec(self) -> dict[str, Any]:
        """Its definition as plain data, for `create(spec=...)`."""
        return dict(self._requests.get(self._path)["spec"])

    def classes(self) -> dict[str | None, int]:
        """How many images each class has, the most frequent first; None: not labelled."""
        return {row["label"]: row["images"] for row in self._requests.get(self._path)["classes"]}

    def versions(self) -> list[SliceInfo]:
        """Every version that is not deleted, oldest first."""
        steps = self._requests.items(f"{self._path}/versions")
        return [SliceInfo.of(step) for step in steps if step["deleted_at"] is None]

    def members(self) -> list[str]:
        """image_ids, sorted, without erased images."""
        return list(self._requests.items(f"{self._path}/members", {"limit": 10_000}))

    def labels(self) -> Iterator[dict[str, Any]]:
        """The labels it was frozen with (today's, if it is live), by image_id and task: rows of the table labels."""
        return self._requests.items("/v1/labels", {"slice": self.name, "limit": 1_000})

    def diff(self, older: str) -> list[SliceChange]:
        """What this slice has changed from `older`, by image_id."""
        rows = self._requests.items(f"{self._path}/diff", {"from": older, "limit": 10_000})
        return [SliceChange(row["image_id"], row["change"]) for row in rows]

    def pull(
        self,
        folder: str | os.PathLike[str],
        format: Literal["jsonl", "imagefolder"] = "jsonl",
        progress: Callable[[int], None] | None = None,
    ) -> PullReport:
        """Writes the images and labels of a frozen version to `folder`, as an export in that format.

        The same call again continues after any end. `progress` is called with the number of images just written.
        Raises ValueError for a folder with other files, and RequestFailed if the content has changed meanwhile.
        """
        from lake.client.pull import pull

        return pull(self._requests, self.name, folder, format, progress)

    def create(
        self,
        *,
        where: str | None = None,
        ids: Sequence[str] | None = None,
        cluster: Sequence[str] | None = None,
        search: str | None = None,
        like: Mapping[str, Any] | None = None,
        union: Sequence[str | Mapping[str, Any]] | None = None,
        intersect: Sequence[str | Mapping[str, Any]] | None = None,
        spec: Mapping[str, Any] | None = None,
        minus: Sequence[str] = (),
        role: Role | None = None,
        live: bool = False,
        drop_leaks: bool = False,
        identity_only: bool = False,
        new: bool = False,
    ) -> RemoteSlice:
        """Saves the images of a definition as the next version of this name, and returns that version.

        Give exactly one of where, ids, cluster, search, like, union, intersect and spec: see `docs/slices.md`.
        """
        definition = {
            "where": where, "ids": ids, "cluster": cluster, "search": search, "like": like, "union": union,
            "intersect": intersect, "spec": spec,
        }  # fmt: skip
        given = {kind: value for kind, value in definition.items() if value is not None}
        flags = {"live": live, "drop_leaks": drop_leaks, "identity_only": identity_only, "new": new}
        body = {"name": self.name, **given, "minus": [*minus], "role": role, **flags}
        return self._version(self._requests.write("POST", PATH, body))

    def freeze(self, *, role: Role | None = None, drop_leaks: bool = False, identity_only: bool = False) -> RemoteSlice:
        """Saves the images that a live slice has now as its next version, and returns that version."""
        body = {"role": role, "drop_leaks": drop_leaks, "identity_only": identity_only}
        return self._version(self._requests.write("POST", f"{self._path}/freeze", body))

    def set_role(self, role: Role | None, *, identity_only: bool = False) -> SliceInfo:
        """Sets the role of the version; None removes it."""
        body = {"role": role, "identity_only": identity_only}
        return SliceInfo.of(self._requests.write("PUT", f"{self._path}/role", body))

    def tag(self, tag: str) -> SliceInfo:
        """Makes NAME@TAG this version, whatever it was before."""
        return SliceInfo.of(self._requests.write("PUT", f"{self._path}/tags/{in_path(tag, 'tag')}"))

    def untag(self, tag: str) -> None:
        """Removes a tag of the slice."""
        self._requests.write("DELETE", f"{self._path}/tags/{in_path(tag, 'tag')}")

    def delete(self) -> None:
        """Deletes the version NAME@VERSION. Its images and labels stay in the lake."""
        self._requests.write("DELETE", self._path)

    def _version(self, facts: Mapping[str, Any]) -> RemoteSlice:
        return RemoteSlice(self._requests, facts["id"])
