"""Messages of workers hold values of the expected type, and any other bytes are refused."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.images import messages


@dataclass(frozen=True)
class Size:
    kind: Literal["crop", "squash"]
    sides: tuple[int, float]


@dataclass(frozen=True)
class Found:
    name: str
    thumbnail: bytes
    size: Size | None = None
    reasons: Mapping[int, str] = field(default_factory=dict)
    scores: Sequence[tuple[str, float]] = ()
    facts: dict[str, Any] = field(default_factory=dict)


Answer = list[Found | Size | str]

text = st.text(max_size=8)
sizes = st.builds(Size, st.sampled_from(["crop", "squash"]), st.tuples(st.integers(), st.floats(allow_nan=False)))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text | st.binary(max_size=40)
    | st.datetimes(timezones=st.sampled_from([dt.UTC])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
founds = st.builds(
    Found, text, st.binary(max_size=40), st.none() | sizes, st.dictionaries(st.integers(), text, max_size=3),
    st.lists(st.tuples(text, st.floats(allow_nan=False)), max_size=3).map(tuple),
    st.dictionaries(text, plain, max_size=3),
)  # fmt: skip
answers = st.lists(founds | sizes | text, max_size=4)


def sent(value: Any) -> bytes:
    return b"".join(messages.pack(value))


def received(message: bytes, expected: Any) -> Any:
    size, structure = messages.HEAD.unpack_from(message)
    assert size == len(message)
    return messages.unpack(bytearray(message[messages.HEAD.size :]), structure, expected)


@given(answers)
@settings(max_examples=20)
def test_what_is_sent_is_received(answer: Answer) -> None:
    assert received(sent(answer), Answer) == answer


@pytest.mark.parametrize("dtype", ["u1", "i8", "f4", "f8", "?"])
@pytest.mark.parametrize("shape", [(), (0, 4), (3,), (2, 3, 5)])
def test_arrays_are_received_with_their_type_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    first, second = received(sent([array, array.T]), list[np.ndarray])
    assert (first.dtype, first.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(first, array)
    np.testing.assert_array_equal(second, array.T)
    assert first.flags.writeable
    assert first.flags.aligned


def unpacked(structure: bytes, buffers: bytes, expected: Any) -> Any:
    return messages.unpack(bytearray(structure + buffers), len(structure), expected)


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        (b"", int),
        (b"\xff", int),
        (b"[" * 100_000, list[int]),
        (b"9" * 5_000, int),
        (b'"1"', int),
        (b"true", int),
        (b"null", str),
        (b'{"bytes":17}', bytes),
        (b'{"bytes":-1}', bytes),
        (b'[{"bytes":16},{"bytes":16}]', list[bytes]),
        (b'{"array":["|u1",1099511627776]}', np.ndarray),
        (b'{"array":["|u1",-4,-4]}', np.ndarray),
        (b'{"array":["|O",2]}', np.ndarray),
        (b'{"array":[["|u1"],2]}', np.ndarray),
        (b'{"array":[]}', np.ndarray),
        (b'{"time":"yesterday"}', Any),
        (b'{"Size":["crop",[1,2]]}', Any),
        (b'{"Size":["turn",[1,2]]}', Size),
        (b'{"Size":["crop",[1]]}', Size),
        (b'{"Size":["crop",[1,2],0]}', Size),
        (b'{"Found":["crop",[1,2]]}', Size),
        (b'{"pairs":[[[1],"a"]]}', Mapping[int, str]),
        (b'{"map":{"1":"a"}}', Mapping[int, str]),
    ],
)
def test_what_is_not_of_the_expected_type_is_refused(structure: bytes, expected: Any) -> None:
    with pytest.raises(messages.WrongMessage):
        unpacked(structure, bytes(16), expected)


@given(st.data())
@settings(max_examples=60)
def test_a_changed_message_is_a_value_of_the_type_or_refused(data: st.DataObject) -> None:
    message = bytearray(sent(data.draw(answers))[messages.HEAD.size :])
    structure = data.draw(st.integers(0, len(message)))
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, max(0, len(message) - 1)))
        message[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        answer = messages.unpack(message, structure, Answer)
    except messages.WrongMessage:
        return
    assert all(isinstance(item, Found | Size | str) for item in answer)


def test_only_values_can_be_sent() -> None:
    for value in (object(), {1, 2}, np.array([object()]), messages.pack, 1j):
        with pytest.raises(TypeError, match="cannot hold"):
            messages.pack([value])
