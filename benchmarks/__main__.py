"""Runs a benchmark by name and prints its figures.

    python -m benchmarks NAME [--quick] [--json] [--data DIR] [--rounds N] [--what PART] [--with-peer NAME]
    python -m benchmarks crash --kills N [--seed S] [--json]
    python -m benchmarks growth [--batches N] [--quick] [--json]

Exit codes: 0 measured, 1 a contender failed, 2 usage, 3 the data is missing. With --json stdout is one document:
{"name", "machine", "ours", "peers", "ratios", "figures", "left_out"}. Use `taskset` to choose the cores.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, peers
from benchmarks.harness.data import DataAbsent
from benchmarks.harness.rounds import ContenderFailed, Options

# NAME -> module. Its `measure(options)` returns the document without name and machine; --what selects from its PARTS.
BENCHMARKS = {
    "ingest": "benchmarks.ingest.ingest",
    "exact": "benchmarks.search.exact",
    "durable_ingest": "benchmarks.ingest.durable_ingest",
    "pull": "benchmarks.ingest.pull",
    "cluster": "benchmarks.search.cluster",
    "looks": "benchmarks.search.looks",
    "loader": "benchmarks.training.loader",
    "finetune": "benchmarks.training.finetune",
    "duplicates": "benchmarks.search.duplicates",
    "discovery": "benchmarks.search.discovery",
    "sql": "benchmarks.search.sql",
    "gate": "benchmarks.training.gate",
    "probe": "benchmarks.training.probe",
    "shapes": "benchmarks.training.shapes",
    "serving": "benchmarks.training.serving",
    "loop": "benchmarks.training.loop",
}
# NAME -> module whose `main(arguments)` parses its own options.
WITH_OWN_OPTIONS = {"crash": "benchmarks.ingest.crash", "growth": "benchmarks.ingest.growth"}


def main(arguments: list[str] | None = None) -> int:
    if arguments is None:
        arguments = sys.argv[1:]
    if arguments and arguments[0] in WITH_OWN_OPTIONS:
        code: int = importlib.import_module(WITH_OWN_OPTIONS[arguments[0]]).main(arguments[1:])
        return code
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure lakeloop and its peers in one run.",
        epilog=f"Benchmarks with their own options (NAME --help): {', '.join(WITH_OWN_OPTIONS)}.",
    )
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--quick", action="store_true", help="less data and fewer rounds, at most 10 minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("--data", type=Path, help="the folder with the benchmark archives, or any folder of JPEGs")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of all contenders")
    parser.add_argument("--what", action="append", default=[], metavar="PART", help="only this part; repeat for more")
    parser.add_argument(
        "--with-peer",
        action="append",
        default=[],
        choices=sorted(peers.PEERS),
        help="also install and run this peer",
    )
    args = parser.parse_args(arguments)
    module = importlib.import_module(BENCHMARKS[args.name])
    if unknown := set(args.what) - set(module.PARTS):
        parser.error(f"{args.name} has no part {', '.join(unknown)}; it has {', '.join(module.PARTS)}")
    if args.rounds is not None and args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}; it must be at least 1")
    with tempfile.TemporaryDirectory(prefix="lakeloop-bench-") as work:
        options = Options(args.quick, Path(work), args.data, args.rounds, args.what or module.PARTS, args.with_peer)
        try:
            figures = module.measure(options)
        except DataAbsent as error:
            print(error, file=sys.stderr)
            return 3
        except ContenderFailed as error:
            print(error, file=sys.stderr)
            return 1
    facts = machine.facts() | {"quick": args.quick}
    document = _finite({"name": args.name, "machine": facts, **figures})
    print(json.dumps(document, indent=2, allow_nan=False) if args.json else table(document))
    return 0


def table(document: dict[str, Any]) -> str:
    """The document as text: a section for each part, a line for each figure."""
    lines = []
    for section, content in document.items():
        if section == "left_out":
            lines += ["", "left out"] + [f"  {reason}" for reason in content]
        elif isinstance(content, dict):
            lines += ["", section] + [f"  {name:<64} {value}" for name, value in _flat(content)]
        else:
            lines.append(f"{section}: {content}")
    return "\n".join(lines)


def _flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in content.items():
        if isinstance(value, dict) and {"median", "low", "high"} <= set(value):
            interval = f"{_number(value['median'])}  (95 %: {_number(value['low'])} to {_number(value['high'])})"
            rows.append((prefix + name, interval))
        elif isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, _number(value)))
    return rows


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
