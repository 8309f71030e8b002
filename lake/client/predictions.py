"""Reads what a model returns as a prediction, and logs predictions with a decorator or a `with` block.

The results and exceptions of the wrapped function pass through unchanged. The client reports data that cannot be
logged; the caller never sees an error. The module knows nothing of how events travel.
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

# The fields that a mapping may have; its other entries become metadata.
FIELDS = ("label", "confidence", "scores", "boxes", "masks", "task", "prediction_id", "timestamp", "source", "metadata")
# Other names of two of them, which models return; the server has the same.
OTHER_NAMES = {
    "label": (
        *("prediction", "predicted", "predicted_label", "predicted_class", "pred", "pred_label", "pred_class"),
        *("y_pred", "class", "class_name", "class_label"),
    ),
    "confidence": ("conf", "score", "probability", "prob"),
}
_FIELD_OF = {name: field for field, names in OTHER_NAMES.items() for name in (field, *names)}
# Log(image, fields) logs a prediction. Reject(fields, reason) reports one that could not be read.
Log = Callable[[Image, dict[str, Any]], object]
Reject = Callable[[dict[str, Any], str], object]


@dataclass
class LoggedPrediction:
    """A prediction to fill in inside the `with` block. It is logged at the end, unless the block raises.

    `latency_ms` is the duration of the block unless you set it.
    """

    label: str | None = None
    confidence: float | None = None
    scores: Any = None
    boxes: Any = None
    masks: Any = None
    latency_ms: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    prediction_id: str = field(default_factory=lambda: str(uuid.uuid4()))


class PredictionBlock:
    """The context manager behind `Client.prediction`, for `with` and `async with`."""

    def __init__(self, log: Log, reject: Reject, image: Image, fields: Mapping[str, Any]) -> None:
        self._log = log
        self._reject = reject
        self._image = image
        self._fields = dict(fields)
        self._prediction = LoggedPrediction()
        if fields.get("prediction_id") is not None:
            self._prediction.prediction_id = str(fields["prediction_id"])
        self._started = 0.0

    def __enter__(self) -> LoggedPrediction:
        self._started = time.perf_counter()
        return self._prediction

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        prediction = self._prediction
        if prediction.latency_ms is None:
            prediction.latency_ms = (time.perf_counter() - self._started) * 1000
        own = {name: value for name, value in vars(prediction).items() if value is not None and name != "metadata"}
        fields = {**self._fields, **own}
        try:
            self._log(self._image, {**fields, "metadata": {**fields.get("metadata", {}), **prediction.metadata}})
        except Exception as error:
            self._reject(fields, f"{type(error).__name__}: {error}")

    async def __aenter__(self) -> LoggedPrediction:
        return self.__enter__()

    async def __aexit__(self, kind: object, *_: object) -> None:
        self.__exit__(kind)


def logged(
    log: Log,
    reject: Reject,
    fields: Mapping[str, Any],
    image: str | None,
    convert: Callable[[Any], Any] | None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The decorator behind `Client.logged`; see there. Raises TypeError for a generator or an unknown parameter."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = getattr(function, "__qualname__", repr(function))
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{name} is a generator; log each prediction with client.prediction() instead")
        signature = inspect.signature(function)
        if image is not None and image not in signature.parameters:
            raise TypeError(f"{name} has no parameter {image!r}")

        def log_call(arguments: tuple[Any, ...], named: dict[str, Any], result: Any, started: float) -> None:
            own: dict[str, Any] = {**fields, "latency_ms": (time.perf_counter() - started) * 1000}
            try:
                prediction = read_prediction(result if convert is None else convert(result))
                if prediction is not None:
                    data = _image_of(signature, image, arguments, named)
                    metadata = {**fields.get("metadata", {}), **prediction.pop("metadata", {})}
                    log(data, {**own, **prediction, "metadata": metadata})
            except Exception as error:
                reason = str(error) if isinstance(error, Unfit) else f"{type(error).__name__}: {error}"
                reject(own, f"{name}: {reason}")

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*arguments: P.args, **named: P.kwargs) -> Any:
                started = time.perf_counter()
                result = await function(*arguments, **named)
                log_call(arguments, named, result, started)
                return result

            return cast("Callable[P, R]", awaited)

        @functools.wraps(function)
        def called(*arguments: P.args, **named: P.kwargs) -> R:
            started = time.perf_counter()
            result = function(*arguments, **named)
            log_call(arguments, named, result, started)
            return result

        return called

    return decorate


def read_prediction(result: Any) -> dict[str, Any] | None:
    """The fields of a prediction in what a model returned; None for None. Raises Unfit for any other type.

    "cat" is a label; ("cat", 0.9) label and confidence; {"cat": 0.9, "dog": 0.1} scores; {"label": "cat", ...} fields,
    of which label and confidence may have one of OTHER_NAMES. Other entries are metadata.
    """
    match result:
        case None:
            return None
        case str():
            return {"label": result}
        case (str() as label, confidence) if _number(confidence):
            return {"label": label, "confidence": confidence}
        case Mapping() if (
            result
            and all(_number(value) for value in result.values())
            and not any(_plain(name) in _FIELD_OF for name in result)
        ):
            return {"scores": dict(result)}
        case Mapping():
            fields = {name: result[name] for name in FIELDS if name in result}
            renamed = _other_names(result)
            fields |= {field: result[name] for name, field in renamed.items()}
            extra = {k: v for k, v in result.items() if k not in FIELDS and k not in renamed}
            inner = fields.get("metadata")
            return fields | {"metadata": {**extra, **(inner if isinstance(inner, Mapping) else {})}}
    raise Unfit(
        f"returned a {type(result).__name__}, which is not a prediction: return a label, (label, confidence), scores "
        "or a mapping of fields, or pass a function to logged(convert=...) that converts it"
    )


def _other_names(result: Mapping[Any, Any]) -> dict[Any, str]:
    """The entries that are label or confidence under another name. Raises Unfit if two could be the same one."""
    renamed = {}
    for own in OTHER_NAMES:
        others = [name for name in result if name != own and _FIELD_OF.get(_plain(name)) == own]
        if own in result:  # its other names are metadata, unless one says that it is the prediction
            rivals = [own, *(name for name in others if own == "label" and "pred" in _plain(name))]
        else:
            rivals = others
            renamed.update(dict.fromkeys(others, own))
        if len(rivals) > 1:
            first, second = rivals[:2]
            raise Unfit(f"returned {first!r} and {second!r}, which could each be the {own}: return one of them")
    return renamed


def _plain(name: object) -> str:
    return str(name).strip().lower().replace(" ", "_").replace("-", "_")


def _number(value: Any) -> bool:
    """Whether the value is a number or a scalar of numpy or torch."""
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
    raise Unfit("no argument is an image file's bytes or a path; name the parameter: logged(image=...)")
