"""slice create, list, show, diff, history, tag, role, freeze, delete, leaks: named, versioned sets of images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, full_ids, number, open_lake, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embeddings.duplicates.leak_guard import Leaks
    from lake.slices import Slice, SliceDraft
    from lake.storage.store import Lake

MOST_LISTED = 20
BY_IDENTITY = "for training: compare images without vectors by identity only"


def register(add: Add, slices: Any) -> None:
    p = add("create", _create, "save a set of images as a new slice or its next version", slices, writes=True)
    p.add_argument("name", metavar="NAME")
    how = p.add_mutually_exclusive_group(required=True)
    how.add_argument("--where", metavar="SQL", help="images with a sample that passes")
    how.add_argument("--ids", metavar="FILE", help="a file of ids, or a CSV with a column image_id; - for stdin")
    how.add_argument("--sql", metavar="SELECT", help="the images of the column image_id of this query's result")
    how.add_argument("--cluster", action="append", metavar="TREE/PATH", help="all images of this node; repeat for more")
    how.add_argument("--search", metavar="SEARCH", help="the images found by an active search, by its id or name")
    how.add_argument("--like", action="append", metavar="ID", help="images like this one; several ids are averaged")
    how.add_argument("--union", nargs="+", metavar="SLICE", help="images in any of these slices")
    how.add_argument("--intersect", nargs="+", metavar="SLICE", help="images in all of these slices")
    how.add_argument("--spec", metavar="FILE", help="a definition as `slice show --spec` prints it; - for stdin")
    p.add_argument("--radius", type=number, metavar="R", help="with --like: the largest cosine distance, 0 to 2")
    p.add_argument("--embedder", metavar="NAME", help="with --like; default: the first of the lake")
    p.add_argument(
        "--minus",
        action="append",
        default=[],
        metavar="SLICE",
        help="without the images of this slice; repeat for more",
    )
    p.add_argument("--role", choices=("train", "evaluation", "regression"), help="the purpose of the slice")
    kept = p.add_mutually_exclusive_group()
    kept.add_argument("--frozen", action="store_true", help="store the current members and labels (the default)")
    kept.add_argument("--live", action="store_true", help="store only the definition")
    p.add_argument(
        "--drop-leaks", action="store_true", help="leave out images that evaluation or regression slices have"
    )
    p.add_argument("--identity-only", action="store_true", help=BY_IDENTITY)
    p.add_argument("--new", action="store_true", help="fail if the name is taken")
    p.add_argument("--dry-run", action="store_true", help="show classes, near-duplicates and leaks; save nothing")
    p = add("list", _list, "list every version of every slice", slices)
    p.add_argument("--newest", action="store_true", help="only the newest version of each slice")
    p = add("show", _show, "show the definition, classes and members of a slice", slices)
    p.add_argument("name", metavar="NAME[@VERSION|@TAG]")
    p.add_argument("--spec", action="store_true", help="print its definition as JSON, for slice create --spec")
    p = add("diff", _diff, "compare two slices or versions", slices)
    p.add_argument("before", metavar="NAME[@VERSION|@TAG]")
    p.add_argument("after", metavar="NAME[@VERSION|@TAG]")
    p = add("history", _history, "list the versions of a slice and their changes", slices)
    p.add_argument("name", metavar="NAME")
    p = add("tag", _tag, "give a version a tag: NAME@TAG", slices, writes=True)
    p.add_argument("name", metavar="NAME[@VERSION|@TAG]")
    p.add_argument("tag", metavar="TAG")
    p.add_argument("--remove", action="store_true", help="remove the tag")
    p = add("role", _role, "set the role of a slice", slices, writes=True)
    p.add_argument("name", metavar="NAME[@VERSION|@TAG]")
    p.add_argument("role", choices=("train", "evaluation", "regression", "none"))
    p.add_argument("--identity-only", action="store_true", help=BY_IDENTITY)
    p = add("freeze", _freeze, "save the current members of a live slice as its next version", slices, writes=True)
    p.add_argument("name", metavar="NAME[@VERSION|@TAG]")
    p.add_argument("--role", choices=("train", "evaluation", "regression"), help="default: the role of the live slice")
    p.add_argument(
        "--drop-leaks", action="store_true", help="leave out images that evaluation or regression slices have"
    )
    p.add_argument("--identity-only", action="store_true", help=BY_IDENTITY)
    p = add("delete", _delete, "delete a version; its images stay, its number is not used again", slices, writes=True)
    p.add_argument("name", metavar="NAME@VERSION")
    p = add(
        "leaks", _leaks, "find images shared with slices that must stay apart; exit code 1 if there are any", slices
    )
    p.add_argument("name", metavar="NAME[@VERSION|@TAG]")


# Create ----------------------------------------------------------------------------------------------------


def _create(args: argparse.Namespace) -> int:
    from embeddings.duplicates import leak_guard
    from lake import slices

    if (args.radius is None) != (args.like is None):
        raise BadInput("--like and --radius need each other: --like ID --radius R, a cosine distance from 0 to 2")
    if args.embedder and not args.like:
        raise BadInput("--embedder needs --like")
    lake = open_lake(args)
    like = None
    if args.like:
        like = {"ids": full_ids(lake, args.like), "radius": args.radius, "embedder": args.embedder}
    draft = slices.draft(
        lake,
        args.name,
        where=args.where,
        ids=_ids(args, lake),
        cluster=args.cluster,
        search=args.search,
        like=like,
        union=args.union,
        intersect=args.intersect,
        minus=args.minus,
        spec=slices.load(_read(args.spec)) if args.spec else None,
        role=args.role,
        live=args.live,
        new=args.new,
    )
    if args.dry_run:
        return _dry_run(args, lake, draft)
    draft, leaks = leak_guard.guarded(lake, draft, args.drop_leaks, args.identity_only)
    return _save(args, lake, draft, leaks)


def _save(args: argparse.Namespace, lake: Lake, draft: SliceDraft, leaks: Leaks) -> int:
    from lake import slices
    from lake.access import audit

    saved = slices.save(lake, draft)
    audit.record(lake, "slice create", saved.id, detail={"kind": saved.kind, "definition": saved.definition})
    dropped = len(leaks.images) if saved.role == "train" else 0
    lines = [f"{saved.id}: {saved.size:,} images ({saved.kind}: {saved.definition}){_marks(saved)}"]
    if dropped:
        lines.append(f"{dropped:,} images left out: {leaks.words()}")
    elif leaks.words():
        lines.append(leaks.words())
    if draft.resolved.erased:
        lines.append(f"{draft.resolved.erased:,} erased images left out")
    facts = _facts(saved) | {"leaks": leaks.as_dict(), "dropped": dropped, "erased": draft.resolved.erased}
    return output(args, facts, "\n".join(lines))


def _dry_run(args: argparse.Namespace, lake: Lake, draft: SliceDraft) -> int:
    from embeddings.duplicates import duplicates, leak_guard
    from lake import slices

    classes = slices.balance(lake, draft.resolved.contents)
    leaks = leak_guard.check(lake, draft.members, draft.role, apart_from=draft.name)
    copies = None
    if any(record.dim is not None for record in lake.embedders()):
        copies = duplicates.find(lake, draft.members)
    facts: dict[str, Any] = {
        "name": draft.name,
        "size": len(draft.members),
        "classes": classes,
        "near_duplicates": None if copies is None else {"groups": len(copies.groups), "spare": copies.redundant},
        "leaks": leaks.as_dict(),
        "erased": draft.resolved.erased,
    }
    lines = [f"{draft.name}: {len(draft.members):,} images; nothing is saved", *_class_lines(classes)]
    if copies is None:
        lines.append("near-duplicates are unknown, because no image has a vector; run: lakeloop embed")
    else:
        lines.append(f"{len(copies.groups):,} groups of near-duplicates, {copies.redundant:,} redundant images")
    lines += [leaks.words()] if leaks.words() else []
    return output(args, facts, "\n".join(lines))


def _freeze(args: argparse.Namespace) -> int:
    from embeddings.duplicates import leak_guard
    from lake import slices

    lake = open_lake(args)
    draft = slices.freeze(lake, slices.get(lake, args.name), args.role)
    draft, leaks = leak_guard.guarded(lake, draft, args.drop_leaks, args.identity_only)
    return _save(args, lake, draft, leaks)


# Look ---------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    from lake import slices

    lake = open_lake(args)
    versions = slices.newest(lake) if args.newest else slices.list(lake)
    tags = slices.tags_by_id(lake)
    facts = [_facts(version) | {"tags": tags.get(version.id, [])} for version in versions]
    lines = [
        f"{version.id:<24}{version.size:>9,} images  {version.kind}: {version.definition}"
        + _marks(version, tags.get(version.id, ()))
        for version in versions
    ]
    return output(
        args, facts, "\n".join(lines) or "no slices yet; create one with: lakeloop slice create NAME --where SQL"
    )


def _show(args: argparse.Namespace) -> int:
    from lake import slices
    from lake.sql import tables

    lake = open_lake(args)
    slice_ = slices.get(lake, args.name)
    if args.spec:
        print(json.dumps(slices.spec(lake, slice_), ensure_ascii=False, indent=2))
        return 0
    contents = slices.contents(lake, slice_)
    names = contents["image_id"].to_pylist()
    classes = slices.balance(lake, contents)
    incomplete = slices.incomplete(lake, contents)
    erased = slices.erased_count(lake, slice_)
    facts = _facts(slice_) | {
        "tags": slices.tags_by_id(lake).get(slice_.id, []),
        "image_ids": names,
        "erased": erased,
        "classes": classes,
        "incomplete": incomplete,
        "labels_frozen": not slice_.live and not contents["label_events"].null_count,
    }
    when = f"created {slice_.created_at:%Y-%m-%d %H:%M} UTC at version {slice_.predictions_version} of samples"
    marks = _marks(slice_, slices.tags_by_id(lake).get(slice_.id, ()))
    lines = [f"{slice_.id}: {len(names):,} images ({slice_.kind}: {slice_.definition}), {when}{marks}"]
    lines += [f"{erased:,} erased"] if erased else []
    if contents["label_events"].null_count:
        lines.append("created before slices stored their labels: these are the current labels")
    lines += [f"{n:,} images with an incomplete label for {task}" for task, n in incomplete.items()]
    lines += [*_class_lines(classes), *names]
    return output(args, tables.plain(facts), "\n".join(lines))


def _diff(args: argparse.Namespace) -> int:
    from lake import slices

    lake = open_lake(args)
    difference = slices.diff(lake, slices.get(lake, args.before), slices.get(lake, args.after))
    changed = difference.labels_changed
    head = (
        f"{difference.before} to {difference.after}: {len(difference.added):,} added, "
        f"{len(difference.removed):,} removed, {difference.kept:,} in both, "
        + ("their labels are unknown" if changed is None else f"{len(changed):,} of them with other labels")
        + (f"; {difference.erased:,} erased" if difference.erased else "")
    )
    lines = [head, *(f"+ {i}" for i in difference.added), *(f"- {i}" for i in difference.removed)]
    lines += [f"~ {i}" for i in changed or ()]
    return output(args, difference.as_dict(), "\n".join(lines))


def _history(args: argparse.Namespace) -> int:
    from lake import slices

    facts, lines = [], []
    for step in slices.history(open_lake(args), args.name):
        slice_ = step.slice
        change = {key: getattr(step, key) for key in ("tags", "added", "removed", "labels_changed", "erased")}
        facts.append(_facts(slice_) | change)
        if slice_.deleted_at is not None:
            lines.append(f"{slice_.id:<24}deleted {slice_.deleted_at:%Y-%m-%d %H:%M} UTC")
            continue
        changes = [] if step.added is None else [f"+{step.added:,} -{step.removed:,}"]
        changes += [f"{step.labels_changed:,} labels changed"] if step.labels_changed else []
        changes += [f"{step.erased:,} erased"] if step.erased else []
        text = f"{slice_.id:<24}{slice_.created_at:%Y-%m-%d %H:%M} UTC {slice_.size:>9,} images  {', '.join(changes)}"
        lines.append((text + _marks(slice_, step.tags)).rstrip())
    return output(args, facts, "\n".join(lines))


def _leaks(args: argparse.Namespace) -> int:
    from embeddings.duplicates import leak_guard
    from lake import slices

    lake = open_lake(args)
    slice_ = slices.get(lake, args.name)
    if slice_.role is None:
        raise BadInput(f"{slice_.id} has no role; give it one with: lakeloop slice role {slice_.id} train")
    names = slices.members(lake, slice_).to_pylist()
    leaks = leak_guard.check(lake, names, slice_.role, apart_from=slice_.name)
    against = ", ".join(leaks.against) or "no such slice yet"
    shared = leaks.words() or "no shared images"
    text = f"{slice_.id} ({slice_.role}), {len(names):,} images, against {against}: {shared}"
    output(args, _facts(slice_) | leaks.as_dict() | {"against": leaks.against, "images": leaks.images}, text)
    return 1 if leaks.images else 0


# Change --------------------------------------------------------------------------------------------------


def _tag(args: argparse.Namespace) -> int:
    from lake import slices
    from lake.access import audit

    lake = open_lake(args)
    if args.remove:
        slices.untag(lake, args.name.partition("@")[0], args.tag)
        audit.record(lake, "slice untag", f"{args.name.partition('@')[0]}@{args.tag}", detail={})
        return output(args, {"tag": args.tag, "removed": True}, f"removed the tag {args.tag}")
    slice_ = slices.get(lake, args.name)
    slices.tag(lake, slice_, args.tag)
    audit.record(lake, "slice tag", f"{slice_.name}@{args.tag}", detail={"version": slice_.version})
    return output(args, _facts(slice_) | {"tag": args.tag}, f"{slice_.name}@{args.tag} is {slice_.id}")


def _role(args: argparse.Namespace) -> int:
    from embeddings.duplicates import leak_guard
    from lake import slices
    from lake.access import audit

    lake = open_lake(args)
    role = None if args.role == "none" else args.role
    slice_, leaks = leak_guard.assign(lake, slices.get(lake, args.name), role, identity_only=args.identity_only)
    audit.record(lake, "slice role", slice_.id, detail={"role": role})
    text = f"{slice_.id} is for {role}" if role else f"{slice_.id} has no role"
    text += f"\n{leaks.words()}" if leaks.words() else ""
    return output(args, _facts(slice_) | {"leaks": leaks.as_dict()}, text)


def _delete(args: argparse.Namespace) -> int:
    from lake import slices
    from lake.access import audit

    lake = open_lake(args)
    if "@" not in args.name:
        raise BadInput(f"give the version of {args.name!r}: {slices.get(lake, args.name).id} is its newest")
    slice_ = slices.get(lake, args.name)
    slices.delete(lake, slice_)
    audit.record(lake, "slice delete", slice_.id, detail={"size": slice_.size, "definition": slice_.definition})
    return output(args, _facts(slice_), f"{slice_.id} is deleted; its images stay in the lake")


# ----------------------------------------------------------------------------------------------------------


def _facts(slice_: Slice) -> dict[str, Any]:
    from lake.sql import tables

    facts: dict[str, Any] = tables.plain(slice_.as_dict())
    return facts


def _marks(slice_: Slice, tags: Sequence[str] = ()) -> str:
    marks = [slice_.role] if slice_.role else []
    marks += ["guarded by identity only"] if slice_.identity_only else []
    marks += ["live"] if slice_.live else []
    marks += [f"@{tag}" for tag in tags]
    return f"  [{', '.join(marks)}]" if marks else ""


def _class_lines(classes: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"{row['images']:>9,}  {'no label' if row['label'] is None else row['label']}" for row in classes[:MOST_LISTED]
    ]
    rest = len(classes) - MOST_LISTED
    return [*lines, f"and {rest:,} more classes"] if rest > 0 else lines


def _ids(args: argparse.Namespace, lake: Lake) -> list[str] | None:
    """The ids of --ids or of the result of --sql; None without both."""
    from lake.slices import id_lists

    if args.sql:
        return id_lists.queried(lake, args.sql)
    return full_ids(lake, id_lists.listed(_read(args.ids), args.ids)) if args.ids else None


def _read(name: str) -> str:
    if name == "-":
        return sys.stdin.read().removeprefix("\ufeff")
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{name}: {error}") from error
