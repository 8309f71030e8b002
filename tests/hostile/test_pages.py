"""Stored markup in a real browser: two hundred texts in every field that others write, then every page of the app.

They come in through the HTTP API, a prediction log and a folder of classes. No dialog may open, no other host be
asked, no element appear that a text brought along; and the texts must be there to be read, letter by letter.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import httpx
import pytest
from PIL import Image, PngImagePlugin

from embeddings.backfill.backfill import backfill
from embeddings.clusters.drilldown import cluster
from lake import slices
from lake.errors import BadInput
from lake.ingest.ingest import ingest
from lake.open_lake import OpenLake
from search_app.ui.text.markdown import escape
from tests.conftest import MakeLake, Say
from tests.crash.service import ROOT
from tests.embeddings.colour import MeanColour
from tests.embeddings.conftest import installed
from tests.hostile.conftest import Serve
from tests.hostile.payloads import FOREIGN, payloads
from tests.pictures import encoded, flat
from tests.search_app.api_client import NDJSON, event, in_base64
from tests.search_app.browsing import CHROMIUM, browser_context

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Dialog, Page

__all__ = ["installed"]

MISSING = [name for name in ("playwright", "streamlit") if importlib.util.find_spec(name) is None]
MISSING += [] if Path(CHROMIUM).exists() else [CHROMIUM]
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")

SETTLED = '.stApp[data-test-script-state="notRunning"]'
PATIENCE = 90_000
OFTEN = 8  # as many labelled answers as make a group on the Overview
# Looks into shadow roots, too. Streamlit's own scripts have a src on this host.
LOOK = """(foreign) => {
  const found = [];
  const addresses = ["href", "src", "action", "data", "poster", "background", "srcdoc", "xlink:href"];
  const never = ["object", "embed", "marquee", "xmp", "plaintext", "xss", "base"];
  const leads = (value) => { try {
    const { protocol, origin } = new URL(value, location);
    if (/^https?:$/.test(protocol)) return origin !== location.origin;
    return !value.startsWith("data:image/") && protocol !== "blob:";
  } catch { return false; } };
  const walk = (root) => { for (const one of root.querySelectorAll("*")) {
    for (const { name, value } of one.attributes) {
      if (name.startsWith("on") || (addresses.includes(name) && leads(value)))
        found.push(`${one.localName} ${name}=${value}`);
    }
    if (one.localName === "script" && !one.src && /taken|alert/.test(one.textContent)) found.push("script");
    if (one.localName === "style" && one.textContent.includes(foreign)) found.push("style");
    if (never.includes(one.localName)) found.push(one.localName);
    if (one.shadowRoot) walk(one.shadowRoot);
  } };
  walk(document);
  if (window.taken !== undefined) found.push(`taken=${window.taken}`);
  return found;
}"""
TEXT = """() => {
  const parts = [];
  const walk = (root) => { parts.push(root.textContent); for (const one of root.querySelectorAll("*"))
    if (one.shadowRoot) walk(one.shadowRoot); };
  walk(document.body);
  return parts.join("\\n");
}"""


def picture(number: int, text: str) -> bytes:
    """A PNG of its own colour that says the text in every place a picture can."""
    info = PngImagePlugin.PngInfo()
    for name in ("Title", "Comment", "XML:com.adobe.xmp"):
        info.add_itxt(name, text.replace("\0", ""))
    exif = Image.Exif()
    exif[0x010E] = text.replace("\0", "")
    colour = (40 + number % 6 * 40, 40 + number // 6 % 6 * 40, 40 + number // 36 * 20)
    out = io.BytesIO()
    flat(colour, 12, 10).save(out, "PNG", pnginfo=info, exif=exif)
    return out.getvalue()


def file_name(text: str) -> str:
    return text.replace("/", "_").replace("\0", "_")


def fill(lake: OpenLake, folder: Path, client: httpx.Client) -> None:
    """Every text in every field: by the API, by a log, and as the name of a class and of a file."""
    texts = payloads()
    answers: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        answers.append(
            event(
                image_base64=in_base64(picture(number, text)), label=text, model=text, model_version=text,
                source=text, shift=text, confidence=0.9, scores={text: 0.9, "other": 0.1},
                boxes=[{"label": text, "bbox": [1, 1, 5, 5]}], metadata={text: text, "nested": {text: [text]}},
            )
        )  # fmt: skip
        if number % 20 == 0:  # often enough to be a group
            answers += [
                event(image_base64=in_base64(picture(number * 10 + i + 300, text)), label=text, model="m", shift=text)
                for i in range(OFTEN)
            ]
    for start in range(0, len(answers), 100):
        body = "\n".join(json.dumps(prediction) for prediction in answers[start : start + 100])
        items = client.post("/v1/predictions/batch", content=body, headers=NDJSON).json()["items"]
        refused = [item for item in items if item["code"] != 201]
        # A blank label is refused.
        assert len(refused) <= 1, refused
    for prediction in answers[: len(texts)]:
        feedback = {
            "prediction_id": prediction["prediction_id"],
            "verdict": "incorrect",
            "comment": prediction["label"],
        }
        client.post("/v1/feedback", json=feedback | {"ticket": prediction["label"][:1_000]})
    while client.get("/v1/status").json()["spool"]["events"]:
        time.sleep(0.2)
    log = []
    for number, text in enumerate(texts):
        name = f"{number} {file_name(text)[:50]}.png"
        with suppress(OSError):  # a name this file system does not take
            (folder / name).write_bytes(encoded(flat((number, 255 - number, 30), 9, 9)))
            log.append({"image": name, "label": text, "model": text, "shift": text})
    (folder / "log.jsonl").write_text("\n".join(json.dumps(row) for row in log))
    report = ingest(lake, folder / "log.jsonl", "table", workers=1)
    assert report.predictions_new > 190
    classes = folder / "classes"
    for number, text in enumerate(texts[::20]):
        target = classes / file_name(text)[:80]
        target.mkdir(parents=True)
        for i in range(OFTEN):
            (target / f"{i}.png").write_bytes(picture(number * 200 + i + 300, texts[number * 20]))
    assert ingest(lake, classes, "imagefolder", workers=1).labels_new > 50


@pytest.fixture
def context() -> Iterator[BrowserContext]:
    with browser_context(1400, 1200) as opened:
        opened.set_default_timeout(PATIENCE)
        yield opened


class Visitor:
    """A page that records everything that must not happen."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.page: Page = context.new_page()
        self.dialogs: list[str] = []
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.found: list[str] = []
        self.visited = 0
        self.texts: set[str] = set()
        self.page.on("dialog", self._dismiss)
        self.page.on("request", lambda request: self._ask(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self._hear(line.text))
        self.page.on("popup", lambda popup: self.foreign.append(popup.url))

    def visit(self, path: str, wait: str = SETTLED) -> None:
        self.page.goto(self.url + path)
        self.page.locator(wait).first.wait_for(state="attached")
        self.page.wait_for_timeout(300)  # components draw a moment after
        self.look()

    def look(self) -> None:
        """What is on the page now."""
        self.visited += 1
        self.found += self.page.evaluate(LOOK, FOREIGN)
        shown = self.page.evaluate(TEXT)
        self.texts |= {text for text in payloads() if text.strip() and text.strip() in shown}

    def check(self) -> None:
        assert (self.dialogs, self.foreign, self.errors, self.found) == ([], [], [], [])

    def _dismiss(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _ask(self, url: str) -> None:
        if not url.startswith((self.url, self.url.replace("http", "ws"), "data:image/", "blob:")):
            self.foreign.append(url)

    def _hear(self, line: str) -> None:
        if "Content Security Policy" in line or FOREIGN in line:
            self.errors.append(line)


PARAMETERS = (
    "label", "model", "where", "q", "like", "open", "sel", "slice", "node", "tree", "at", "text", "by", "k", "conf",
    "from", "to",
)  # fmt: skip
HOSTILE = (
    "<img src=x onerror=alert(window.taken=1)>",
    f"[x](http://{FOREIGN}/)",
    "javascript:alert(1)",
    "'\"><script>",
)


def _visit(lake: OpenLake, visitor: Visitor, tree: str, texts: int) -> None:
    """Every page as it is, then as somebody else's link would open it: `texts` hostile ones in every parameter."""
    rows = lake.sql("SELECT image_id, label FROM samples WHERE label LIKE '%script>%'").to_pylist()
    slices.create(lake, "some", ids=[row["image_id"] for row in rows])
    visitor.visit("/overview")
    visitor.visit("/search?k=1000", ".tile")
    for row in rows[: 2 * texts]:
        visitor.visit(f"/search?{urlencode({'label': row['label'], 'open': row['image_id']})}", ".detail .facts")
    visitor.visit(f"/search?like={rows[0]['image_id']}&slice=some@1", ".tile")
    visitor.visit(f"/drilldown?tree={tree}", ".card")
    visitor.visit(f"/drilldown?tree={tree}&at=0")
    for text in HOSTILE[:texts]:
        for page in ("search", "overview", "drilldown"):
            visitor.visit(f"/{page}?{urlencode(dict.fromkeys(PARAMETERS, text))}")
        visitor.visit(f"/search?{urlencode({'label': text, 'where': f'label = {text!r}'})}")
        visitor.visit(f"/{quote(text, safe='')}")


def _browse(lake: OpenLake, folder: Path, serve: Serve, context: BrowserContext, say: Say, texts: int) -> None:
    service = serve(lake, ui=True)
    url = f"http://127.0.0.1:{service.port}"
    with httpx.Client(base_url=url, timeout=60) as client:
        fill(lake, folder, client)
    backfill(lake, lake.embedders()[0], MeanColour(), workers=1)
    visitor = Visitor(context, url)
    _visit(lake, visitor, cluster(lake, method="kmeans", k=8).tree, texts)
    visitor.check()
    visitor.page.set_content(f"<svg onload=1></svg><a href=//{FOREIGN}></a><object></object>")
    assert len(visitor.page.evaluate(LOOK, FOREIGN)) == 3  # the check itself works
    assert "Traceback" not in service.output(), service.output()[-3_000:]
    summary = f"{visitor.visited} pages with {len(payloads())} texts in every field, {len(visitor.texts)} of them shown"
    say(f"stored markup: {summary}; 0 dialogs, 0 requests to other hosts, 0 elements, 0 errors")
    assert len(visitor.texts) > 100


@needs_browser
def test_no_text_becomes_more_than_text_on_any_page(
    make_lake: MakeLake, installed: None, tmp_path: Path, serve: Serve, context: BrowserContext, say: Say
) -> None:
    lake = make_lake("hostile", embedders=["mean-colour"], columns={"shift": "string"})
    _browse(lake, tmp_path, serve, context, say, 1)


@needs_browser
@pytest.mark.soak
def test_no_text_becomes_more_than_text_however_a_page_is_opened(
    make_lake: MakeLake, installed: None, tmp_path: Path, serve: Serve, context: BrowserContext, say: Say
) -> None:
    lake = make_lake("hostile", embedders=["mean-colour"], columns={"shift": "string"})
    _browse(lake, tmp_path, serve, context, say, len(HOSTILE))


def test_a_slice_takes_no_name_that_could_be_markup(lk: OpenLake) -> None:
    for text in payloads():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
            with pytest.raises(BadInput, match="slice name"):
                slices.create(lk, text, where="true")


@pytest.mark.parametrize("text", ["http://a.example/", "[x](HTTPS://a.example)", "www.a.example", "ann@a.example"])
def test_no_address_in_a_text_becomes_a_link(text: str) -> None:
    """Streamlit's Markdown looks for addresses after it has resolved the escapes."""
    resolved = re.sub(r"\\(.)", r"\1", escape(text))
    assert resolved.replace("\u2060", "") == text
    assert not re.search(r"https?://|www\.|[-.\w+]@", resolved, re.IGNORECASE | re.ASCII)


def test_the_id_of_a_slice_or_a_model_has_no_invisible_letters() -> None:
    """People copy it into commands."""
    assert escape("held@1 is now frozen") == "held@1 is now frozen"


def test_nothing_in_the_app_asks_streamlit_to_trust_a_text() -> None:
    code = {path: path.read_text() for path in (ROOT / "search_app").rglob("*.py")}
    scripts = {path: path.read_text() for path in (ROOT / "search_app").rglob("*.js")}
    assert len(code) > 30
    assert len(scripts) >= 4
    for path, text in code.items():
        assert "unsafe_allow" not in text, path
        # Only files and constants of the app are inserted as HTML.
        for call in re.findall(r"\bst\.(?:html|iframe|components)\b.*", text):
            assert re.match(r"st\.html\((?:[A-Z_]+\)|'[^'{]*'\))|st\.components", call), (path, call)
    for path, text in scripts.items():
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert word not in text, (path, word)
