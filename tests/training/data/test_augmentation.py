"""Whatever happens to an image happens to its boxes and its mask; equal keys give equal pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lake.regions import masks
from tests import pictures
from training.data.augmentation import Augmentation, Preparation, StoredSample, prepare, prepare_many, whole
from training.metrics.segmentation_metrics import IGNORED
from training.tasks.task import Sample

SIDE = 32
WILD = Augmentation(0.4, 0.3, "both", True, 0.3, 0.3, 0.5, 0.5)


def marked(left: int, top: int, right: int, bottom: int, width: int = 60, height: int = 40) -> StoredSample:
    """A white rectangle on black, said as a box and as a mask."""
    board = np.zeros((height, width), bool)
    board[top:bottom, left:right] = True
    image = Image.fromarray(np.repeat(board[..., None], 3, axis=2).astype(np.uint8) * 255)
    box = {"label": "thing", "x": left, "y": top, "width": right - left, "height": bottom - top}
    mask = {"label": "thing", "height": height, "width": width, "counts": masks.encode(board)}
    return StoredSample("x", pictures.encoded(image), (1,), boxes=[box], masks=[mask], label="thing")


def how(look: Augmentation | None = None, geometry: str = "squash") -> Preparation:
    return Preparation(SIDE, geometry, {"thing": 0}, look)  # type: ignore[arg-type]


@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_boxes_and_masks_stay_on_their_thing(seed: int, turn: bool, cut: bool) -> None:
    look = Augmentation(crop=0.5 if cut else 1.0, stretch=0.2 if cut else 0.0, flip="both", turn=turn)
    job = StoredSample(**(vars(marked(18, 12, 42, 28)) | {"key": (seed,)}))
    samples = prepare(job, how(look))
    seen = samples.image[..., 0] > 127
    assert samples.target.mask is not None
    assert (seen != (samples.target.mask == 1)).mean() < 0.07  # half a pixel of edge
    if len(samples.target.boxes):
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(samples.target.boxes[0] - extent).max() <= 1.01
    assert samples.target.label == 0


def test_squash_shows_all_and_crop_the_centre() -> None:
    job = marked(0, 0, 20, 40)
    squashed, centre = prepare(job, how()), prepare(job, how(geometry="crop"))
    assert squashed.view == (0, 0, 60, 40)
    assert centre.view == (10, 0, 50, 40)
    assert squashed.target.boxes.round(2).tolist() == [[0, 0, pytest.approx(10.67, abs=0.01), 32]]
    assert centre.target.boxes.tolist() == [[0, 0, 8, 32]]
    assert squashed.size == (60, 40)


def test_a_box_that_is_mostly_cut_off_is_no_box() -> None:
    assert prepare(marked(0, 0, 14, 40), how(geometry="crop")).target.boxes.tolist() == []  # 4 of 14 columns are left


def test_equal_keys_equal_pixels() -> None:
    job = StoredSample("x", pictures.encoded(pictures.scene(3)), (1, 2, 3))
    first, second = prepare(job, how(WILD)), prepare(job, how(WILD))
    other = prepare(StoredSample(job.image_id, job.data, (1, 2, 4)), how(WILD))
    assert (first.image == second.image).all()
    assert (first.image != other.image).any()


def test_an_image_in_memory_is_seen_as_its_file_is() -> None:
    image = pictures.scene(4)
    file = prepare(StoredSample("x", pictures.encoded(image)), how())
    assert (whole("x", image, how()).image == file.image).all()


def test_a_class_the_model_does_not_have() -> None:
    job = marked(10, 10, 30, 30)
    samples = prepare(job, Preparation(SIDE, "squash", {"other": 0}))
    assert samples.target.label == -1
    assert samples.target.boxes.tolist() == []
    assert samples.target.mask is not None
    assert set(np.unique(samples.target.mask)) == {0, 255}  # neither background nor anything known


def test_a_bad_file_neither_stops_nor_shifts_the_others() -> None:
    good = StoredSample("good", pictures.encoded(pictures.noise(1)))
    samples = prepare_many([good, StoredSample("bad", b"no image"), good], how())
    assert [one.image_id if isinstance(one, Sample) else one for one in samples] == [
        "good",
        "bad: not an image of a known format (JPEG, PNG, WEBP, BMP, TIFF, GIF)",
        "good",
    ]


CROWD = {"label": "thing", "x": 0, "y": 0, "width": 30, "height": 40}


def test_a_detector_does_not_see_the_pixels_of_a_crowd_region() -> None:
    """Nobody said what is in them: they are neither background nor an instance. An instance in them stays."""
    stored = replace(marked(0, 0, 15, 20), masks=None, crowd_boxes=[CROWD])
    trained, evaluated = prepare(stored, how(Augmentation())), prepare(stored, how())
    grey = np.zeros((SIDE, SIDE), bool)
    grey[:, :16] = True
    grey[:16, :8] = False
    assert ((trained.image == 127).all(axis=2) == grey).all()
    assert not (evaluated.image == 127).all(axis=2).any()
    assert evaluated.target.crowds.tolist() == [[0, 0, 16, 32]]
    assert evaluated.target.crowd_classes.tolist() == [0]
    assert len(trained.target.boxes) == 1


def test_the_pixels_of_a_crowd_region_are_ignored() -> None:
    stored = replace(marked(0, 0, 15, 20), crowd_boxes=[CROWD])
    mask = prepare(stored, how()).target.mask
    assert mask is not None
    assert (mask[:16, :8] == 1).all()
    assert (mask[16:, :16] == IGNORED).all()
    assert (mask[:, 16:] == 0).all()
