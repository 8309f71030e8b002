"""Hostile events for every door: too large, too deep, too wide, odd text and numbers, Arrow that expands, bad images.

Each says how the door refuses it. Where it says None, the door may take it: then the lake must have it, with the reason
in `image_status` if its image does not decode.
"""

from __future__ import annotations

import functools
import io
import json
import pickle
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from tests.hostile import files
from tests.pictures import encoded, noise
from tests.search_app.api_client import in_base64, named

Door = Literal["image", "json", "line", "stream", "client"]


# Replaced by `Hostile.with_ids`.
OWN = "00000000-0000-4000-8000-00000000face"
OTHER = "00000000-0000-4000-8000-0000000000fe"
IMAGE = encoded(noise(77, 12, 8))


class Hostile(NamedTuple):
    """`content` by door: (event header, image), a JSON body, a line of NDJSON, an Arrow stream, arguments of `log`.

    `reason` is how the door refuses it, None if it may take it; of the client, a word of its reason.
    """

    name: str
    door: Door
    content: Any
    reason: str | None

    def with_ids(self, own: str, other: str) -> Hostile:
        """The same event with the id `own`; `other` is the id of a sound event that was sent before."""
        match self.content:
            case bytes():
                content: Any = self.content.replace(OWN.encode(), own.encode()).replace(OTHER.encode(), other.encode())
            case dict():
                content = self.content | {"prediction_id": own}
            case event, image:
                content = event | {"prediction_id": own}, image
        return self._replace(content=content)


@functools.cache
def hostile_events() -> list[Hostile]:
    """One of each kind."""
    return [*_lines(), *_single(), *_streams(), *_logged()]


@functools.cache
def hostile_images() -> list[Hostile]:
    """Every image of `files.bombs`: some are refused, some kill a decoder, some are sound but look odd."""
    return [Hostile(name, "image", (_event(), data), None) for name, data in files.bombs().items()]


def _event(own: str = OWN, **more: Any) -> dict[str, Any]:
    return {"prediction_id": own, "model": "m", "label": "hostile", **more}


def _lines() -> Iterator[Hostile]:
    def line(text: str, id: str = OWN) -> bytes:
        start = json.dumps(_event(id, image_base64=in_base64(IMAGE)))[:-1]
        return f"{start}, {text}}}".encode("utf-8", "surrogatepass")

    box = '{"bbox":[9e15,9e15,9e15,9e15]}'
    texts: dict[str, tuple[str, str | None]] = {
        "28 MiB of text": (f'"note":"{"x" * (28 << 20)}"', "too_large"),
        "4 MiB of text": (f'"note":"{"x" * (4 << 20)}"', "too_large"),
        "4 MiB once written": (f'"boxes":[{",".join([box] * 40_000)}]', "invalid"),
        "200 levels": (f'"x":{"[" * 200}{"]" * 200}', "invalid"),
        "20,000 levels": (f'"x":{"[" * 20_000}{"]" * 20_000}', "not_json"),
        "110,000 lists": (f'"x":[{",".join(["[]"] * 110_000)}]', "too_complex"),
        "5,000 fields": (f'"x":{json.dumps(dict.fromkeys(range(5_000), 0))}', None),
        "110,000 scores": (f'"scores":[{",".join(["0"] * 110_000)}]', "invalid"),
        "a mask of 10^12 pixels": ('"masks":[{"size":[1000000,1000000],"counts":[1000000000000]}]', "invalid"),
        "a mask in a file": ('"masks":"/etc/passwd"', "invalid"),
        "half a surrogate pair": ('"label":"\\ud800","\\udc00":["\\udfff"]', "invalid"),
        "half a surrogate pair as bytes": ('"label":"\ud800"', "invalid"),
        "NUL": ('"label":"\\u0000","a\\u0000b":"\\u0000"', None),
        "escapes of a terminal": ('"label":"\\u001b]0;a\\u0007\\u202e"', None),
        "an infinite confidence": ('"confidence":1e999', "invalid"),
        "a confidence that is not a number": ('"confidence":NaN', None),
        "a negative confidence": ('"confidence":-0.1', "invalid"),
        "5,000 digits": (f'"x":{"9" * 5_000}', "not_json"),
        "a moment after all others": ('"timestamp":1e300', "invalid"),
    }
    for name, (text, reason) in texts.items():
        yield Hostile(name, "line", line(text), reason)
    yield Hostile("an id of another event", "line", line('"x":1', OTHER), "contradiction")
    yield Hostile("an id that is none", "line", line('"x":1', "../../etc"), "invalid")
    yield Hostile("half a line", "line", line('"x":1')[:-9], "not_json")
    yield Hostile("bytes that are no text", "line", line('"x":1') + b"\xff", "not_json")
    yield Hostile("no object", "line", b"[" + line('"x":1') + b"]", "not_json")
    yield Hostile("an unknown image", "line", json.dumps(_event(image_id="0" * 64)).encode(), "unknown_image")
    yield Hostile("no Base64", "line", json.dumps(_event(image_base64="%%%")).encode(), "no_image")
    bomb = json.dumps(_event(image_base64=in_base64(files.png(50_000, 50_000, 8, 2, b""))))
    yield Hostile("2,500 megapixels", "line", bomb.encode(), "unreadable_image")


def _single() -> Iterator[Hostile]:
    empty = files.png(6_300, 6_300, 16, 6, b"")
    yield Hostile("half an image", "image", (_event(), IMAGE[:200]), None)
    yield Hostile("an empty image of 40 megapixels", "image", (_event(), empty), None)
    yield Hostile("a pickle", "image", (_event(), pickle.dumps("a")), "unreadable_image")
    yield Hostile("9 KiB of header", "image", (_event(note="x" * 9_000), IMAGE), "event_too_large")
    yield Hostile("the id of another image", "image", (_event(image_id="0" * 64), IMAGE), "other_image")
    whole = json.dumps(_event(image_id=named(IMAGE), note="x" * (4 << 20))).encode()
    yield Hostile("a body of 4 MiB", "json", whole, "too_large")
    yield Hostile("a body of 20,000 levels", "json", b'{"x":' * 20_000, "not_json")
    yield Hostile("an unknown image", "json", json.dumps(_event(image_id="0" * 64)).encode(), "unknown_image")


def arrow(table: pa.Table, **options: Any) -> bytes:
    """The table as a stream."""
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return out.getvalue()


def _streams() -> Iterator[Hostile]:
    def stream(note: pa.Array, count: int = 1, **options: Any) -> bytes:
        columns = {name: [text] * count for name, text in _event().items()}
        return arrow(pa.table({**columns, "image": [IMAGE] * count, "note": note}), **options)

    zeros = np.zeros(26 << 20, "u1").tobytes().decode()
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), ["x" * (1 << 20)])
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], "i4")), pa.py_buffer(b"\xff\xfe"))
    yield Hostile("a stream that expands", "stream", stream(pa.array([zeros] * 3), 3, compression="zstd"), "not_arrow")
    yield Hostile("a row that expands", "stream", stream(pa.array([zeros]), compression="zstd"), "too_large")
    yield Hostile("a value in every row", "stream", stream(shared, 100), "not_arrow")
    yield Hostile("text that is not UTF-8", "stream", stream(broken), "not_arrow")
    yield Hostile("half a stream", "stream", stream(pa.array(["x"]))[:-90], "not_arrow")
    yield Hostile("NUL in a stream", "stream", stream(pa.array(["\0"])), None)
    pieces = stream(pa.array([[[]] * 5_000], pa.list_(pa.list_(pa.int8()))))
    yield Hostile("lists in a stream", "stream", pieces, None)


def _logged() -> Iterator[Hostile]:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    arguments: dict[str, tuple[dict[str, Any], str | None]] = {
        "5 MiB": ({"note": "x" * (5 << 20)}, "without its image"),
        "300 levels": ({"note": deep}, "nested"),
        "half a surrogate pair": ({"label": "\ud800"}, "half a surrogate pair"),
        "an infinite number": ({"note": float("inf")}, None),
        "an infinite confidence": ({"confidence": 7.0}, "confidence"),
        "an integer of 5,000 digits": ({"note": 9**5_000}, "JSON"),
        "no image": ({"image": b"GIF89a"}, "broken header"),
        "a file that is not there": ({"image": "/nowhere/a.png"}, "could not be read"),
    }
    for name, (more, reason) in arguments.items():
        fields = {"image": IMAGE, "prediction_id": OWN, "model": "m", "label": "hostile", **more}
        yield Hostile(f"the client: {name}", "client", fields, reason)
