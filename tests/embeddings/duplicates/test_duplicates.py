"""Copies of a picture are found, kin are not; groups do not run on; training is kept from nearly what judges it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embeddings.backfill.vector_columns import store_vectors
from embeddings.duplicates import alignment, altered_copies, duplicates, leak_guard
from embeddings.duplicates.grouping import grouped
from lake import ids, slices
from lake.errors import BadInput
from lake.images import decode
from lake.ingest import ingest
from lake.open_lake import OpenLake
from search_app.cli import main
from tests import pictures
from tests.conftest import Say

# A piece of nothing but sky or blur has nothing to be told by; nor do people call two of those copies.
LEAST_DETAIL = 4.0


def photographs(count: int) -> list[bytes]:
    """Pieces of scikit-learn's two photographs, no two of which share a pixel: real detail, alike in kind."""
    result = []
    for whole in pytest.importorskip("sklearn.datasets").load_sample_images().images:
        height, width = whole.shape[0] // 4, whole.shape[1] // 5
        for row in range(4):
            for column in range(5):
                piece = whole[row * height : (row + 1) * height, column * width : (column + 1) * width]
                if np.abs(np.diff(piece.mean(axis=2), axis=1)).mean() * 4 < LEAST_DETAIL:
                    continue
                out = io.BytesIO()
                Image.fromarray(piece).resize((256, 214), Image.Resampling.BICUBIC).save(out, "PNG")
                result.append(out.getvalue())
    return result[:count]


def test_copies_agree_and_other_pictures_do_not(say: Say) -> None:
    """Every pair of some 30 pieces of photographs and their five copies, decided by thumbnails alone."""
    originals = photographs(40)
    files = [(n, one) for n, data in enumerate(originals) for one in (data, *altered_copies.copies(data, n).values())]
    prints = alignment.fingerprints([decode.decode(data).thumbnail for _, data in files])
    family = np.array([n for n, _ in files])
    own = np.array([pair for pair in combinations(range(len(files)), 2) if family[pair[0]] == family[pair[1]]])
    first = np.flatnonzero(np.r_[True, np.diff(family) > 0])
    other = np.array([*combinations(first, 2)])
    same = alignment.agreement(prints, own[:, 0], own[:, 1]) >= duplicates.ALIGNED
    wrong = alignment.agreement(prints, other[:, 0], other[:, 1]) >= duplicates.ALIGNED
    wrong_share = f"{wrong.sum()} of {len(other)} wrong"
    say(f"near-duplicates of {len(originals)} pieces: {same.sum()} of {len(own)} pairs, {wrong_share}")
    assert same.mean() >= 0.98
    assert same.sum() / (same.sum() + wrong.sum()) >= 0.99


def test_agreement_is_measured_after_alignment() -> None:
    scene = np.asarray(pictures.scene(1, 96, 96).convert("L").resize((48, 48)))
    negative, flat = 255 - scene, np.full((48, 48), 90, np.uint8)
    prints = np.stack([scene, scene, np.roll(scene, 2, axis=1), negative, flat, flat])
    left, right = np.zeros(5, int), np.array([1, 2, 3, 4, 4])
    result = alignment.agreement(prints, left, right)
    assert result[0] == pytest.approx(1, abs=1e-3)
    assert result[1] > 0.9
    assert result[2] < 0.3
    assert abs(result[3]) < 0.05
    assert alignment.agreement(prints, np.array([4]), np.array([5]))[0] == 1  # two views of one even grey
    assert alignment.agreement(prints, left[:0], right[:0]).shape == (0,)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 30), st.data())
def test_groups_are_disjoint_and_every_member_is_near_its_centre(n: int, data: st.DataObject) -> None:
    every = [*combinations(range(n), 2)]
    chosen = data.draw(st.lists(st.sampled_from(every), unique=True))
    left, right = (np.array([pair[side] for pair in chosen], np.int64) for side in (0, 1))
    groups = grouped(n, left, right)
    members = [thing for group in groups for thing in group]
    assert len(members) == len(set(members))
    assert all({(min(group[0], m), max(group[0], m)) in set(chosen) for m in group[1:]} == {True} for group in groups)
    # Nobody is left over who could have joined a pair that is left over.
    alone = set(range(n)) - set(members)
    assert not any(a in alone and b in alone for a, b in chosen)
    assert [len(group) for group in groups] == sorted((len(group) for group in groups), reverse=True)


def test_a_film_is_not_one_group_and_touching_stars_are_joined() -> None:
    chain = np.arange(99)
    assert max(len(group) for group in grouped(100, chain, chain + 1)) <= 3
    # 60 copies of one picture of which each knows only its neighbours; their centres are the same, too.
    left, right = (
        np.array(side) for side in zip(*[(a, b) for a, b in combinations(range(60), 2) if b - a <= 10], strict=True)
    )
    assert len(grouped(60, left, right)) > 1
    joined = grouped(60, left, right, lambda a, b: np.ones(len(a), bool))
    assert len(joined) < len(grouped(60, left, right))


@pytest.fixture
def copied(make_lake: Callable[..., OpenLake], tmp_path: Path) -> tuple[OpenLake, list[list[str]]]:
    """Six pieces of photographs; of the first three the copies are there, too. Vectors: the families' directions."""
    lk = make_lake(embedders=["x"])
    record = lk.register_embedder("x")
    lk.bind_embedder(replace(record, dim=8, weights_sha256="0" * 64))
    families: list[list[str]] = []
    vectors = {}
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for n, data in enumerate(photographs(6)):
        files = [data, *(altered_copies.copies(data, n).values() if n < 3 else ())]
        # 3 and 4 are kin: as near by their vectors as copies are.
        direction = np.eye(8)[3 if n == 4 else n]
        for k, one in enumerate(files):
            (tmp_path / "in" / f"{n}-{k}.img").write_bytes(one)
            vector = direction + rng.normal(0, 0.05, 8)
            vectors[ids.image_id(one)] = (vector / np.linalg.norm(vector)).astype(np.float32)
        families.append([ids.image_id(one) for one in files])
    for path in (tmp_path / "in").iterdir():
        path.rename(path.with_suffix(".png" if path.stem.endswith("-0") else ".jpg"))
    assert ingest.ingest(lk, tmp_path / "in", workers=1).images_new == 21
    store_vectors(lk, "emb_x", vectors)
    return lk, families


def test_copies_are_grouped_and_similar_images_are_not(copied: tuple[OpenLake, list[list[str]]]) -> None:
    lk, families = copied
    result = duplicates.find(lk)
    assert [set(group) for group in result.groups] == sorted(
        (set(f) for f in families[:3]), key=lambda f: [set(g) for g in result.groups].index(f)
    )
    assert (result.redundant, result.compared, result.without_vector, result.without_thumbnail, result.threshold) == (
        15,
        21,
        0,
        0,
        0.6,
    )
    image_ids = [*families[0][:2], families[4][0]]
    assert [set(group) for group in duplicates.find(lk, image_ids).groups] == [set(families[0][:2])]
    # Without thumbnails only the surest cosines count, and that is said.
    lk.delete("thumbnails", "true")
    blind = duplicates.find(lk, threshold=0.8)
    assert blind.without_thumbnail == len(blind.pairs) > 0
    assert all(pair.agreement is None and pair.cosine >= duplicates.CERTAIN for pair in blind.pairs)
    with pytest.raises(BadInput, match="threshold is 2"):
        duplicates.find(lk, threshold=2)


@pytest.mark.parametrize("with_faiss", [True, False])
def test_frames_of_a_covered_lens_are_one_group_and_one_leak(
    make_lake: Callable[..., OpenLake], tmp_path: Path, with_faiss: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 black frames with other bytes each, 30 of an even grey, 30 of a grey with noise of one level."""
    if not with_faiss:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lk = make_lake(embedders=["x"])
    lk.bind_embedder(replace(lk.register_embedder("x"), dim=8, weights_sha256="0" * 64))
    families: list[list[str]] = [[], [], []]
    vectors = {}
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for kind, n in product(range(3), range(30)):
        grey = np.full((40 + n, 60, 3), [0, 120, 200][kind], np.uint8)
        grey += rng.integers(0, 2, grey.shape, np.uint8) * (kind == 2)
        data = pictures.encoded(Image.fromarray(grey))
        (tmp_path / "in" / f"{kind}-{n}.png").write_bytes(data)
        families[kind].append(ids.image_id(data))
        vectors[ids.image_id(data)] = np.eye(8, dtype=np.float32)[0]  # black, grey and white are alike to the network
    assert ingest.ingest(lk, tmp_path / "in", workers=1).images_new == 90
    store_vectors(lk, "emb_x", vectors)
    for family in families:
        assert [set(group) for group in duplicates.find(lk, family).groups] == [set(family)]
    slices.create(lk, "judge", ids=families[0][:1], role="evaluation")
    _, leaks = leak_guard.create(lk, "school", ids=families[0] + families[1], role="train", drop_leaks=True)
    assert set(leaks.images) == set(families[0])


def test_training_gets_no_near_duplicate_of_an_evaluation_image(copied: tuple[OpenLake, list[list[str]]]) -> None:
    lk, families = copied
    judge = [families[0][1], families[1][0]]
    slices.create(lk, "judge", ids=judge, role="evaluation")
    everyone = [one for family in families for one in family]
    with pytest.raises(
        BadInput, match=r"2 are in and 10 are near-duplicates of images in judge@1; leave them out with"
    ):
        leak_guard.create(lk, "school", ids=everyone, role="train")
    made, result = leak_guard.create(lk, "school", ids=everyone, role="train", drop_leaks=True)
    assert set(result.near) == {*families[0], *families[1]} - set(judge)
    assert set(slices.members(lk, made).to_pylist()) == {one for family in families[2:] for one in family}
    # The other way round it is reported, not refused; an image without a vector is compared by identity if allowed.
    second, leaks = leak_guard.create(lk, "judge2", ids=[families[2][0]], role="regression")
    assert (second.role, leaks.same) == ("regression", {families[2][0]: ["school@1"]})
    plain, _ = leak_guard.create(lk, "plain", ids=families[0])
    with pytest.raises(BadInput, match="plain@1 cannot be for training"):
        leak_guard.assign(lk, plain, "train")
    from tests.lake.prediction_rows import add, image

    add(lk, [{"image_id": image("new"), "label": "cat"}])
    with pytest.raises(BadInput, match="1 image has no vector"):
        leak_guard.create(lk, "later", ids=[image("new"), families[5][0]], role="train")
    _, leaks = leak_guard.create(lk, "later", ids=[image("new"), families[5][0]], role="train", identity_only=True)
    assert (leaks.images, leaks.uncompared) == ([], 1)
    assert "by identity only" in leaks.words()


def test_the_commands(
    copied: tuple[OpenLake, list[list[str]]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lk, families = copied

    def run(*words: str, code: int = 0) -> str:
        assert main.main([*words, "--lake", lk.uri]) == code
        output = capsys.readouterr()
        return output.err if code == 2 else output.out

    groups = json.loads(run("duplicates", "--json"))["groups"]
    assert sorted(map(len, groups)) == [6, 6, 6]
    (tmp_path / "ids").write_text("\n".join([families[0][0], families[3][0]]))
    assert "judge@1: 2 images (ids: 2 ids)  [evaluation]" in run(
        "slice", "create", "judge", "--ids", str(tmp_path / "ids"), "--role", "evaluation", "--new"
    )
    assert "5 are near-duplicates" in run("slice", "create", "school", "--where", "true", "--role", "train", code=2)
    looked = run("slice", "create", "school", "--where", "true", "--role", "train", "--dry-run")
    assert "21 images; nothing is saved" in looked
    assert "3 groups of near-duplicates, 15 redundant images" in looked
    made = json.loads(run("slice", "create", "school", "--where", "true", "--role", "train", "--drop-leaks", "--json"))
    assert (made["size"], made["dropped"]) == (14, 7)
    (tmp_path / "spec.json").write_text(run("slice", "show", "school", "--spec"))
    assert "school@2: 14 images" in run(
        "slice", "create", "school", "--spec", str(tmp_path / "spec.json"), "--role", "train"
    )
    assert "school@1 to school@2: 0 added, 0 removed, 14 in both" in run("slice", "diff", "school@1", "school")
    assert "school@gold is school@1" in run("slice", "tag", "school@1", "gold")
    assert "@gold" in run("slice", "history", "school")
    assert "no shared images" in run("slice", "leaks", "school@gold")
    assert "give the version of" in run("slice", "delete", "school", code=2)
    assert "school@1 is deleted" in run("slice", "delete", "school@gold")
    assert "need each other" in run("slice", "create", "x", "--like", families[0][0], code=2)
    near = json.loads(run("slice", "create", "x", "--like", families[0][0], "--radius", "0.2", "--live", "--json"))
    assert (near["size"], near["live"]) == (6, True)
    assert "x@2: 6 images" in run("slice", "freeze", "x")
