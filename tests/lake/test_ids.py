"""Ids are part of the data: they must be the same in every version and never meet by accident."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake import ids
from lake.errors import BadInput

IMAGE = hashlib.sha256(b"an image").hexdigest()
PARTS = st.one_of(st.none(), st.text(max_size=6), st.sampled_from(["", "-", "1:a", "1", ":"]))
ANSWERS = st.tuples(st.just(IMAGE), PARTS, PARTS, PARTS, PARTS)


def test_an_image_is_its_bytes() -> None:
    assert ids.image_id(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert ids.is_image_id(ids.image_id(b"x"))


def test_derived_ids_never_change() -> None:
    """Pinned: another value would make every lake take its own rows for new ones."""
    zeros = "0" * 64
    assert ids.bare_prediction_id(zeros) == "30ee84db-2782-562d-9bc9-6bafe7c6df6a"
    assert ids.derived_prediction_id(zeros, "m", "1", None, None) == "387fe1f0-0a0b-57dc-8c06-e1db2038ba63"
    assert ids.label_event_id(zeros, "cat", "import") == "15eb73e4-312c-5a4c-beef-a193f1e8026e"


@given(ANSWERS, ANSWERS)
def test_predictions_share_an_id_only_if_they_are_the_same(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    assert (ids.derived_prediction_id(*first) == ids.derived_prediction_id(*second)) == (first == second)


def test_none_and_empty_are_different_parts() -> None:
    assert ids.derived_prediction_id(IMAGE, None, "", None, None) != ids.derived_prediction_id(
        IMAGE, "", None, None, None
    )


def test_a_bare_row_and_a_prediction_without_parts_differ() -> None:
    assert ids.bare_prediction_id(IMAGE) != ids.derived_prediction_id(IMAGE, None, None, None, None)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (IMAGE, "image"),
        ("7099c41c-4eda-5a1b-b05e-eaddb9b56cbb", "prediction"),
        ("7099C41C-4EDA-5A1B-B05E-EADDB9B56CBB", "prediction"),
        ("7099c41c4eda5a1bb05eeaddb9b56cbb", "prediction"),
    ],
)
def test_the_form_of_an_id_tells_its_kind(text: str, kind: str) -> None:
    assert ids.kind(text) == kind


@pytest.mark.parametrize(
    "text", ["", "cat.jpg", IMAGE[:-1], IMAGE + "0", IMAGE.upper(), IMAGE + "\n", "z" * 36, "'; --"]
)
def test_an_id_of_neither_form_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(BadInput, match="is not an id"):
        ids.kind(text)


def test_a_uuid_has_one_spelling() -> None:
    assert ids.as_uuid("7099C41C4EDA5A1BB05EEADDB9B56CBB") == "7099c41c-4eda-5a1b-b05e-eaddb9b56cbb"
    assert ids.as_uuid("row-7") is None
