"""python -m benchmarks crash --kills N [--seed S] [--json]: kills the service and counts what was lost.

It makes the same kills as `tests/crash`. Exit code 1 if any acknowledged event is lost, doubled or torn, or if a
response of the server is wrong.
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks crash", description="SIGKILL under load, compared.")
    parser.add_argument("--kills", type=int, required=True, metavar="N", help="of the server; about 1.4 s each")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of what is sent (default 0)")
    parser.add_argument("--lanes", type=int, default=2, help="servers at a time, each on a lake of its own (default 2)")
    parser.add_argument("--one-lake", action="store_true", help="all servers share one lake and its spool")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    for name in ("kills", "lanes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; it must be at least 1")
    with tempfile.TemporaryDirectory(prefix="lakeloop-crash-") as work:
        tally = asyncio.run(campaigns(Path(work), options.kills, options.seed, options.lanes, options.one_lake))
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
