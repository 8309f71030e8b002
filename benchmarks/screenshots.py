"""Takes the screenshots of the README from the running app.

    python -m benchmarks.screenshots --lake LAKE --out docs/images

`--lake` is the demo lake; only drill-down.png shows its photographs. The other pictures show a lake of seeded generated
shapes with a kind of image ("dim") whose predictions are wrong; some arrive just before the overview is taken.
docs/images/LICENCES.md lists the licences of the pictures.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from playwright.sync_api import Page

SHAPES, SIZE, WINDOW = 240, 160, (1280, 800)
KINDS = ("circle", "square", "cross")
LARGEST = 400_000  # bytes of a picture in full colour; a larger picture gets a palette
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def main() -> None:
    """Parses the options, makes the lake and takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--lake", help="the demo lake; without it drill-down.png is not changed")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="the folder of the pictures")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shapes = Path(folder) / "shapes.lake"
        first = make_shapes(Path(folder), str(shapes))
        with served(str(shapes)) as url, window(options.chromium) as page:
            shoot(page, f"{url}/search?like={first}&k=50", ".tile img", options.out / "search.png")
            arrive(url)
            shoot(page, url, ".live .faces img", options.out / "overview.png")
    if options.lake:
        with served(options.lake) as url, window(options.chromium) as page:
            shoot(page, f"{url}/drilldown?sort=error", ".card img", options.out / "drill-down.png")


def make_shapes(folder: Path, uri: str) -> str:
    """Makes a lake of drawings with predictions, labels and vectors; returns an image id to search from."""
    import lake
    from embeddings.backfill import backfill
    from embeddings.clusters import drilldown
    from embeddings.embedders import embedder
    from lake import ids
    from lake.ingest import ingest

    rng = random.Random(7)
    rows, names = [], []
    for number in range(SHAPES):
        kind, dim = KINDS[number % 3], number % 8 == 5
        data = drawing(rng, kind, dim)
        path = folder / "images" / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        if rng.random() < 0.45:
            known = folder / "labelled" / kind / path.name
            known.parent.mkdir(parents=True, exist_ok=True)
            known.write_bytes(data)
        predicted = "square" if dim and rng.random() < 0.9 else kind if rng.random() < 0.93 else rng.choice(KINDS)
        confidence = rng.uniform(0.86, 0.99) if dim else min(0.99, rng.betavariate(9, 1.6) * 0.5 + 0.5)
        rows.append(
            {
                "image": path.name,
                "model": "shapes",
                "model_version": "1",
                "label": predicted,
                "confidence": round(confidence, 4),
                "timestamp": f"2026-09-{1 + number * 28 // SHAPES:02}T{number % 24:02}:00:00Z",
                "light": "dim" if dim else "bright",
            }
        )
        names.append(ids.image_id(data))
    log = folder / "images" / "log.jsonl"
    log.write_text("\n".join(json.dumps(row) for row in rows))
    opened = lake.create(uri, embedders=["efficientnet-lite0"], columns={"light": "string"})
    ingest.ingest(opened, log)
    ingest.ingest(opened, folder / "labelled", "imagefolder")
    record = opened.embedders()[0]
    backfill.backfill(opened, record, embedder.for_lake(opened, record))
    drilldown.cluster(opened, method="kmeans", k=6, seed=0)
    return names[3]


def drawing(rng: random.Random, kind: str, dim: bool) -> bytes:
    """A PNG of one coloured shape on a dark background; dim images have little contrast."""
    ground = tuple(rng.randrange(16, 60) for _ in range(3))
    low, high = (60, 90) if dim else (130, 250)
    colour = tuple(rng.randrange(low, high) for _ in range(3))
    image = Image.new("RGB", (SIZE, SIZE), ground)
    draw, half = ImageDraw.Draw(image), rng.randrange(26, 56)
    x, y = (rng.randrange(half + 6, SIZE - half - 6) for _ in range(2))
    box = (x - half, y - half, x + half, y + half)
    if kind == "circle":
        draw.ellipse(box, fill=colour)
    elif kind == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.line(box, fill=colour, width=14)
        draw.line((x - half, y + half, x + half, y - half), fill=colour, width=14)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def arrive(url: str) -> None:
    """Logs 24 predictions and feedback on some of them; returns once the app shows them."""
    from lake.client import Client

    rng = random.Random(11)
    with Client(url, spill=None) as client:
        for number in range(24):
            kind, dim = KINDS[number % 3], number % 8 == 5
            sent = client.log(
                drawing(rng, kind, dim), model="shapes", model_version="1", label="square" if dim else kind,
                confidence=rng.uniform(0.86, 0.99), timestamp="2026-09-28T22:00:00Z", light="dim" if dim else "bright",
            )  # fmt: skip
            if dim and kind == "cross":
                client.feedback(sent, "incorrect", "We ordered crosses. This is one.", "T-1024")
            elif dim and kind == "circle":
                client.feedback(sent, "incorrect", "Wrong again, and it is always the dark ones.", "T-1031")
            elif number % 6 == 0:
                client.feedback(sent, "correct")
    time.sleep(5)  # until they are drained


@contextmanager
def served(uri: str) -> Iterator[str]:
    """The app on this lake, in its own process; yields its URL."""
    start = [sys.executable, "-m", "search_app.cli.main", "serve", "--lake", uri, "--port", "0"]
    with subprocess.Popen(start, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = next((re.search(r"http://\S+", line) for line in server.stderr if "http://" in line), None)
            if url is None:
                raise SystemExit(f"the app did not start over {uri}")
            yield url[0]
        finally:
            server.terminate()


@contextmanager
def window(chromium: str) -> Iterator[Page]:
    """A light browser window of the size of the pictures."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        size = {"width": WINDOW[0], "height": WINDOW[1]}
        yield browser.new_page(viewport=size, color_scheme="light")  # type: ignore[arg-type]
        browser.close()


def shoot(page: Page, url: str, ready: str, file: Path) -> None:
    """Saves the page at `url` as a small PNG once selector `ready` appears."""
    page.goto(url)
    page.locator(ready).first.wait_for(timeout=60_000)
    page.wait_for_timeout(2_500)  # until thumbnails are loaded and the running mark is gone
    taken = Image.open(io.BytesIO(page.screenshot()))
    taken.convert("RGB").save(file, optimize=True)
    if file.stat().st_size > LARGEST:
        taken.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    sys.stderr.write(f"{file}  {file.stat().st_size // 1024} KB\n")


if __name__ == "__main__":
    main()
