"""The command `lakeloop`: parses the arguments, runs the command, maps errors to exit codes.

Every command takes `--lake URI` (or LAKELOOP_LAKE) and `--json`, which prints one JSON document on stdout and all else
on stderr. Exit codes: 0 success, 1 a check failed, 2 bad usage or input, 3 the command could not finish. The commands
are in `cli/lake`, `cli/embeddings` and `cli/training`. Each imports its libraries when it runs, so that
`lakeloop --help` starts fast.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lake.errors import CouldNot, LakeloopError
from lake.version import VERSION
from search_app.cli import serve
from search_app.cli.embeddings import cluster, duplicates, isolate, map, search
from search_app.cli.lake import analytics, data, export, jobs, keys, labels, spool, sql, upkeep
from search_app.cli.lake import slices as slicing
from search_app.cli.training import card, evaluate, models, predict, train

DESCRIPTION = """\
The embedding-search data lake that turns a vision model's failures into a better model.

  lakeloop quickstart                       a demo lake of real solar cells
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
        return _fail("interrupted; everything committed is safe; run the same command again to continue", 130)
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
    # The output is complete: a Ctrl-C while Python ends must not change the exit code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    print(f"lakeloop: {message}", file=sys.stderr)
    return code


@functools.cache
def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--lake", metavar="URI", help="the lake: a folder or the URI of an object store (default: LAKELOOP_LAKE)"
    )
    common.add_argument("--json", action="store_true", help="print one JSON document on stdout")

    parser: argparse.ArgumentParser = _Parser(
        prog="lakeloop", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"lakeloop {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str, run: Callable[..., Any], help: str, to: Any = None, *, writes: bool = False
    ) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = (to or commands).add_parser(
            name, parents=[common], help=help, description=help
        )
        command.set_defaults(run=run, writes=writes)
        return command

    def group(name: str, help: str) -> Any:
        command = commands.add_parser(name, help=help, description=help)
        return command.add_subparsers(title="commands", metavar="COMMAND", required=True)

    data.register(add)
    sql.register(add, group("query", "saved queries and the history of queries"))
    slices = group("slice", "named sets of images")
    search.register(add)
    slicing.register(add, slices)
    duplicates.register(add)
    export.register(add, slices)
    cluster.register(add)
    isolate.register(add)
    map.register(add)
    analytics.register(add)
    labels.register(add, group("labels", "labels from labelling tools"))
    evaluate.register(add)
    train.register(add, group("runs", "training runs: data, recipe and metrics"))
    models_group = group("models", "versions of models: register, promote, roll back, export")
    models.register(add, models_group)
    card.register(add, models_group)
    predict.register(add)
    jobs.register(add, group("jobs", "long work: what runs, its progress, cancelling, starting again"))
    serve.register(add)
    upkeep.register(add)
    spool.register(add, group("spool", "events on their way into the lake"))
    keys.register(add, group("key", "access keys for the HTTP API and the app"))
    return parser


if __name__ == "__main__":
    entry()
