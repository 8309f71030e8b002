"""Tasks and answers of workers, as bytes that can only be values: JSON for the structure, then bytes and arrays.

A worker decodes files of strangers, and a hostile file may take it over: to unpickle its answer would run its code in
the parent. Here the reader says which type it expects, and nothing else is made of the bytes.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import math
import struct
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")

# The length of the whole message, and of the JSON in it.
HEAD = struct.Struct(">QQ")
# Arrays begin at multiples of this, as numpy wants them.
_ALIGNMENT = 16
_DTYPES = ("|b1", "|u1", "|i1", "<i4", "<i8", "<u4", "<u8", "<f4", "<f8")


class WrongMessage(Exception):
    """The bytes are not a value of the expected type."""


def pack(value: Any) -> list[bytes | memoryview]:
    """The message in parts. Raises TypeError for a value that is neither plain, an array nor a dataclass of these."""
    buffers: list[bytes | memoryview] = []
    structure = json.dumps(_packed(value, buffers), separators=(",", ":")).encode()
    structure += b" " * (-len(structure) % _ALIGNMENT)
    size = HEAD.size + len(structure) + sum(map(len, buffers))
    return [HEAD.pack(size, len(structure)), structure, *buffers]


def _packed(value: Any, buffers: list[bytes | memoryview]) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_packed(item, buffers) for item in value]
    if isinstance(value, bytes):
        _add(value, buffers)
        return {"bytes": len(value)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {"map": {key: _packed(item, buffers) for key, item in value.items()}}
        return {"pairs": [[_packed(key, buffers), _packed(item, buffers)] for key, item in value.items()]}
    if isinstance(value, dt.datetime):
        return {"time": value.isoformat()}
    if is_dataclass(value):
        return {type(value).__name__: [_packed(getattr(value, field.name), buffers) for field in fields(value)]}
    if type(value).__name__ == "ndarray" and value.dtype.str in _DTYPES:
        import numpy as np

        # A view of bytes has no items if the array has none.
        data = np.ascontiguousarray(value).data.cast("B") if value.size else b""
        _add(data, buffers)
        return {"array": [value.dtype.str, *value.shape]}
    raise TypeError(f"a message cannot hold a value of type {type(value).__name__}")


def _add(data: bytes | memoryview, buffers: list[bytes | memoryview]) -> None:
    buffers.append(data)
    buffers.append(bytes(-len(data) % _ALIGNMENT))


def unpack(message: bytearray, structure_bytes: int, expected: Any) -> Any:
    """The value in a message without its head, of type `expected`: a type, as `typing.get_type_hints` gives it.

    Arrays share the message's memory; nothing else that is made is larger than the message. Raises WrongMessage.
    """
    try:
        structure = json.loads(message[:structure_bytes])
        source = _Buffers(memoryview(message)[structure_bytes:])
        value = _reader(expected)(structure, source)
    except (ValueError, RecursionError) as error:
        raise WrongMessage(str(error)) from error
    if source.data:
        raise WrongMessage(f"{len(source.data)} bytes too many")
    return value


class _Buffers:
    """The bytes behind the structure. Each is taken once, in order, so that a short message cannot name much memory."""

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def take(self, size: int) -> memoryview:
        padded = size + -size % _ALIGNMENT
        if size < 0 or padded > len(self.data):
            raise WrongMessage(f"{size} bytes of {len(self.data)}")
        taken, self.data = self.data[:size], self.data[padded:]
        return taken


_Reader = Callable[[Any, _Buffers], Any]


def _wrong(node: Any, expected: Any) -> WrongMessage:
    return WrongMessage(f"a {type(node).__name__} in place of {expected}")


def _only(node: Any, tag: str, kind: type[T]) -> T:
    """The content of {tag: content}."""
    if not isinstance(node, dict) or len(node) != 1 or not isinstance(content := node.get(tag), kind):
        raise _wrong(node, tag)
    return content


@functools.cache
def _reader(expected: Any) -> _Reader:
    """A function that makes a value of the type from its node of the structure, or raises WrongMessage."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (Union, types.UnionType):
        return _union(tuple(map(_reader, arguments)), expected)
    if origin is Literal:
        return _literal(arguments)
    if origin is list:
        return _list(_reader(arguments[0]))
    if origin is Sequence or arguments[1:] == (...,):
        items = _list(_reader(arguments[0]))
        return lambda node, source: tuple(items(node, source))
    if origin is tuple:
        return _tuple(tuple(map(_reader, arguments)))
    if origin in (dict, Mapping):
        value = _reader(arguments[1])
        return _map(value) if arguments[0] is str else _pairs(_reader(arguments[0]), value)
    if expected in _READERS:
        return _READERS[expected]
    if expected.__name__ == "ndarray":
        return _array
    if is_dataclass(expected) and isinstance(expected, type):
        return _record(expected)
    raise TypeError(f"a message cannot hold the type {expected}")


def _plain(*kinds: type) -> _Reader:
    def read(node: Any, source: _Buffers) -> Any:
        if type(node) not in kinds:
            raise _wrong(node, kinds[0].__name__)
        return node

    return read


def _bytes(node: Any, source: _Buffers) -> bytes:
    return bytes(source.take(_only(node, "bytes", int)))


def _time(node: Any, source: _Buffers) -> dt.datetime:
    return dt.datetime.fromisoformat(_only(node, "time", str))


def _array(node: Any, source: _Buffers) -> Any:
    import numpy as np

    name, *shape = _only(node, "array", list) or [None]
    if name not in _DTYPES or len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
        raise _wrong(node, "array")
    dtype = np.dtype(name)
    return np.frombuffer(source.take(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


def _any(node: Any, source: _Buffers) -> Any:
    """Plain values, bytes, times, lists and dictionaries of these."""
    if isinstance(node, list):
        return [_any(item, source) for item in node]
    if not isinstance(node, dict):
        return node
    for tag, read in _TAGS.items():
        if tag in node:
            return read(node, source)
    raise _wrong(node, "plain value")


def _union(readers: Sequence[_Reader], expected: Any) -> _Reader:
    def read(node: Any, source: _Buffers) -> Any:
        data = source.data
        for reader in readers:
            try:
                return reader(node, source)
            except WrongMessage:
                source.data = data
        raise _wrong(node, expected)

    return read


def _literal(values: Sequence[Any]) -> _Reader:
    def read(node: Any, source: _Buffers) -> Any:
        if type(node) is not str or node not in values:
            raise _wrong(node, values)
        return node

    return read


def _list(reader: _Reader) -> Callable[[Any, _Buffers], list[Any]]:
    def read(node: Any, source: _Buffers) -> list[Any]:
        if type(node) is not list:
            raise _wrong(node, "list")
        return [reader(item, source) for item in node]

    return read


def _tuple(readers: Sequence[_Reader]) -> _Reader:
    def read(node: Any, source: _Buffers) -> Any:
        if type(node) is not list or len(node) != len(readers):
            raise _wrong(node, f"{len(readers)} values")
        return tuple(reader(item, source) for reader, item in zip(readers, node, strict=True))

    return read


def _map(value: _Reader) -> _Reader:
    def read(node: Any, source: _Buffers) -> Any:
        return {name: value(item, source) for name, item in _only(node, "map", dict).items()}

    return read


def _pairs(key: _Reader, value: _Reader) -> _Reader:
    pairs = _list(_tuple((key, value)))

    def read(node: Any, source: _Buffers) -> Any:
        # An empty mapping says nothing of its keys.
        return {} if node == {"map": {}} else dict(pairs(_only(node, "pairs", list), source))

    return read


def _record(kind: type) -> _Reader:
    hints = typing.get_type_hints(kind)
    content = _tuple(tuple(_reader(hints[field.name]) for field in fields(kind)))

    def read(node: Any, source: _Buffers) -> Any:
        return kind(*content(_only(node, kind.__name__, list), source))

    return read


_READERS: dict[Any, _Reader] = {
    str: _plain(str), int: _plain(int), bool: _plain(bool), float: _plain(float, int),
    types.NoneType: _plain(types.NoneType), bytes: _bytes, dt.datetime: _time, Any: _any,
}  # fmt: skip
_TAGS: dict[str, _Reader] = {"bytes": _bytes, "time": _time, "map": _map(_any)}
