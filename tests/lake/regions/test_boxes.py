"""Boxes: overlaps, matching and suppression, on numbers checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lake.regions import boxes


def test_intersection_over_union_by_hand() -> None:
    overlap = boxes.intersection_over_union(np.array([[0, 0, 10, 10.0]]), np.array([[0, 4, 10, 14.0], [9, 9, 9, 9]]))
    assert overlap == pytest.approx(np.array([[6 / 14, 0]]))


def test_corners_and_areas_are_those_of_x_y_width_and_height() -> None:
    corners = boxes.corners([{"x": 1, "y": 2, "width": 3, "height": 4}])
    assert corners.tolist() == [[1, 2, 4, 6]]
    assert boxes.areas(corners).tolist() == [12]
    assert boxes.corners([]).shape == (0, 4)


def test_a_ground_truth_box_is_matched_once_by_the_first_detection_that_overlaps_it_enough() -> None:
    overlaps = np.array([[0.6, 0.55], [0.9, 0.7], [0.4, 0.4]])
    assert boxes.match(overlaps, np.array([0.5, 0.65])).tolist() == [[[0, 1, -1], [-1, 0, -1]]]
    assert boxes.match(np.zeros((2, 0)), np.array([0.5])).tolist() == [[[-1, -1]]]
    assert boxes.match(np.zeros((0, 2)), np.array([0.5])).shape == (1, 1, 0)


def test_of_equal_overlaps_the_last_is_taken_and_an_ignored_box_only_if_no_other_fits() -> None:
    assert boxes.match(np.array([[0.8, 0.8]]), np.array([0.5])).tolist() == [[[1]]]
    ignored = np.array([[False, False], [False, True], [True, True]])
    matched = boxes.match(np.array([[0.6, 0.8], [0.6, 0.8]]), np.array([0.5]), ignored)
    assert matched.tolist() == [[[1, 0]], [[0, 1]], [[1, 0]]]


def test_suppression_drops_what_overlaps_a_box_with_a_higher_score() -> None:
    corners = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10.0]])
    assert boxes.suppress(corners, np.array([0.5, 0.9, 0.1]), 0.5).tolist() == [1, 2]
    assert boxes.suppress(corners, np.array([0.5, 0.9, 0.1]), 0.9).tolist() == [1, 0, 2]
