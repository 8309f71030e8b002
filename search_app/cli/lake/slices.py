"""slice, duplicates: named sets of images as code plus a pin, and the images that are there more than once."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, open_lake, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embeddings.duplicates.leak_guard import Leaks
    from lake.slices import Slice, SliceDraft
    from lake.storage.store import Lake

MOST_LISTED = 20
BY_IDENTITY = "for training: compare images without vectors by identity only"


def register(add: Add, slices: Any) -> None:
    p = add("create", _create, "save a set of images under a name, or its next version", slices)
    p.add_argument("name", metavar="NAME")
    how = p.add_mutually_exclusive_group(required=True)
    how.add_argument("--where", metavar="SQL", help="images one of whose rows of predictions passes")
    how.add_argument("--ids", metavar="FILE", help="one id a line; - for standard input")
    how.add_argument("--cluster", action="append", metavar="TREE/PATH", help="all of this node; again for more")
    how.add_argument("--search", metavar="SEARCH", help="what an active search has found: its id or its name")
    how.add_argument("--like", action="append", metavar="ID", help="images like this one; several are averaged")
    how.add_argument("--union", nargs="+", metavar="SLICE", help="what is in any of these slices")
    how.add_argument("--intersect", nargs="+", metavar="SLICE", help="what is in all of these slices")
    how.add_argument("--spec", metavar="FILE", help="a definition as `slice show --spec` prints it; - for stdin")
    p.add_argument("--radius", type=float, metavar="R", help="with --like: the greatest cosine distance, 0 to 2")
    p.add_argument("--embedder", metavar="NAME", help="with --like; default: the lake's first")
    p.add_argument("--minus", action="append", default=[], metavar="SLICE", help="take this slice away; again for more")
    p.add_argument("--role", choices=("train", "evaluation", "regression"), help="what the slice is for")
    kept = p.add_mutually_exclusive_group()
    kept.add_argument("--frozen", action="store_true", help="store members and labels as they are now (the default)")
    kept.add_argument("--live", action="store_true", help="store the definition only")
    p.add_argument("--drop-leaks", action="store_true", help="leave out what evaluation or regression slices have")
    p.add_argument("--identity-only", action="store_true", help=BY_IDENTITY)
    p.add_argument("--new", action="store_true", help="the name must be free")
    p.add_argument("--dry-run", action="store_true", help="show classes, near-duplicates and leaks, save nothing")
    p = add("list", _list, "every version of every slice", slices)
    p.add_argument("--newest", action="store_true", help="each slice's newest version only")
    p = add("show", _show, "a slice's definition, classes and members", slices)
    p.add_argument("name", metavar="NAME[@VERSION|@TAG]")
    p.add_argument("--spec", action="store_true", help="its definition as JSON, for --spec of slice create")
    p = add("diff", _diff, "what is different between two slices or versions", slices)
    p.add_argument("before", metavar="NAME[@VERSION|@TAG]")
    p.add_argument("after", metavar="NAME[@VERSION|@TAG]")
    p = add("history", _history, "a slice's versions, and what changed in each", slices)
    p.add_argument("name", metavar="NAME")
    p = add("tag", _tag, "a name for a version: NAME@TAG", slices)
    p.add_argument("name", metavar="NAME[@VERSION|@TAG]")
    p.add_argument("tag", metavar="TAG")
    p.add_argument("--remove", action="store_true", help="take the tag away")
    p = add("role", _role, "say what a slice is for", slices)
    p.add_argument("name", metavar="NAME[@VERSION|@TAG]")
    p.add_argument("role", choices=("train", "evaluation", "regression", "none"))
    p.add_argument("--identity-only", action="store_true", help=BY_IDENTITY)
    p = add("freeze", _freeze, "the next version of a live slice, with what it has now", slices)
    p.add_argument("name", metavar="NAME[@VERSION|@TAG]")
    p.add_argument("--role", choices=("train", "evaluation", "regression"), help="default: the live slice's")
    p.add_argument("--drop-leaks", action="store_true", help="leave out what evaluation or regression slices have")
    p.add_argument("--identity-only", action="store_true", help=BY_IDENTITY)
    p = add("delete", _delete, "delete a version; its images stay, its number is not given out again", slices)
    p.add_argument("name", metavar="NAME@VERSION")
    p = add("leaks", _leaks, "what a slice shares with slices it must be kept apart from; exit 1 when it does", slices)
    p.add_argument("name", metavar="NAME[@VERSION|@TAG]")


# Making ----------------------------------------------------------------------------------------------------


def _create(args: argparse.Namespace) -> int:
    from embeddings.duplicates import leak_guard
    from lake import slices

    if (args.radius is None) != (args.like is None):
        raise BadInput("--like and --radius go together: --like ID --radius R, a cosine distance from 0 to 2")
    if args.embedder and not args.like:
        raise BadInput("--embedder goes with --like")
    like = {"ids": args.like, "radius": args.radius, "embedder": args.embedder} if args.like else None
    opened = open_lake(args)
    made = slices.draft(
        opened,
        args.name,
        where=args.where,
        ids=_read(args.ids).split() if args.ids else None,
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
        return _dry_run(args, opened, made)
    made, found = leak_guard.guarded(opened, made, args.drop_leaks, args.identity_only)
    return _save(args, opened, made, found)


def _save(args: argparse.Namespace, lake: Lake, made: SliceDraft, found: Leaks) -> int:
    from lake import slices
    from lake.access import audit

    saved = slices.save(lake, made)
    audit.record(lake, "slice create", saved.id, detail={"kind": saved.kind, "definition": saved.definition})
    dropped = len(found.images) if saved.role == "train" else 0
    said = [f"{saved.id}: {saved.size:,} images ({saved.kind}: {saved.definition}){_told(saved)}"]
    if dropped:
        said.append(f"{dropped:,} images left out: {found.words()}")
    elif found.words():
        said.append(found.words())
    if made.resolved.erased:
        said.append(f"{made.resolved.erased:,} erased images are left out")
    facts = _facts(saved) | {"leaks": found.as_dict(), "dropped": dropped, "erased": made.resolved.erased}
    return output(args, facts, "\n".join(said))


def _dry_run(args: argparse.Namespace, lake: Lake, made: SliceDraft) -> int:
    from embeddings.duplicates import duplicates, leak_guard
    from lake import slices

    classes = slices.balance(lake, made.resolved.contents)
    found = leak_guard.check(lake, made.members, made.role, apart_from=made.name)
    copies = None
    if any(record.dim is not None for record in lake.embedders()):
        copies = duplicates.find(lake, made.members)
    facts: dict[str, Any] = {
        "name": made.name,
        "size": len(made.members),
        "classes": classes,
        "near_duplicates": None if copies is None else {"groups": len(copies.groups), "spare": copies.redundant},
        "leaks": found.as_dict(),
        "erased": made.resolved.erased,
    }
    text = [f"{made.name}: {len(made.members):,} images; nothing is saved", *_balance(classes)]
    if copies is None:
        text.append("near-duplicates are not known: nothing is embedded yet; run: lakeloop embed")
    else:
        text.append(f"{len(copies.groups):,} groups of near-duplicates, {copies.redundant:,} images more than needed")
    text += [found.words()] if found.words() else []
    return output(args, facts, "\n".join(text))


def _freeze(args: argparse.Namespace) -> int:
    from embeddings.duplicates import leak_guard
    from lake import slices

    opened = open_lake(args)
    made = slices.freeze(opened, slices.get(opened, args.name), args.role)
    made, found = leak_guard.guarded(opened, made, args.drop_leaks, args.identity_only)
    return _save(args, opened, made, found)


# Looking ---------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    from lake import slices

    opened = open_lake(args)
    found = slices.newest(opened) if args.newest else slices.list(opened)
    named = _tags(opened)
    facts = [_facts(s) | {"tags": named.get(s.id, [])} for s in found]
    lines = [f"{s.id:<24}{s.size:>9,} images  {s.kind}: {s.definition}{_told(s, named.get(s.id, ()))}" for s in found]
    return output(
        args, facts, "\n".join(lines) or "no slices yet; make one with: lakeloop slice create NAME --where SQL"
    )


def _show(args: argparse.Namespace) -> int:
    from lake import slices
    from lake.sql import tables

    opened = open_lake(args)
    made = slices.get(opened, args.name)
    if args.spec:
        print(json.dumps(slices.spec(opened, made), ensure_ascii=False, indent=2))
        return 0
    contents = slices.contents(opened, made)
    names = contents["image_id"].to_pylist()
    classes = slices.balance(opened, contents)
    erased = slices.erased_count(opened, made)
    facts = _facts(made) | {
        "tags": _tags(opened).get(made.id, []),
        "image_ids": names,
        "erased": erased,
        "classes": classes,
        "labels_frozen": not made.live and not contents["label_events"].null_count,
    }
    when = f"made {made.created_at:%Y-%m-%d %H:%M} UTC at version {made.predictions_version} of predictions"
    told = _told(made, _tags(opened).get(made.id, ()))
    text = [f"{made.id}: {len(names):,} images ({made.kind}: {made.definition}), {when}{told}"]
    text += [f"{erased:,} erased"] if erased else []
    if contents["label_events"].null_count:
        text.append("made before slices froze their labels: the labels are today's")
    text += [*_balance(classes), *names]
    return output(args, tables.plain(facts), "\n".join(text))


def _diff(args: argparse.Namespace) -> int:
    from lake import slices

    opened = open_lake(args)
    found = slices.diff(opened, slices.get(opened, args.before), slices.get(opened, args.after))
    changed = found.labels_changed
    head = (
        f"{found.before} to {found.after}: {len(found.added):,} added, {len(found.removed):,} removed, "
        f"{found.kept:,} in both, "
        + ("their labels are not known" if changed is None else f"{len(changed):,} of them with other labels")
        + (f"; {found.erased:,} erased" if found.erased else "")
    )
    lines = [head, *(f"+ {i}" for i in found.added), *(f"- {i}" for i in found.removed)]
    lines += [f"~ {i}" for i in changed or ()]
    return output(args, found.as_dict(), "\n".join(lines))


def _history(args: argparse.Namespace) -> int:
    from lake import slices

    facts, lines = [], []
    for step in slices.history(open_lake(args), args.name):
        made = step.slice
        change = {key: getattr(step, key) for key in ("tags", "added", "removed", "labels_changed", "erased")}
        facts.append(_facts(made) | change)
        if made.deleted_at is not None:
            lines.append(f"{made.id:<24}deleted {made.deleted_at:%Y-%m-%d %H:%M} UTC")
            continue
        said = [] if step.added is None else [f"+{step.added:,} -{step.removed:,}"]
        said += [f"{step.labels_changed:,} labels changed"] if step.labels_changed else []
        said += [f"{step.erased:,} erased"] if step.erased else []
        text = f"{made.id:<24}{made.created_at:%Y-%m-%d %H:%M} UTC {made.size:>9,} images  {', '.join(said)}"
        lines.append((text + _told(made, step.tags)).rstrip())
    return output(args, facts, "\n".join(lines))


def _leaks(args: argparse.Namespace) -> int:
    from embeddings.duplicates import leak_guard
    from lake import slices

    opened = open_lake(args)
    made = slices.get(opened, args.name)
    if made.role is None:
        raise BadInput(f"{made.id} has no role; give it one with: lakeloop slice role {made.id} train")
    names = slices.members(opened, made).to_pylist()
    found = leak_guard.check(opened, names, made.role, apart_from=made.name)
    against = ", ".join(found.against) or "no slice of the other kind yet"
    text = f"{made.id} ({made.role}), {len(names):,} images, against {against}: " + (found.words() or "nothing shared")
    output(args, _facts(made) | found.as_dict() | {"against": found.against, "images": found.images}, text)
    return 1 if found.images else 0


# Changing --------------------------------------------------------------------------------------------------


def _tag(args: argparse.Namespace) -> int:
    from lake import slices
    from lake.access import audit

    opened = open_lake(args)
    if args.remove:
        slices.untag(opened, args.name.partition("@")[0], args.tag)
        audit.record(opened, "slice untag", f"{args.name.partition('@')[0]}@{args.tag}", detail={})
        return output(args, {"tag": args.tag, "removed": True}, f"the tag {args.tag} is gone")
    made = slices.get(opened, args.name)
    slices.tag(opened, made, args.tag)
    audit.record(opened, "slice tag", f"{made.name}@{args.tag}", detail={"version": made.version})
    return output(args, _facts(made) | {"tag": args.tag}, f"{made.name}@{args.tag} is {made.id}")


def _role(args: argparse.Namespace) -> int:
    from embeddings.duplicates import leak_guard
    from lake import slices
    from lake.access import audit

    opened = open_lake(args)
    role = None if args.role == "none" else args.role
    made, found = leak_guard.assign(opened, slices.get(opened, args.name), role, identity_only=args.identity_only)
    audit.record(opened, "slice role", made.id, detail={"role": role})
    text = f"{made.id} is for {role}" if role else f"{made.id} has no role"
    text += f"\n{found.words()}" if found.words() else ""
    return output(args, _facts(made) | {"leaks": found.as_dict()}, text)


def _delete(args: argparse.Namespace) -> int:
    from lake import slices
    from lake.access import audit

    opened = open_lake(args)
    if "@" not in args.name:
        raise BadInput(f"say which version of {args.name!r}: {slices.get(opened, args.name).id} is its newest")
    made = slices.get(opened, args.name)
    slices.delete(opened, made)
    audit.record(opened, "slice delete", made.id, detail={"size": made.size, "definition": made.definition})
    return output(args, _facts(made), f"{made.id} is deleted; its images stay in the lake")


# ----------------------------------------------------------------------------------------------------------


def _facts(made: Slice) -> dict[str, Any]:
    from lake.sql import tables

    facts: dict[str, Any] = tables.plain(vars(made))
    return {"id": made.id, **facts, "identity_only": made.identity_only}


def _told(made: Slice, tags: Sequence[str] = ()) -> str:
    words = [made.role] if made.role else []
    words += ["guarded by identity only"] if made.identity_only else []
    words += ["live"] if made.live else []
    words += [f"@{tag}" for tag in tags]
    return f"  [{', '.join(words)}]" if words else ""


def _tags(lake: Lake) -> dict[str, list[str]]:
    from lake import slices

    found: dict[str, list[str]] = {}
    for (name, tag), version in slices.tags(lake).items():
        found.setdefault(f"{name}@{version}", []).append(tag)
    return found


def _balance(classes: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"{one['images']:>9,}  {'no label' if one['label'] is None else one['label']}" for one in classes[:MOST_LISTED]
    ]
    more = len(classes) - MOST_LISTED
    return [*lines, f"and {more:,} classes more"] if more > 0 else lines


def _read(name: str) -> str:
    if name == "-":
        return sys.stdin.read()
    try:
        return Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{name}: {error}") from error
