"""A training slice has no image that a model is judged by: where there are vectors, no near-duplicate of one either."""

from __future__ import annotations

import json

import pytest

from embeddings.duplicates import leak_guard
from lake import slices
from lake.errors import BadInput
from lake.open_lake import OpenLake
from search_app.cli import main
from tests.lake.prediction_rows import add, image


@pytest.fixture
def six(lk: OpenLake) -> OpenLake:
    """Six images without vectors: even ones called cat, odd ones dog."""
    add(lk, [{"label": ["cat", "dog"][n % 2]} for n in range(6)])
    return lk


def members(lk: OpenLake, slice_: slices.Slice) -> list[int]:
    number = {image(n): n for n in range(6)}
    return sorted(number[i] for i in slices.members(lk, slice_).to_pylist())


def test_training_is_kept_apart_from_evaluation_by_identity(six: OpenLake) -> None:
    slices.create(six, "judge", ids=[image(0), image(1)], role="evaluation")
    with pytest.raises(BadInput, match="2 are in judge@1"):
        leak_guard.create(six, "school", where="true", role="train", identity_only=True)
    slice_, _ = leak_guard.create(six, "school", where="true", role="train", drop_leaks=True, identity_only=True)
    assert members(six, slice_) == [2, 3, 4, 5]
    again, _ = leak_guard.create(six, "school", spec=slices.spec(six, slice_), role="train")
    assert members(six, again) == [2, 3, 4, 5]
    with pytest.raises(BadInput, match="freeze it first"):
        leak_guard.create(six, "school", where="true", role="train", live=True)
    slices.delete(six, slices.get(six, "judge"))
    slice_, _ = leak_guard.create(six, "school", where="true", role="train")
    assert len(members(six, slice_)) == 6


def test_images_without_vectors_are_refused_and_a_guard_by_identity_is_recorded(six: OpenLake) -> None:
    slices.create(six, "judge", ids=[image(0)], role="evaluation")
    with pytest.raises(BadInput, match=r"1 image has no vector.*lakeloop embed.*--identity-only"):
        leak_guard.create(six, "school", ids=[image(1)], role="train")
    slice_, leaks = leak_guard.create(six, "school", ids=[image(1)], role="train", identity_only=True)
    assert leaks.uncompared == 1
    assert slice_.identity_only
    assert slices.spec(six, slice_) == {"ids": [image(1)], "identity_only": True}
    # A slice of another role is never refused, and nothing is recorded.
    other, _ = leak_guard.create(six, "held", ids=[image(1)], role="regression")
    assert not other.identity_only


def test_a_role_given_later_is_guarded_alike(six: OpenLake) -> None:
    slices.create(six, "judge", ids=[image(0)], role="evaluation")
    plain = slices.create(six, "plain", where="label = 'dog'")
    with pytest.raises(BadInput, match="lakeloop embed"):
        leak_guard.assign(six, plain, "train")
    school, _ = leak_guard.assign(six, plain, "train", identity_only=True)
    assert (school.role, school.identity_only) == ("train", True)
    assert members(six, slices.get(six, "plain")) == [1, 3, 5]
    back, _ = leak_guard.assign(six, school, None)
    assert (back.role, back.identity_only) == (None, False)


def test_the_commands_say_how_a_training_slice_was_guarded(six: OpenLake, capsys: pytest.CaptureFixture[str]) -> None:
    slices.create(six, "judge", ids=[image(0)], role="evaluation")

    def run(*words: str, code: int = 0) -> str:
        assert main.main([*words, "--lake", six.uri]) == code
        printed = capsys.readouterr()
        return printed.err if code == 2 else printed.out

    words = ("slice", "create", "school", "--where", "label = 'dog'", "--role", "train")
    assert "--identity-only" in run(*words, code=2)
    assert "school@1" in run(*words, "--identity-only")
    assert "train, guarded by identity only" in run("slice", "show", "school")
    assert json.loads(run("slice", "show", "school", "--json"))["identity_only"] is True
    assert json.loads(run("slice", "show", "school", "--spec"))["identity_only"] is True
    assert "--identity-only" in run("slice", "role", "school", "train", code=2)
    assert "is for train" in run("slice", "role", "school", "train", "--identity-only")
