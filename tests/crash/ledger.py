"""Records what was sent and acknowledged, and checks that a lake holds exactly that.

The ledger generates requests from a seed: distinct JPEGs, predictions, batches, uploads and verdicts, each with an id
that the ledger chose. It records the response to each. `compare` reads a drained lake and spool and finds every
difference. It never uses the code under test to compute what an event should become.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import random
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from lake.open_lake import OpenLake
from lake.spool.spool import Spool
from lake.storage import blobs
from tests import pictures
from tests.crash.http import Answer, raw

LABELS = ("cell", "crack", "inactive", "corroded")
# Kinds of requests with their shares.
MIX = {"prediction": 60, "batch": 10, "image": 10, "named": 10, "feedback": 10}
SENT_AGAIN = 0.05


@dataclass
class Sent:
    """One event. `says` are the columns it must have in its table; `data` the image that travelled with it."""

    kind: str
    event_id: str
    image_id: str
    says: dict[str, Any]
    data: bytes | None = None
    acked: bool = False


@dataclass
class Request:
    """Sent again with the same bytes until it is answered. `cut`: the lives of the server that ended before."""

    path: str
    events: list[Sent]
    raw: bytes
    keyed: bool
    cut: list[int] = field(default_factory=list)
    first_answer: tuple[int, bytes] | None = None


@dataclass
class Ledger:
    """What one client sent and received; `wrong` lists the responses that the server should never have sent.

    Each picture has `padding` bytes behind its end that nothing compresses.
    """

    seed: int
    padding: int = 0
    events: dict[tuple[str, str], Sent] = field(default_factory=dict)
    waiting: deque[Request] = field(default_factory=deque)
    wrong: list[str] = field(default_factory=list)
    answered: int = 0
    retried_events: int = 0
    retried_known: int = 0
    # Numbers of the server's lives whose end cut a request, and of those that left a request stored but unanswered.
    life: int = 0
    cut_in: set[int] = field(default_factory=set)
    stored_in: set[int] = field(default_factory=set)

    spoiled: set[tuple[str, str]] = field(default_factory=set)  # (table, key) of rows in files that were damaged

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._pictures = [pictures.encoded(pictures.scene(seed), "JPEG") for seed in range(4)]
        self._number = 0
        self._answers: list[Sent] = []
        self._images: list[Sent] = []
        self._done: deque[Request] = deque(maxlen=500)

    @property
    def acked(self) -> int:
        return sum(event.acked for event in self.events.values())

    # Making requests ---------------------------------------------------------------------------------------

    def next(self) -> Request:
        """Returns a request that must be sent again, otherwise a new one; sometimes one that was already answered."""
        if self.waiting:
            return self.waiting.popleft()
        if self._done and self._random.random() < SENT_AGAIN:
            return self._random.choice(self._done)
        (kind,) = self._random.choices(list(MIX), list(MIX.values()))
        if (kind == "named" and not self._images) or (kind == "feedback" and not self._answers):
            kind = "prediction"
        return self.new(kind)

    def new(self, kind: str) -> Request:
        """A new request of a kind of MIX."""
        request = self._made(kind)
        for event in request.events:
            self.events[event.kind, event.event_id] = event
        return request

    def _made(self, kind: str) -> Request:
        headers = {"Idempotency-Key": self._uuid()} if self._random.random() < 0.2 else {}
        if kind == "batch":
            events = [self._answer(self._picture()) for _ in range(self._random.randint(2, 6))]
            lines = [self._told(e) | {"image_base64": base64.b64encode(e.data or b"").decode()} for e in events]
            body = "\n".join(map(json.dumps, lines)).encode()
            return self._request("/v1/predictions/batch", events, headers, "application/x-ndjson", body)
        if kind == "image":
            data = self._picture()
            event = Sent("image", _sha(data), _sha(data), {}, data)
            return self._request("/v1/images", [event], headers, "image/jpeg", data)
        if kind == "named":
            event = self._answer(None, self._random.choice(self._images).image_id)
            body = json.dumps(self._told(event) | {"image_id": event.image_id}).encode()
            return self._request("/v1/predictions", [event], headers, "application/json", body)
        if kind == "feedback":
            about = self._random.choice(self._answers)
            verdict = self._random.choice(("correct", "incorrect", "unsure"))
            says = {"prediction_id": about.event_id, "verdict": verdict, "comment": f"number {self._count()}"}
            event = Sent("feedback", self._uuid(), about.image_id, says)
            body = json.dumps({"event_id": event.event_id, **says}).encode()
            return self._request("/v1/feedback", [event], headers, "application/json", body)
        event = self._answer(self._picture())
        headers["Lakeloop-Event"] = json.dumps(self._told(event))
        assert event.data is not None
        return self._request("/v1/predictions", [event], headers, "image/jpeg", event.data)

    def _request(self, path: str, events: list[Sent], headers: dict[str, str], kind: str, body: bytes) -> Request:
        request = raw("POST", path, {**headers, "Content-Type": kind}, body)
        return Request(path, events, request, "Idempotency-Key" in headers)

    def _picture(self) -> bytes:
        return (
            self._random.choice(self._pictures)
            + f"picture {self.seed} {self._count()}".encode()
            + (self._random.randbytes(self.padding))
        )

    def _answer(self, data: bytes | None, image_id: str | None = None) -> Sent:
        says: dict[str, Any] = {
            "model": "m",
            "model_version": str(self.seed),
            "label": self._random.choice(LABELS),
            "confidence": self._random.random(),
            "metadata": {"number": self._count(), "site": self._random.choice("αβγ")},
        }
        if self._random.random() < 0.5:
            says["timestamp"] = dt.datetime.fromtimestamp(self._random.randrange(10**9), dt.UTC)
        return Sent("prediction", self._uuid(), image_id or _sha(data or b""), says, data)

    def _told(self, event: Sent) -> dict[str, Any]:
        payload = {"prediction_id": event.event_id, **event.says}
        if "timestamp" in payload:
            payload["timestamp"] = payload["timestamp"].isoformat()
        return payload

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _count(self) -> int:
        self._number += 1
        return self._number

    # Taking answers ----------------------------------------------------------------------------------------

    def unanswered(self, request: Request) -> None:
        """Records that the request may or may not be stored; it is sent again before anything new."""
        request.cut.append(self.life)
        self.cut_in.add(self.life)
        self.waiting.append(request)

    def take(self, request: Request, answer: Answer) -> None:
        """Records the server's response to the request."""
        if answer.status in (429, 503, 507) and "retry-after" in answer.headers:
            self.waiting.append(request)
            return
        spoiled = self._touches_spoiled(request)
        if not 200 <= answer.status < 300:
            if spoiled:  # what it refers to is gone, and the server says so
                return
            self.wrong.append(f"{request.path} answered {answer.status}: {answer.body[:300]!r}")
            return
        again = request.first_answer is not None
        if request.path.endswith("/batch"):
            items = answer.json()["items"]
            outcomes = [(item["code"], item.get("detail", "")) for item in items]
        else:
            outcomes = [(answer.status, "")]
        if spoiled and any(code not in (200, 201) for code, _ in outcomes):
            return
        if len(outcomes) != len(request.events) or any(code not in (200, 201) for code, _ in outcomes):
            self.wrong.append(f"{request.path} with {len(request.events)} events got {outcomes}")
            return
        if request.keyed:
            if again and (answer.status, answer.body) != request.first_answer:
                self.wrong.append(f"an Idempotency-Key gave {answer.body[:200]!r} after {request.first_answer}")
        elif not spoiled:
            self._check_news(request, [code == 200 for code, _ in outcomes], again)
        request.first_answer = (answer.status, answer.body)
        self.answered += 1
        for event in request.events:
            if not event.acked:
                event.acked = True
                if event.kind == "prediction":
                    self._answers.append(event)
                if event.kind == "image":
                    self._images.append(event)
        if not again:
            self._done.append(request)

    def _touches_spoiled(self, request: Request) -> bool:
        """Whether the request has, or refers to, a row that damage took."""
        return any(
            {
                ("samples", event.event_id),
                ("reviews", event.event_id),
                ("images", event.image_id),
                ("samples", str(event.says.get("prediction_id"))),
            }
            & self.spoiled
            for event in request.events
        )

    def acknowledge(self, request: Request) -> None:
        """Records a request as stored, in tests without a server."""
        items = json.dumps({"items": [{"code": 201}] * len(request.events)}).encode()
        self.take(request, Answer(200 if request.path.endswith("/batch") else 201, {}, items))

    def _check_news(self, request: Request, known: list[bool], again: bool) -> None:
        if again:
            if not all(known):
                self.wrong.append(f"{request.path}: an acknowledged event was stored anew")
        elif request.cut:
            self.retried_events += len(known)
            self.retried_known += sum(known)
            if any(known) and len(request.cut) == 1:
                self.stored_in.add(request.cut[0])
            if len(set(known)) > 1:
                self.wrong.append(f"{request.path}: half of a batch was stored")
        elif any(known):
            self.wrong.append(f"{request.path}: an event never sent before was known")

    def some_acked(self, count: int) -> list[Sent]:
        """Acknowledged predictions, drawn at random, of those that no damage took."""
        drawn = self._random.sample(self._answers, min(count, len(self._answers)))
        return [e for e in drawn if not {("samples", e.event_id), ("images", e.image_id)} & self.spoiled]


@dataclass
class Findings:
    """Differences between a ledger and a lake. `details` describes the first 20."""

    acked: int = 0
    lost: int = 0
    duplicates: int = 0
    torn: int = 0
    strangers: int = 0
    left: int = 0
    details: list[str] = field(default_factory=list)

    @property
    def any(self) -> bool:
        return bool(self.lost or self.duplicates or self.torn or self.strangers or self.left)

    def note(self, kind: str, detail: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.details) < 20:
            self.details.append(f"{kind}: {detail}")

    def add(self, other: Findings) -> None:
        for name in ("acked", "lost", "duplicates", "torn", "strangers", "left"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.details += other.details


def compare(lake: OpenLake, spool: Spool | None, *ledgers: Ledger) -> Findings:
    """Every difference between what was sent to a lake and what a drained lake holds, but for spoiled rows."""
    findings = Findings()
    spoiled = {key for ledger in ledgers for key in ledger.spoiled}
    sent = {name: event for ledger in ledgers for name, event in ledger.events.items()}
    acked = {name for name, event in sent.items() if event.acked}
    findings.acked = len(acked)
    pictures_sent = {e.image_id: e.data for e in sent.values() if e.data is not None}

    predictions = _rows(lake, "samples", "prediction_id", findings)
    bare = {r["image_id"] for r in predictions.values() if r["model"] is None}
    for name, row in predictions.items():
        event = sent.get(("prediction", name))
        if event is not None:
            _same(event, row, findings)
        elif row["model"] is not None or ("image", row["image_id"]) not in sent:
            findings.note("strangers", f"prediction {name}")
    reviews = _rows(lake, "reviews", "event_id", findings)
    for name, row in reviews.items():
        if ("feedback", name) in sent:
            _same(sent["feedback", name], row, findings)
        else:
            findings.note("strangers", f"review {name}")
    thumbnails = _rows(lake, "thumbnails", "image_id", findings)
    images = _rows(lake, "images", "image_id", findings)
    for name in images.keys() - pictures_sent.keys():
        findings.note("strangers", f"image {name}")
    whole = set()
    for image in blobs.images(lake, sorted(images)):
        if _sha(image.data) != image.image_id or image.data != pictures_sent.get(image.image_id, image.data):
            findings.note("torn", f"the bytes of image {image.image_id}")
        whole.add(image.image_id)
    for name in images.keys() - thumbnails.keys() - {key for table, key in spoiled if table == "thumbnails"}:
        findings.note("torn", f"image {name} has no thumbnail")

    named = {row["image_id"] for row in predictions.values()} | {row["image_id"] for row in reviews.values()}
    for name in named - whole - {key for table, key in spoiled if table == "images"}:
        findings.note("torn", f"image {name} is named by a row and is not there")
    tables = {"prediction": predictions, "feedback": reviews, "image": images}
    table_of = {"prediction": "samples", "feedback": "reviews", "image": "images"}
    audited = Counter((row["action"], row["target"]) for row in _rows(lake, "audit", "event_id", findings).values())
    audit_spoiled = any(table == "audit" for table, _ in spoiled)
    for kind, name in acked:
        if name not in tables[kind] and (table_of[kind], name) not in spoiled:
            findings.note("lost", f"{kind} {name}")
        if audited[kind, name] != 1 and not (audit_spoiled and not audited[kind, name]):
            findings.note("torn", f"{kind} {name} has {audited[kind, name]} entries in the audit log")
        lone = kind == "image" and not any(table == "samples" for table, _ in spoiled)
        if lone and name not in bare | {r["image_id"] for r in predictions.values()}:
            findings.note("lost", f"the row of image {name}")
    for kind, name in audited.keys() - sent.keys():
        findings.note("strangers", f"the audit log tells of {kind} {name}")
    if spool is not None:
        _emptied(spool, findings)
    return findings


def _rows(lake: OpenLake, table: str, key: str, findings: Findings) -> dict[str, dict[str, Any]]:
    dataset = lake.dataset(table)
    columns = [f.name for f in dataset.schema if f.name not in ("data", "jpeg")]
    rows: dict[str, dict[str, Any]] = {}
    for row in lake.scan(table, columns).to_pylist():
        if row[key] in rows:
            findings.note("duplicates", f"{table} {row[key]}")
        rows[row[key]] = row
    return rows


def _same(event: Sent, row: dict[str, Any], findings: Findings) -> None:
    says = {**event.says, "image_id": event.image_id}
    has = {name: row[name] for name in says}
    if "metadata" in has:
        has["metadata"] = json.loads(has["metadata"] or "{}")
    if has != says:
        findings.note("torn", f"{event.kind} {event.event_id} says {has}, not {says}")
    elif row.get("image_status") is not None:
        findings.note("torn", f"{event.kind} {event.event_id}: {row['image_status']}")


def _emptied(spool: Spool, findings: Findings) -> None:
    depth = spool.depth()
    if depth.events or depth.parked:
        findings.note("left", f"{depth.events} events in the spool, {depth.parked} set aside: {spool.parked.list(3)}")
    if files := sorted(path.name for path in spool.segments.iterdir()):
        findings.note("left", f"{len(files)} segments of a drained spool: {files[:3]}")


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
