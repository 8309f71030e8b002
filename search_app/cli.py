"""The command `lakeloop`: parses, calls, prints.

Every command takes `--lake URI` (or LAKELOOP_LAKE) and `--json`: exactly one JSON document on stdout, all else on
stderr. Exit codes: 0 ok, 1 a check failed, 2 usage or bad input, 3 could not be done. Handlers import what they
need themselves, so that `lakeloop --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from lake.errors import BadInput, CouldNot, LakeloopError
from lake.version import VERSION

if TYPE_CHECKING:
    from embeddings.backfill import Report
    from lake.store import Lake

DESCRIPTION = """\
The embedding-search data lake that turns a vision model's failures into a better model.

  lakeloop quickstart                       the whole story on real solar cells
  lakeloop init --lake my.lake              an empty lake
  lakeloop ingest photos/ --lake my.lake    images, class folders, or a prediction log
  lakeloop embed --lake my.lake             a vector for every image
  lakeloop search --image odd.jpg --lake my.lake
  lakeloop serve --lake my.lake             the app, http://127.0.0.1:8501
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nTry: {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; `lakeloop` on the command line."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int | None] = arguments.run
    try:
        return command(arguments) or 0
    except LakeloopError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted; what was committed is safe, run the same command again to go on", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed; run: pip install 'lakeloop[all]'", CouldNot.exit_code)
    except OSError as error:
        return _fail(str(error), CouldNot.exit_code)


def entry() -> NoReturn:
    """The console script."""
    code = main()
    # The answer is out: a Ctrl-C while Python winds down must not turn it into a death by signal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    print(f"lakeloop: {message}", file=sys.stderr)
    return code


# Commands --------------------------------------------------------------------------------------------------


def _init(a: argparse.Namespace) -> None:
    import lake
    from embeddings import specs

    names = a.embedder or [specs.DEFAULT]
    for name in names:
        specs.check_name(name)
    columns = {}
    for text in a.column or []:
        name, colon, kind = text.partition(":")
        if not colon:
            raise BadInput(f"--column {text!r}: write NAME:TYPE, e.g. camera:int")
        columns[name] = kind
    made = lake.create(_uri(a), embedders=list(dict.fromkeys(names)), columns=columns)
    records = [{"name": r.name, "column": r.column} for r in made.embedders()]
    facts = {"lake": made.uri, "embedders": records, "columns": columns}
    _answer(a, facts, f"made {made.uri} with embedder {', '.join(r['name'] for r in records)}")


def _ingest(a: argparse.Namespace) -> int:
    from pathlib import Path

    from lake import sources
    from lake.ingest import ingest

    opened = _open(a)
    layout = sources.resolve(Path(a.path), a.layout)
    if a.layout == "auto":
        print(f"reading {a.path} as layout {layout}", file=sys.stderr)
    with _progress(a, "images") as progress:
        report = ingest(opened, a.path, layout, progress=progress)
    r = report.as_dict()
    for bad in report.rejected[:20]:
        print(f"rejected {bad['source']}: {bad['reason']}", file=sys.stderr)
    if len(report.rejected) > 20:
        print(f"... and {len(report.rejected) - 20} more (--json lists all)", file=sys.stderr)
    readable = report.images_new + report.images_known + report.predictions_new + report.predictions_known
    if not readable:
        raise BadInput(f"nothing readable in {a.path} ({len(report.rejected)} rejected)")
    text = (
        f"images {report.images_new:,} new, {report.images_known:,} known; "
        f"predictions {report.predictions_new:,} new, {report.predictions_known:,} known; "
        f"labels {report.labels_new:,} new; rejected {len(report.rejected):,}; {report.seconds:.1f} s"
    )
    return _answer(a, r, text)


def _embed(a: argparse.Namespace) -> int:
    from pathlib import Path

    from embeddings import embedder as embedders
    from embeddings.backfill import Report, backfill
    from lake import summary

    opened = _open(a)
    known = a.embedder is None or any(r.name == a.embedder for r in opened.embedders())
    record = embedders.record_of(opened, a.embedder) if known else embedders.new_record(a.embedder)
    file = Path(a.weights) if a.weights else None
    total = summary.embedding_progress(opened, [record])[0]["missing"]
    if total == 0 and record.dim is not None and file is None:
        return _embedded(a, Report(record.name))  # without loading the network
    model = embedders.for_lake(opened, record, file=file, trust_sha256=a.trust_sha256, engine=a.engine, images=total)
    with _progress(a, "images", total) as progress:
        report = backfill(opened, record, model, file=file, progress=progress)
    return _embedded(a, report)


def _embedded(a: argparse.Namespace, report: Report) -> int:
    for image, reason in list(report.reasons.items())[:20]:
        print(f"failed {image}: {reason}", file=sys.stderr)
    names = ("embedder", "embedded", "failed", "images_per_second", "seconds")
    text = (
        f"{report.embedder}: {report.embedded:,} embedded, {report.failed:,} failed; "
        f"{report.seconds:.1f} s ({report.images_per_second:.1f} images/s)"
    )
    return _answer(a, {n: getattr(report, n) for n in names}, text)


def _search(a: argparse.Namespace) -> int:
    from embeddings.search import search

    found = search(
        _open(a),
        image=a.image,
        ids=a.id or (),
        text=a.text,
        embedder=a.embedder,
        k=a.k,
        where=a.where,
        columns=a.column or (),
    )
    from lake import tables

    return _answer(a, {"results": tables.rows(found)}, tables.text(found))


def _sql(a: argparse.Namespace) -> int:
    from pathlib import Path

    from lake import tables

    found = _open(a).sql(a.query)
    format = a.format or ("json" if a.json else "table")
    if a.json and format != "json":
        raise BadInput("--json and --format are two wishes for one output; give one")
    if a.out:
        tables.write(found, Path(a.out), format)
        print(f"wrote {found.num_rows:,} rows to {a.out}", file=sys.stderr)
    elif format == "parquet":
        raise BadInput("parquet goes to a file: give --out FILE")
    else:
        print(tables.render(found, format))
    return 0


def _status(a: argparse.Namespace) -> int:
    from lake import summary, tables

    facts = summary.status(_open(a))
    lines = [
        f"lake         {facts['lake']}",
        *(f"{name:<12} {facts[name]:,}" for name in ("images", "predictions", "answers", "labels", "slices")),
    ]
    for e in facts["embedders"]:
        left = f", {e['missing']:,} to go: lakeloop embed --embedder {e['name']}" if e["missing"] else ""
        lines.append(f"embedder     {e['name']}: {e['embedded']:,} images embedded{left}")
    for m in facts["models"]:
        lines.append(f"model        {m['model']} {m['model_version'] or ''}: {m['answers']:,} answers")
    return _answer(a, tables.plain(facts), "\n".join(lines))


def _cluster(a: argparse.Namespace) -> int:
    from dataclasses import asdict

    from embeddings.cluster import cluster

    made = cluster(_open(a), embedder=a.embedder, where=a.where, node=a.node, method=a.method, k=a.k, seed=a.seed)
    if made.remark:
        print(made.remark, file=sys.stderr)
    lines = [
        f"tree {made.tree} ({made.embedder}, {made.seconds:.1f} s)",
        "node          images  compactness  medoid",
    ]
    for n in made.nodes:
        mark = " noise" if n.noise else ""
        lines.append(f"{made.tree}/{n.path:<6}{n.size:>7,}  {n.compactness:>11.2f}  {n.medoids[0][:12]}{mark}")
    facts = {"tree": made.tree, "embedder": made.embedder, "nodes": [asdict(n) for n in made.nodes]}
    return _answer(a, facts | {"remark": made.remark, "seconds": made.seconds}, "\n".join(lines))


def _slice_create(a: argparse.Namespace) -> int:
    from pathlib import Path

    from lake import slices, tables

    ids = None
    if a.ids:
        text = sys.stdin.read() if a.ids == "-" else _read_text(Path(a.ids))
        ids = text.split()
    made = slices.create(_open(a), a.name, where=a.where, ids=ids, cluster=a.cluster)
    facts = tables.plain({f: getattr(made, f) for f in made.__dataclass_fields__})
    return _answer(a, facts, f"{made.id}: {made.size:,} images ({made.kind}: {made.definition})")


def _slice_list(a: argparse.Namespace) -> int:
    from lake import slices, tables

    found = slices.list(_open(a))
    facts = [tables.plain({f: getattr(s, f) for f in s.__dataclass_fields__}) for s in found]
    lines = [f"{s.id:<24}{s.size:>9,} images  {s.kind}: {s.definition}" for s in found]
    return _answer(a, facts, "\n".join(lines) or "no slices yet; make one with: lakeloop slice create NAME --where SQL")


def _slice_show(a: argparse.Namespace) -> int:
    from lake import slices, tables

    opened = _open(a)
    made = slices.get(opened, a.name)
    members = slices.members(opened, made).to_pylist()
    facts = tables.plain({f: getattr(made, f) for f in made.__dataclass_fields__}) | {"image_ids": members}
    text = (
        f"{made.id}: {made.size:,} images ({made.kind}: {made.definition}), made {made.created_at:%Y-%m-%d %H:%M} UTC"
        f" at version {made.predictions_version} of predictions\n" + "\n".join(members)
    )
    return _answer(a, facts, text)


def _slice_export(a: argparse.Namespace) -> int:
    from pathlib import Path

    from lake import slices

    opened = _open(a)
    made = slices.get(opened, a.name)
    with _progress(a, "images", made.size) as progress:
        written = slices.export(opened, made, Path(a.out), a.format, progress)
    return _answer(a, {"slice": made.id, "images": written, "out": a.out}, f"wrote {written:,} images to {a.out}")


def _serve(a: argparse.Namespace) -> int:
    from search_app.server import serve

    serve(_open(a).uri, a.host, a.port, ui=not a.no_ui)
    return 0


def _quickstart(a: argparse.Namespace) -> int:
    from search_app.demo import quickstart

    facts = quickstart(a.lake or os.environ.get("LAKELOOP_LAKE") or "solar.lake")
    _answer(a, facts, "")
    if not a.no_serve:
        from search_app.server import serve

        serve(facts["lake"], a.host, a.port, ui=True)
    return 0


# Shared ----------------------------------------------------------------------------------------------------


def _uri(a: argparse.Namespace) -> str:
    uri = a.lake or os.environ.get("LAKELOOP_LAKE")
    if not uri:
        raise BadInput("which lake? give --lake URI or set LAKELOOP_LAKE")
    return str(uri)


def _open(a: argparse.Namespace) -> Lake:
    import lake

    return lake.open(_uri(a))


def _read_text(path: Any) -> str:
    try:
        text: str = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from error
    return text


def _answer(a: argparse.Namespace, facts: Any, text: str) -> int:
    import json

    if a.json:
        print(json.dumps(facts, ensure_ascii=False, allow_nan=False))
    elif text:
        print(text)
    return 0


def _progress(a: argparse.Namespace, unit: str, total: int | None = None) -> Any:
    """A context manager giving a function that counts; a bar on stderr when a person is looking."""
    from contextlib import contextmanager

    @contextmanager
    def bar() -> Any:
        if not sys.stderr.isatty():
            yield lambda n: None
            return
        from tqdm import tqdm

        with tqdm(total=total, unit=f" {unit}", file=sys.stderr, leave=False) as shown:
            yield shown.update

    return bar()


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--lake", metavar="URI", help="the lake: a folder or an object store's URI (or LAKELOOP_LAKE)")
    common.add_argument("--json", action="store_true", help="one JSON document on stdout")

    parser: argparse.ArgumentParser = _Parser(
        prog="lakeloop", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"lakeloop {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[..., Any], help: str, to: Any = None) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = (to or commands).add_parser(name, parents=[common], help=help, description=help)
        made.set_defaults(run=run)
        return made

    p = add("init", _init, "make an empty lake")
    p.add_argument("--embedder", action="append", metavar="NAME", help="again for more; the first is the default")
    p.add_argument("--column", action="append", metavar="NAME:TYPE", help="promote a metadata column (string, int, float, bool, timestamp)")  # fmt: skip  # noqa: E501

    p = add("ingest", _ingest, "bring in a folder of images, class folders, or a prediction log")
    p.add_argument("path", metavar="PATH")
    p.add_argument("--layout", choices=("auto", "folder", "imagefolder", "table"), default="auto")

    p = add("embed", _embed, "give every image that lacks one a vector")
    p.add_argument("--embedder", metavar="NAME", help="default: the lake's first; a new one is added to the lake")
    p.add_argument("--weights", metavar="FILE", help="safetensors, or a .pth / .pt (see --trust-sha256)")
    p.add_argument("--trust-sha256", metavar="HEX", help="the SHA-256 of a .pth / .pt you know the origin of")
    p.add_argument("--engine", choices=("auto", "torch", "openvino"), default="auto")

    p = add("search", _search, "find the images most like an example")
    example = p.add_mutually_exclusive_group(required=True)
    example.add_argument("--image", metavar="FILE")
    example.add_argument(
        "--id", action="append", metavar="ID", help="an image_id or prediction_id; several are averaged"
    )
    example.add_argument("--text", metavar="T", help="with an embedder that can (CLIP)")
    p.add_argument("-k", type=int, default=10, metavar="N", help="number of results (default 10)")
    p.add_argument("--where", metavar="SQL", help="filter on predictions, applied before neighbours are chosen")
    p.add_argument("--embedder", metavar="NAME", help="default: the lake's first")
    p.add_argument("--column", action="append", metavar="NAME", help="one more column of predictions in the results")

    p = add("sql", _sql, "run one SELECT over the lake's tables and views")
    p.add_argument("query", metavar="SELECT")
    p.add_argument("--format", choices=("table", "json", "csv", "parquet"))
    p.add_argument("--out", metavar="FILE")

    add("status", _status, "what is in the lake")

    p = add("cluster", _cluster, "cluster the lake, or open a node of a tree")
    p.add_argument("--node", metavar="TREE/PATH", help="cluster this node's images afresh")
    p.add_argument("--where", metavar="SQL", help="only images that pass")
    p.add_argument("--method", choices=("auto", "kmeans", "hdbscan"), default="auto")
    p.add_argument("-k", type=int, metavar="N", help="number of k-means clusters")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--embedder", metavar="NAME")

    group = commands.add_parser("slice", help="named sets of images", description="named sets of images")
    slices = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    p = add("create", _slice_create, "save a set of images under a name", slices)
    p.add_argument("name", metavar="NAME")
    how = p.add_mutually_exclusive_group(required=True)
    how.add_argument("--where", metavar="SQL")
    how.add_argument("--ids", metavar="FILE", help="one id a line; - for standard input")
    how.add_argument("--cluster", metavar="TREE/PATH")
    add("list", _slice_list, "every version of every slice", slices)
    p = add("show", _slice_show, "a slice's definition and members", slices)
    p.add_argument("name", metavar="NAME[@VERSION]")
    p = add("export", _slice_export, "write a slice's images to a folder", slices)
    p.add_argument("name", metavar="NAME[@VERSION]")
    p.add_argument("--format", choices=("imagefolder",), default="imagefolder")
    p.add_argument("--out", metavar="FOLDER", required=True)

    for name, run, help in (
        ("serve", _serve, "the app and the HTTP API"),
        ("quickstart", _quickstart, "the demo: build a lake of real solar cells and open the app"),
    ):
        p = add(name, run, help)
        p.add_argument("--host", default="127.0.0.1")
        p.add_argument("--port", type=int, default=8501)
        if name == "serve":
            p.add_argument("--no-ui", action="store_true", help="the HTTP API alone")
        else:
            p.add_argument("--no-serve", action="store_true", help="build only")
    return parser


if __name__ == "__main__":
    entry()
