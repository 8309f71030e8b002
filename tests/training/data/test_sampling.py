"""An epoch is a function of seed and number; every new image is in it once; classes and old images get their share."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.data import sampling
from training.data.sampling import EpochSampler


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 16), st.floats(0, 0.9), st.integers(0, 99))
def test_every_new_image_once_and_equal_seeds_equal_epochs(
    new: int, old: int, batch: int, replay: float, seed: int
) -> None:
    sampler = EpochSampler(new, old, batch, seed, replay)
    batches = sampler.epoch(3)
    assert len(batches) == sampler.steps
    assert len({len(b) for b in batches}) == 1
    assert len(batches[0]) == min(batch, sampler.length)
    drawn = np.concatenate(batches)
    assert (Counter(drawn[drawn < new].tolist()) or Counter([0])).most_common(1)[0][1] == 1
    assert sampler.length - len(drawn) < batch
    again = EpochSampler(new, old, batch, seed, replay).epoch(3)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    if sampler.length >= 20:
        assert not all((a == b).all() for a, b in zip(batches, sampler.epoch(4), strict=True))


def test_replay_is_a_share_of_the_epoch() -> None:
    sampler = EpochSampler(30, 100, 10, 0, replay=0.25)
    assert sampler.length == 40
    drawn = np.concatenate(sampler.epoch(0))
    assert (drawn >= 30).sum() == 10
    seen = {int(i) for number in range(60) for i in np.concatenate(sampler.epoch(number)) if i >= 30}
    assert seen == set(range(30, 130))  # others in each epoch


def test_few_old_images_come_several_times_and_none_more_often_than_needed() -> None:
    drawn = np.concatenate(EpochSampler(12, 4, 24, 0, replay=0.5).epoch(0))
    assert sorted(Counter(drawn.tolist()).values()) == [1] * 12 + [3] * 4


def test_without_a_share_all_old_images_join() -> None:
    assert sorted(np.concatenate(EpochSampler(3, 4, 7, 0, replay=0.0).epoch(0)).tolist()) == list(range(7))


def test_rare_classes_are_drawn_as_often_as_common_ones() -> None:
    classes = [0] * 18 + [1] * 2
    drawn = np.concatenate(EpochSampler(20, 0, 20, 0, classes=classes).epoch(5))
    assert Counter(np.asarray(classes)[drawn].tolist()) == {0: 10, 1: 10}


def test_weights_make_classes_equal_and_keep_the_mean() -> None:
    weights = sampling.weights([0, 0, 0, 1])
    assert weights.tolist() == [2 / 3, 2 / 3, 2 / 3, 2.0]
    assert weights.mean() == 1.0
