"""Kills the service with SIGKILL under load and counts lost, duplicated and damaged events.

    python -m benchmarks crash --kills N [--damage M] [--seed S] [--json]

It makes the same kills as `tests/crash`, any number of them. Exits with 1 if an acknowledged event was lost, duplicated
or damaged, or if the server sent an unexpected response.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from tests.crash.kills import campaigns


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks crash", description="Kill the service under load and count lost events."
    )
    parser.add_argument("--kills", type=int, required=True, metavar="N", help="kills of the server; about 1.4 s each")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the times of the kills and of the events (default 0)"
    )
    parser.add_argument(
        "--lanes", type=int, default=2, help="servers that run at the same time, each with its own lake (default 2)"
    )
    parser.add_argument(
        "--damage", type=int, default=0, metavar="N", help="damage a file and repair the lake after every N kills"
    )
    parser.add_argument("--one-lake", action="store_true", help="all servers share one lake and its spool")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    options = parser.parse_args(arguments)
    for name in ("kills", "lanes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if options.damage and options.one_lake:
        parser.error("--damage needs a lake for each server: no process may write while a lake is repaired")
    with tempfile.TemporaryDirectory(prefix="lakeloop-crash-") as work:
        run = campaigns(Path(work), options.kills, options.seed, options.lanes, options.one_lake, damage=options.damage)
        tally = asyncio.run(run)
    figures = {"seed": options.seed, **tally.figures()}
    if options.json:
        print(json.dumps({"name": "crash", "failed": tally.failed, **figures}, indent=2, ensure_ascii=False))
    else:
        for name, value in figures.items():
            if name != "details":
                print(f"{name:<52} {value if not isinstance(value, dict) else json.dumps(value)}")
    for line in figures["details"]:
        print(line, file=sys.stderr)
    return 1 if tally.failed else 0
