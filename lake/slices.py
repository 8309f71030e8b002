"""Slices: a named set of images, its definition, and the ids it resolved to at a pinned version.

Creating a slice again makes its next version; the old one stays as it was. Members are written before the slice's own
row, so a slice that can be seen is whole.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pyarrow as pa

from lake import ids as identity
from lake import schema, store
from lake import where as filters
from lake.errors import BadInput

if TYPE_CHECKING:
    from lake.store import Lake

FORMATS = ("imagefolder",)
UNLABELLED = "_unlabelled"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}


@dataclass(frozen=True)
class Slice:
    """One version of a slice. `definition`: the SQL filter, the node TREE/PATH, or how many ids were given."""

    name: str
    version: int
    kind: str
    definition: str
    size: int
    predictions_version: int
    created_at: dt.datetime

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


def create(
    lake: Lake,
    name: str,
    *,
    where: str | None = None,
    ids: Sequence[str] | None = None,
    cluster: str | Sequence[str] | None = None,
) -> Slice:
    """Saves the images that pass a SQL filter, have these ids (images' or predictions'), or are in any of some nodes.

    Give exactly one of the three. Raises BadInput for a bad name, an unknown id or node, or an empty result.
    """
    if not _NAME.match(name):
        raise BadInput(f"slice name {name!r}: use up to 100 letters, digits, dots, dashes and underscores")
    if sum(x is not None for x in (where, ids, cluster)) != 1:
        raise BadInput("define a slice by exactly one of a SQL filter, ids or a cluster node")
    members: Sequence[str]
    if where is not None:
        kind, definition, members = "where", where, filters.images(lake, where)
    elif cluster is not None:
        nodes = [cluster] if isinstance(cluster, str) else [*dict.fromkeys(cluster)]
        found = lake.look_up("cluster_members", ["id", "image_id"], "id", nodes)
        missing = sorted(set(nodes) - set(found["id"].to_pylist()))
        if missing or not nodes:
            name_it = "`lakeloop cluster` and the table clusters name them (TREE/PATH)"
            raise BadInput(f"no node {missing[0]!r}; {name_it}" if missing else f"which node? {name_it}")
        members = sorted(set(found["image_id"].to_pylist()))
        kind, definition = "cluster", ", ".join(nodes)
    else:
        assert ids is not None
        members = _resolve(lake, ids)
        kind, definition = "ids", f"{len(members)} ids"
    if not members:
        raise BadInput(f"no image passes {definition!r}; the slice would be empty")
    made = Slice(
        name, _next_version(lake, name), kind, definition, len(members), lake.version("predictions"), store.now()
    )
    rows = {"id": [made.id] * len(members), "name": [name] * len(members)}
    rows |= {"version": pa.array([made.version] * len(members), pa.int32()), "image_id": [*members]}
    lake.insert("slice_members", pa.table(rows, schema=schema.SLICE_MEMBERS.arrow()))
    fields = {f: getattr(made, f) for f in Slice.__dataclass_fields__} | {"id": made.id}
    lake.insert("slices", pa.Table.from_pylist([fields], schema=schema.SLICES.arrow()))
    return made


def list(lake: Lake) -> Sequence[Slice]:  # `lake.slices.list` reads as what it is
    """Every version of every slice, by name, the newest version first."""
    rows = lake.dataset("slices").to_table().to_pylist()
    made = [Slice(**{f: row[f] for f in Slice.__dataclass_fields__}) for row in rows]
    return sorted(made, key=lambda s: (s.name, -s.version))


def get(lake: Lake, name: str) -> Slice:
    """The slice NAME at its newest version, or NAME@VERSION. Raises BadInput when there is none."""
    base, _, version = name.partition("@")
    found = [s for s in list(lake) if s.name == base and version in ("", str(s.version))]
    if not found:
        known = sorted({s.name for s in list(lake)})
        raise BadInput(f"no slice {name!r}; the lake has {', '.join(known) or 'none'}")
    return found[0]


def members(lake: Lake, made: Slice) -> pa.ChunkedArray:
    """Its image_ids, sorted."""
    return lake.look_up("slice_members", ["image_id"], "id", [made.id]).sort_by("image_id")["image_id"]


def export(
    lake: Lake,
    made: Slice,
    out: Path,
    format: str = "imagefolder",
    progress: Callable[[int], None] | None = None,
) -> int:
    """Writes the slice's images as `out/<label>/<image_id>.<suffix>`; returns how many.

    The label is the image's current one; images without one go to `_unlabelled`. Raises BadInput when `out` holds
    anything already, or for another format.
    """
    if format not in FORMATS:
        raise BadInput(f"format {format!r} is none of {', '.join(FORMATS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} exists and is not an empty folder")
    names = members(lake, made).to_pylist()
    current = lake.sql("SELECT image_id, label FROM labels_current WHERE task = 'classification' AND label IS NOT NULL")
    labels = dict(zip(current["image_id"].to_pylist(), current["label"].to_pylist(), strict=True))
    written = 0
    for image in lake.images(names):
        label = labels.get(image.image_id)
        folder = out / (_folder_name(label) if label else UNLABELLED)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{image.image_id}{_SUFFIX[image.format]}").write_bytes(image.data)
        written += 1
        if progress:
            progress(1)
    return written


def _folder_name(label: str) -> str:
    """Labels are anybody's text: a quoted one cannot leave the folder, a long one is cut to what a name may be."""
    name = quote(label, safe=" ()+,=").replace(".", "%2E")
    return name if len(name) <= 200 else f"{name[:180]}~{hashlib.sha256(label.encode()).hexdigest()[:16]}"


def _resolve(lake: Lake, ids: Sequence[str]) -> Sequence[str]:
    images = [i for i in ids if identity.kind(i) == "image"]
    answers = [str(identity.as_uuid(i)) for i in ids if identity.kind(i) == "prediction"]
    rest = sorted(set(images) - lake.known("images", "image_id", images))
    # Of some answers the image's bytes are not kept.
    unknown = sorted(set(rest) - lake.known("predictions", "image_id", rest))
    unknown += sorted(set(answers) - lake.known("predictions", "prediction_id", answers))
    if unknown:
        raise BadInput(f"the lake does not have {len(unknown)} of the ids, the first is {unknown[0]}")
    asked_about = lake.look_up("predictions", ["image_id"], "prediction_id", answers)["image_id"].to_pylist()
    return sorted({*images, *asked_about})


def _next_version(lake: Lake, name: str) -> int:
    # Members of an interrupted creation count, too: their version is not given out again.
    taken = [
        v for table in ("slices", "slice_members")
        for v in lake.scan(table, ["version"], f"name = '{name}'")["version"].unique().to_pylist()
    ]  # fmt: skip
    return max(taken, default=0) + 1
