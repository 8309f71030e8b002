"""The command `lakeloop`: parses the arguments, runs the command, maps errors to exit codes.

Every command takes `--lake URI` (or LAKELOOP_LAKE) and `--json`, which prints one JSON document on stdout and all else
on stderr. Exit codes: 0 success, 1 a check failed, 2 bad usage or input, 3 the command could not finish. With --json,
an error is one JSON document on stderr: `reason`, one word for programs, `detail` for people, `exit_code`. The commands
are in `cli/lake`, `cli/embeddings` and `cli/training`. Each imports its libraries when it runs, so that
`lakeloop --help` starts fast.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lake.errors import BadInput, CouldNot, LakeloopError, QueryStopped
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


class _UsageError(Exception):
    """The words on the command line are wrong; the message says which, and where the help is."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"argument COMMAND: invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if unknown:
            commands = re.findall(r"'(.*?)'", unknown[2])
            message = f"no command {unknown[1]!r}{_nearest(unknown[1], commands)}"
        raise _UsageError(f"{self.prog}: {message}\nTry: {self.prog} --help")

    def options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def _nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'search'?`, or nothing if no known word is near."""
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Raises SystemExit for wrong words and after --help."""
    words = [*(sys.argv[1:] if argv is None else argv)]
    fail = functools.partial(_fail, "--json" in words)
    try:
        arguments = _parsed(words)
    except _UsageError as error:
        raise SystemExit(fail(str(error), BadInput.exit_code, "usage", prefix="")) from None
    command: Callable[[argparse.Namespace], int | None] = arguments.run
    try:
        return command(arguments) or 0
    except LakeloopError as error:
        from lake.storage.lance_files import missing_file

        cause = missing_file.as_error(error) or error
        return fail(str(cause), cause.exit_code, _reason(cause))
    except KeyboardInterrupt as error:
        again = "everything committed is safe; run the same command again to continue"
        return fail(f"interrupted; {error or again}", 130, "interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        needed = f"{error.name} is not installed; run: pip install 'lakeloop[all]'"
        return fail(needed, CouldNot.exit_code, "missing_extra")
    except Exception as error:
        from lake.storage.lance_files import missing_file

        if (missing := missing_file.as_error(error)) is not None:
            return fail(str(missing), missing.exit_code, _reason(missing))
        if not isinstance(error, OSError):
            raise
        if "(os error 30)" in str(error):  # Lance's words for EROFS
            return fail("the lake can only be read, and this command writes", CouldNot.exit_code, "read_only")
        return fail(str(error), CouldNot.exit_code, "system")


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    arguments, unknown = _parser().parse_known_args(words)
    if unknown:
        parser: _Parser = arguments.parser
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        hint = _nearest(options[0], parser.options()) if options else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return arguments


def _reason(error: LakeloopError) -> str:
    """One word: `invalid` or `unavailable`, or the kind of error in the form of its class's name."""
    if isinstance(error, QueryStopped):
        return error.reason
    names = {BadInput: "invalid", CouldNot: "unavailable"}
    return names.get(type(error)) or re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


def entry() -> NoReturn:
    """The console script."""
    code = main()
    # The output is complete: a Ctrl-C while Python ends must not change the exit code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _fail(as_json: bool, message: str, code: int, reason: str, prefix: str = "lakeloop: ") -> int:
    if as_json:
        import json

        print(json.dumps({"reason": reason, "detail": message, "exit_code": code}, ensure_ascii=False), file=sys.stderr)
    else:
        print(f"{prefix}{message}", file=sys.stderr)
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
        command.set_defaults(run=run, writes=writes, parser=command)
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
