"""Which column is which field: understood by its name, said by the caller, or refused by name; never guessed."""

from typing import Any

import pytest

from lake.errors import BadInput
from lake.prediction_logs import columns
from lake.prediction_logs.log import LogOptions


def log(*names: str, typed: tuple[str, ...] = (), **said: str | None) -> dict[str, str | None]:
    return columns.fields(names, typed, said, log=True)


def event(*names: str, typed: tuple[str, ...] = ()) -> dict[str, str | None]:
    return columns.fields(names, typed)


@pytest.mark.parametrize("field", columns.NAMES)
def test_every_name_counts_without_regard_to_case_spaces_and_hyphens(field: str) -> None:
    for name in (field, *columns.NAMES[field]):
        for written in (name, name.upper(), name.title(), name.replace("_", " "), f" {name.replace('_', '-')} "):
            assert log(written) == {written: field}


def test_no_name_means_two_fields() -> None:
    names = [name for field, others in columns.NAMES.items() for name in (field, *others)]
    assert len({*names}) == len(names)


def test_a_log_has_a_truth_beside_its_prediction_and_an_event_does_not() -> None:
    assert log("pred", "gt") == {"pred": "label", "gt": "truth"}
    assert event("pred", "gt") == {"pred": "label", "gt": None}


@pytest.mark.parametrize("pair", [("label", "prediction"), ("Label", "y_pred"), ("pred", "class"), ("Label", "label")])
def test_two_columns_for_the_predicted_class_are_refused_by_name(pair: tuple[str, str]) -> None:
    for names in (pair, pair[::-1]):
        with pytest.raises(BadInput, match=f"'{pair[0]}'.*--map label=") as refusal:
            log(*sorted(names))
        assert f"'{pair[1]}'" in str(refusal.value)
    with pytest.raises(BadInput, match="send one of them, as 'label'"):
        event(*pair)


def test_label_beside_class_is_unclear_in_a_log_and_means_label_in_an_event() -> None:
    with pytest.raises(BadInput, match="--map label=class --truth label"):
        log("label", "class")
    assert event("label", "class") == {"label": "label", "class": None}


def test_the_fields_own_name_wins_over_others_which_are_metadata() -> None:
    assert log("confidence", "score", "time", "timestamp") == {
        "confidence": "confidence", "score": None, "time": None, "timestamp": "timestamp",
    }  # fmt: skip
    with pytest.raises(BadInput, match="'score' and 'prob' could each be the confidence"):
        log("score", "prob")


def test_what_the_caller_says_wins() -> None:
    assert log("label", "prediction", label="prediction", truth="label") == {"label": "truth", "prediction": "label"}
    assert log("label", "Klasse", label="Klasse") == {"label": None, "Klasse": "label"}
    assert log("image", "label", "score", confidence=None) == {"image": "image", "label": "label", "score": None}


def test_a_typed_column_of_the_lake_comes_before_other_names_of_fields() -> None:
    assert log("label", "Score", "shift", typed=("score", "shift")) == {
        "label": "label", "Score": "score", "shift": "shift",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"map": ["class"]}, "write FIELD=COLUMN"),
        ({"map": ["klasse=x"]}, "with a field of image, image_id, label"),
        ({"map": ["label=a", "label=b"]}, "names two columns for label: a and b"),
        ({"map": ["label=a"], "truth": "a"}, "gives the column 'a' to two fields"),
        ({"encoding": "klingon"}, "--encoding 'klingon' is unknown"),
        ({"encoding": "base64"}, "--encoding 'base64' is unknown"),
        ({"separator": ";;"}, "--separator is ';;'"),
        ({"confidence_scale": 0.0}, "--confidence-scale is 0"),
    ],
)
def test_wrong_words_about_a_log_are_refused(words: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        LogOptions.parsed(**words)
