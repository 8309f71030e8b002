"""Slices: named, versioned sets of images.

A slice is a definition and the image ids it had at one version of the lake, with the labels of those images at that
time. Creating a slice again makes its next version; older versions do not change. A live slice has only its definition.
"""

from lake.slices.creation import SliceDraft, balance, create, draft, freeze, incomplete, save
from lake.slices.definition import KINDS, ROLES, load, words
from lake.slices.difference import HistoryStep, SliceDifference, diff, erased_count, history
from lake.slices.handle import SliceHandle
from lake.slices.members import contents, erased, find, members, spec
from lake.slices.naming import check_name, unknown
from lake.slices.versions import (
    Slice,
    check_free,
    delete,
    get,
    list,
    newest,
    set_role,
    tag,
    tags,
    tags_by_id,
    untag,
)

__all__ = [
    "KINDS",
    "ROLES",
    "SliceDifference",
    "SliceDraft",
    "Slice",
    "SliceHandle",
    "HistoryStep",
    "balance",
    "check_free",
    "check_name",
    "contents",
    "create",
    "delete",
    "diff",
    "draft",
    "erased",
    "erased_count",
    "find",
    "freeze",
    "get",
    "history",
    "incomplete",
    "list",
    "load",
    "members",
    "newest",
    "save",
    "set_role",
    "spec",
    "tag",
    "tags",
    "tags_by_id",
    "unknown",
    "untag",
    "words",
]
