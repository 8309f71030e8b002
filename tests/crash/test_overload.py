"""Load above the admitted rate: the server accepts up to the rate, refuses the rest at once, and does not grow."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import pictures
from tests.conftest import MakeLake, Say
from tests.crash.service import ROOT, Service

RATE = 200
# What the server may hold beyond what it held before the load.
MOST_BYTES = 150 << 20
GENERATOR = """
import json, sys
from pathlib import Path
from benchmarks.ingest.load import open_loop, predictions
port, rate, seconds, image = sys.argv[1:]
request = predictions([Path(image).read_bytes()])
print(json.dumps(open_loop(int(port), float(rate), float(seconds), request).figures()))
"""


@pytest.mark.parametrize(
    ("shares", "seconds"),
    [((2, 10), 2.0), pytest.param((0.5, 0.75, 1, 1.5, 2, 3, 5, 10), 10.0, marks=pytest.mark.soak)],
)
def test_beyond_its_rate_a_server_sheds_and_keeps_its_goodput(
    make_lake: MakeLake, tmp_path: Path, shares: tuple[float, ...], seconds: float, say: Say
) -> None:
    """Requests come at even distances whether they are answered or not, from half the rate to ten times as many."""
    image = tmp_path / "image.jpg"
    image.write_bytes(pictures.encoded(pictures.scene(1), "JPEG"))
    points, before, most = asyncio.run(curve(Path(make_lake().uri), image, shares, seconds))
    goodput = {share: point["accepted_per_second"] for share, point in points.items()}
    peak = max(goodput.values())
    shown = ", ".join(f"{share:g}x: {goodput[share]:.0f}/s" for share in shares)
    worst = points[max(shares)]
    say(
        f"admission {RATE}/s: {shown} accepted; at {max(shares):g}x {goodput[max(shares)] / peak:.2f} of the peak, "
        f"{worst['responses_per_second']:.0f} responses/s, p99 of the accepted {worst['p99_ms']:.0f} ms; "
        f"{worst['late']} of the generator's requests were late, it used {worst['generator_cores']:.2f} cores; "
        f"the server had {before >> 20} MiB and {most >> 20} at most"
    )
    for share, point in points.items():
        assert set(point["statuses"]) <= {"201", "429", "503"}, point
        assert point["without_retry_after"] == 0
        assert point["broken"] == 0
        if share > 1:
            assert goodput[share] >= (0.9 if seconds > 5 else 0.5) * peak  # a loaded machine has bad seconds
            assert goodput[share] <= 1.25 * RATE  # a quarter of a second's events may come at once
            assert point["statuses"]["429"] > 0
    assert most - before < MOST_BYTES


async def curve(
    lake: Path, image: Path, shares: tuple[float, ...], seconds: float
) -> tuple[dict[float, dict[str, Any]], int, int]:
    """The generator's measurements at each share of the rate, and the server's resident bytes before and at most."""
    service = await Service(lake, ["--max-rate", str(RATE)]).ready()
    points = {}
    await offered(service, image, RATE / 2, 1.0)
    before = most = service.rss()
    for share in shares:
        points[share], largest = await offered(service, image, RATE * share, seconds)
        most = max(most, largest)
    await service.stop()
    return points, before, most


async def offered(service: Service, image: Path, rate: float, seconds: float) -> tuple[dict[str, Any], int]:
    words = [sys.executable, "-c", GENERATOR, str(service.port), str(rate), str(seconds), str(image)]
    most = 0
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) as generator:
        deadline = time.monotonic() + 10 * seconds + 60
        while generator.poll() is None:
            assert time.monotonic() < deadline
            most = max(most, service.rss())
            await asyncio.sleep(0.1)
        assert generator.stdout is not None
        figures: dict[str, Any] = json.loads(generator.stdout.read())
    return figures, most
