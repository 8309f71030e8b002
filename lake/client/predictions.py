"""What a model returned, read as an answer; and the two shortest ways to log one: a decorator and a `with` block.

Whatever the wrapped function returns or raises passes through untouched, and so does the time it is called at: what
cannot be logged is reported by the client, never to the caller. It knows nothing of how events travel.
"""

from __future__ import annotations

import functools
import inspect
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar, cast

from lake.client.events import Image, Unfit

P = ParamSpec("P")
R = TypeVar("R")

# What a mapping is read by; its other entries become metadata.
FIELDS = ("label", "confidence", "scores", "boxes", "masks", "task", "prediction_id", "timestamp", "source", "metadata")
# Log(image, fields): what both ways end in. Reject(fields, reason): what they could not make sense of.
Log = Callable[[Image, dict[str, Any]], object]
Reject = Callable[[dict[str, Any], str], object]


@dataclass
class Answer:
    """One answer on its way: set what the model said, inside the `with` block. It is logged when the block ends well.

    `latency_ms` is the block's own time unless it is set. When the block raises, nothing is logged.
    """

    label: str | None = None
    confidence: float | None = None
    scores: Any = None
    boxes: Any = None
    masks: Any = None
    latency_ms: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    prediction_id: str = field(default_factory=lambda: str(uuid.uuid4()))


class AnswerBlock:
    """The context manager behind `Client.answer`, for `with` and `async with`."""

    def __init__(self, log: Log, reject: Reject, image: Image, fields: Mapping[str, Any]) -> None:
        self._log = log
        self._reject = reject
        self._image = image
        self._fields = dict(fields)
        self._answer = Answer()
        if fields.get("prediction_id") is not None:
            self._answer.prediction_id = str(fields["prediction_id"])
        self._began = 0.0

    def __enter__(self) -> Answer:
        self._began = time.perf_counter()
        return self._answer

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        a = self._answer
        if a.latency_ms is None:
            a.latency_ms = (time.perf_counter() - self._began) * 1000
        said = {name: value for name, value in vars(a).items() if value is not None and name != "metadata"}
        said = {**self._fields, **said}
        try:
            self._log(self._image, {**said, "metadata": {**said.get("metadata", {}), **a.metadata}})
        except Exception as error:
            self._reject(said, f"{type(error).__name__}: {error}")

    async def __aenter__(self) -> Answer:
        return self.__enter__()

    async def __aexit__(self, kind: object, *_: object) -> None:
        self.__exit__(kind)


def logged(
    log: Log,
    reject: Reject,
    fields: Mapping[str, Any],
    image: str | None,
    answer: Callable[[Any], Any] | None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The decorator behind `Client.logged`; see there. Raises TypeError for what is no function that returns once."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = getattr(function, "__qualname__", repr(function))
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{name} is a generator; log each answer with client.answer() instead")
        signature = inspect.signature(function)
        if image is not None and image not in signature.parameters:
            raise TypeError(f"{name} has no parameter {image!r}")

        def tell(arguments: tuple[Any, ...], named: dict[str, Any], result: Any, began: float) -> None:
            said: dict[str, Any] = {**fields, "latency_ms": (time.perf_counter() - began) * 1000}
            try:
                found = read_answer(result if answer is None else answer(result))
                if found is not None:
                    asked = _image_of(signature, image, arguments, named)
                    metadata = {**fields.get("metadata", {}), **found.pop("metadata", {})}
                    log(asked, {**said, **found, "metadata": metadata})
            except Exception as error:
                reason = str(error) if isinstance(error, Unfit) else f"{type(error).__name__}: {error}"
                reject(said, f"{name}: {reason}")

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*arguments: P.args, **named: P.kwargs) -> Any:
                began = time.perf_counter()
                result = await function(*arguments, **named)
                tell(arguments, named, result, began)
                return result

            return cast("Callable[P, R]", awaited)

        @functools.wraps(function)
        def called(*arguments: P.args, **named: P.kwargs) -> R:
            began = time.perf_counter()
            result = function(*arguments, **named)
            tell(arguments, named, result, began)
            return result

        return called

    return decorate


def read_answer(result: Any) -> dict[str, Any] | None:
    """The fields of an event, of what a model returned; None for None. Raises Unfit for anything it cannot tell.

    "cat" is a label; ("cat", 0.9) label and confidence; {"cat": 0.9, "dog": 0.1} scores; {"label": "cat", ...} fields.
    """
    match result:
        case None:
            return None
        case str():
            return {"label": result}
        case (str() as label, confidence) if _number(confidence):
            return {"label": label, "confidence": confidence}
        case Mapping() if result and "label" not in result and all(_number(value) for value in result.values()):
            return {"scores": dict(result)}
        case Mapping():
            found = {name: result[name] for name in FIELDS if name in result}
            extra = {name: value for name, value in result.items() if name not in FIELDS}
            inner = found.get("metadata")
            return found | {"metadata": {**extra, **(inner if isinstance(inner, Mapping) else {})}}
    raise Unfit(
        f"returned a {type(result).__name__}, which is no answer: return a label, (label, confidence), scores or a "
        "mapping of fields, or give logged(answer=...) a function that makes one of it"
    )


def _number(value: Any) -> bool:
    """Numbers, and the scalars of numpy and torch. A list or an array is none."""
    if isinstance(value, bool | str | bytes):
        return False
    return isinstance(value, int | float) or (hasattr(value, "__float__") and getattr(value, "shape", None) == ())


def _image_of(
    signature: inspect.Signature, name: str | None, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> Image:
    if name is not None:
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        return cast("Image", bound.arguments[name])
    for value in (*arguments, *named.values()):
        if isinstance(value, bytes | bytearray | memoryview | os.PathLike):
            return value
    raise Unfit("no argument is an image file's bytes or a path; name the right one: logged(image=...)")
