"""Readers say of an image what its documents say: absence is not a statement, each document is its own world."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lake.formats.annotation import ModelName
from lake.formats.item import ReadOptions
from lake.ingest import sources
from tests.lake.formats import sets
from tests.lake.formats.sets import HEIGHT, PNG, WIDTH, coco, corners, put, said, voc

BOX = {"bbox": [1, 2, 3, 4]}
POLYGON = {"bbox": [1, 1, 9, 9], "segmentation": [[1, 1, 10, 1, 10, 10, 1, 10]]}
DETECTION, SEGMENTATION = "detection", "segmentation"


# Absence is not a statement ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"a.png": None, "d.json": coco(BOX | {"category_id": 9})},
        {"a.png": None, "d.json": coco(BOX | {"bbox": [1, 2, -3, 4]})},
        {"a.png": None, "d.json": coco({"bbox": None})},
        {"a.png": None, "d.json": coco(BOX | {"bbox": [1, 2, "NaN", 4]})},
        {"a.png": None, "d.json": coco(BOX | {"image_id": None})},
        {"a.png": None, "d.json": coco(BOX, images=[{"id": 1, "file_name": "a.png", "width": 16, "height": 24}])},
        {"a.png": None, "d.json": coco(BOX, categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}])},
        {"data.yaml": "names: [cat]", "images/a.png": None, "labels/a.txt": "0 1.04 .5 .1 .1"},
        {"data.yaml": "names: [cat]", "images/a.png": None, "labels/a.txt": "7 .5 .5 .1 .1"},
        {"data.yaml": "names: [cat]\nkpt_shape: [3, 2]", "images/a.png": None, "labels/a.txt": "0 .5 .5 .1 .1 .1 .1"},
        {"data.yaml": "names: [cat]", "images/a.png": None, "labels/a.txt": b"\xff\xfe\xff"},
        {"JPEGImages/a.png": None, "Annotations/a.xml": voc(corners(9, 2, 3, 4))},
        {"JPEGImages/a.png": None, "Annotations/a.xml": voc("<name>cat</name>")},
        {"JPEGImages/a.png": None, "Annotations/a.xml": "<annotations><image/></annotations>"},
        {"JPEGImages/a.png": None, "Annotations/a.xml": voc(size="<size><width>7</width><height>7</height></size>")},
        {
            "a.png": None,
            "metadata.jsonl": {"file_name": "a.png", "objects": {"bbox": [[1, 2, -3, 4]], "category": [1]}},
        },
        {"a.png": None, "metadata.jsonl": {"file_name": "a.png", "objects": {"bbox": [[1, 2, 3]], "category": ["x"]}}},
        {"a.png": None, "metadata.jsonl": {"file_name": "a.png", "objects": "[broken"}},
        {"a.png": None, "metadata.jsonl": {"file_name": "a.png", "segments": {"category": ["x"], "size": [[1, 1]]}}},
        {"a.png": None, "metadata.jsonl": {"file_name": "a.png", "label": ["cat", "dog"]}},
    ],
)
def test_nothing_is_said_of_an_image_all_of_whose_annotations_were_refused(tmp_path: Path, files: Any) -> None:
    root = put(tmp_path, files)
    assert not any(said(root).values())
    assert sets.reasons(root)
    assert [one.incomplete for of in sets.of_images(root).values() for one in of if one.rejected or one.incomplete]


@pytest.mark.parametrize(
    "files",
    [
        {"a.png": None, "d.json": coco(BOX, BOX | {"category_id": 9})},
        {"data.yaml": "names: [cat]", "images/a.png": None, "labels/a.txt": "0 .5 .5 .1 .1\n0 1.04 .5 .1 .1"},
        {"JPEGImages/a.png": None, "Annotations/a.xml": voc(corners(1, 2, 3, 4), corners(9, 2, 3, 4))},
        {"a.png": None, "metadata.jsonl": {
            "file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4], [1, 2, 3, -4]], "category": ["cat", "cat"]},
        }},
    ],
)  # fmt: skip
def test_what_is_sound_is_kept_and_is_incomplete(tmp_path: Path, files: Any) -> None:
    root = put(tmp_path, files)
    assert [*said(root).values()] == [[(DETECTION, ["cat"], False)]]
    assert len(sets.reasons(root)) == 1


@pytest.mark.parametrize(
    "files",
    [
        {"a.png": None, "d.json": coco()},
        {"data.yaml": "names: [cat]", "images/a.png": None, "labels/a.txt": ""},
        {"JPEGImages/a.png": None, "Annotations/a.xml": voc()},
        {"a.png": None, "metadata.jsonl": {"file_name": "a.png", "objects": {"bbox": [], "category": []}}},
    ],
)
def test_an_annotation_that_is_empty_says_that_nothing_is_there(tmp_path: Path, files: Any) -> None:
    assert [*said(put(tmp_path, files)).values()] == [[(DETECTION, [], True)]]


@pytest.mark.parametrize(
    "files",
    [
        {"a.png": None, "d.json": {"images": [{"id": 1, "file_name": "a.png"}], "categories": []}},
        {"a.png": None, "d.json": coco() | {"annotations": [{"image_id": 1, "caption": "a cat"}]}},
        {"data.yaml": "names: [cat]", "images/a.png": None},
        {"JPEGImages/a.png": None},
        {"a.png": None, "metadata.jsonl": {"file_name": "a.png", "camera": 7}},
    ],
)  # fmt: skip
def test_an_image_without_an_annotation_is_not_labelled(tmp_path: Path, files: Any) -> None:
    assert not any(said(put(tmp_path, files)).values())


def test_a_prediction_of_which_a_part_was_refused_is_left_out(tmp_path: Path) -> None:
    """Without its refused boxes it would say that the model missed them."""
    root = put(tmp_path, {"a.png": None, "d.json": coco(BOX, BOX | {"category_id": 9})})
    (read,) = sets.of_images(root, options=ReadOptions(ModelName("m")))["a.png"]
    assert (read.predictions, len(read.rejected)) == ([], 2)


# The task of an image comes from its own annotations ----------------------------------------------------------


def test_boxes_and_masks_in_one_document(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate("abcd", start=1)]
    document = coco(
        BOX | {"segmentation": []},
        POLYGON | {"image_id": 2},
        BOX | {"image_id": 3},
        POLYGON | {"image_id": 3},
        images=images,
    )
    root = put(tmp_path, {**{f"{name}.png": None for name in "abcd"}, "d.json": document})
    assert said(root) == {
        "a.png": [(DETECTION, ["cat"], True)],
        "b.png": [(SEGMENTATION, ["cat"], True)],
        # One of the two instances has no mask: nobody said where it is not.
        "c.png": [(DETECTION, ["cat", "cat"], True), (SEGMENTATION, ["cat"], False)],
        "d.png": [(DETECTION, [], True)],
    }


def test_crowds_are_kept_as_regions(tmp_path: Path) -> None:
    rle = {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 32, WIDTH * HEIGHT - 32]}}
    crowds: list[dict[str, Any]] = [
        BOX | {"iscrowd": 1},
        BOX | rle | {"iscrowd": 1, "image_id": 2},
        POLYGON | {"image_id": 2},
    ]
    images = [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate("ab", start=1)]
    root = put(tmp_path, {"a.png": None, "b.png": None, "d.json": coco(*crowds, images=images)})
    found = sets.statements(root)
    boxed, drawn = found["a.png"][DETECTION], found["b.png"][SEGMENTATION]
    assert (boxed.boxes, len(boxed.crowd_boxes or ()), boxed.incomplete) == ([], 1, False)
    assert (len(drawn.masks or ()), len(drawn.crowd_masks or ()), drawn.incomplete) == (1, 1, False)
    assert sets.reasons(root) == []


def test_lvis_looked_for_some_classes_only(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cow"}]
    negatives = {"a": [2], "b": [2, 3], "c": [1, 2]}
    images = [
        {"id": i, "file_name": f"{n}.png", "neg_category_ids": ids, "not_exhaustive_category_ids": []}
        for i, (n, ids) in enumerate(negatives.items(), start=1)
    ]
    document = coco(BOX, BOX | {"image_id": 2}, images=images, categories=categories)
    root = put(tmp_path, {**{f"{n}.png": None for n in negatives}, "d.json": document})
    complete = (DETECTION, ["cat"], True)
    assert said(root) == {"a.png": [(*complete[:2], False)], "b.png": [complete], "c.png": []}


def test_void_pixels_of_voc_are_no_background(tmp_path: Path) -> None:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[2:6, 2:6], pixels[6:8, 2:6] = 1, 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    files = {"JPEGImages/a.png": None, "SegmentationObject/a.png": out.getvalue()}
    root = put(tmp_path, files | {"Annotations/a.xml": voc(corners(3, 3, 6, 6), corners(9, 9, 12, 12, "dog"))})
    found = sets.statements(root)["JPEGImages/a.png"]
    assert [m["label"] for m in found[SEGMENTATION].crowd_masks or ()] == [None]
    assert (len(found[SEGMENTATION].masks or ()), found[SEGMENTATION].incomplete) == (1, False)
    assert [b["label"] for b in found[DETECTION].boxes or ()] == ["cat", "dog"]


def test_a_difficult_object_of_voc_is_an_instance_and_that_is_said(tmp_path: Path) -> None:
    xml = voc(corners(1, 2, 3, 4, more="<difficult>1</difficult>"))
    root = put(tmp_path, {"JPEGImages/a.png": None, "Annotations/a.xml": xml})
    assert said(root)["JPEGImages/a.png"] == [(DETECTION, ["cat"], True)]
    assert sets.converted(root) == ["a difficult object is kept as an instance; that it is difficult is not"]


# Each document is a world of its own --------------------------------------------------------------------------


def test_ids_of_a_coco_document_are_its_own(tmp_path: Path) -> None:
    """As Roboflow exports: ids from 0 in each split, images beside the document."""
    for split, name in (("train", "cat"), ("valid", "dog")):
        document = coco(BOX | {"image_id": 0, "category_id": 0}, images=[{"id": 0, "file_name": f"{split}.png"}])
        document["categories"] = [{"id": 0, "name": name}]
        put(tmp_path / split, {f"{split}.png": None, "_annotations.coco.json": document})
    assert said(tmp_path) == {
        "train/train.png": [(DETECTION, ["cat"], True)],
        "valid/valid.png": [(DETECTION, ["dog"], True)],
    }
    read = sets.of_images(tmp_path)
    assert [one.metadata for of in read.values() for one in of] == [{"split": "train"}, {"split": "valid"}]
    assert [one.source for of in read.values() for one in of] == [
        str(tmp_path / split / "_annotations.coco.json") for split in ("train", "valid")
    ]


def test_two_documents_about_one_image_make_two_statements(tmp_path: Path) -> None:
    document = coco(BOX, categories=[{"id": 1, "name": "dog"}])
    put(tmp_path, {"a.png": None, "annotations/first.json": coco(BOX), "annotations/second.json": document})
    assert [one.ground_truths[0].classes() for one in sets.of_images(tmp_path)["a.png"]] == [{"cat"}, {"dog"}]


def test_results_belong_to_the_document_that_has_their_images(tmp_path: Path) -> None:
    for split, number in (("train", 1), ("val", 2)):
        document = coco(images=[{"id": number, "file_name": "a.png"}])
        put(tmp_path / split, {"a.png": None, "d.json": document})
    put(tmp_path / "val", {"results.json": [BOX | {"image_id": 2, "category_id": 1, "score": 0.5}]})
    read = sets.of_images(tmp_path)
    assert [len(of[0].predictions) for of in read.values()] == [0, 1]


def test_numbers_as_pandas_writes_them(tmp_path: Path) -> None:
    images = [{"id": 1.0, "file_name": "a.png", "width": "24", "height": "16"}]
    record = {"image_id": "1", "category_id": 1.0, "bbox": ["1", 2.0, "3.5", 4], "iscrowd": 0.0}
    root = put(tmp_path, {"a.png": None, "d.json": coco(record, images=images)})
    (box,) = sets.statements(root)["a.png"][DETECTION].boxes or ()
    assert (box["x"], box["y"], box["width"], box["height"]) == (1, 2, 3.5, 4)


def test_two_images_with_one_id_say_nothing_and_one_image_with_two_ids_is_one(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}, {"id": 2, "file_name": "c.png"}]
    document = coco(
        BOX, BOX | {"image_id": 2}, BOX | {"image_id": 3}, images=[*images, {"id": 3, "file_name": "c.png"}]
    )
    root = put(tmp_path, {"a.png": None, "b.png": None, "c.png": None, "d.json": document})
    assert said(root) == {"a.png": [], "c.png": [(DETECTION, ["cat", "cat"], True)]}


def test_a_path_of_another_machine_is_found_by_its_name_if_that_is_unique(tmp_path: Path) -> None:
    written = "..\\..\\label-studio\\media\\upload\\4\\cb06-x.png"
    files = {"images/cb06-x.png": None, "d.json": coco(BOX, images=[{"id": 1, "file_name": written}])}
    root = put(tmp_path / "one", files)
    assert said(root) == {"images/cb06-x.png": [(DETECTION, ["cat"], True)]}
    assert sets.converted(root) == ["the path leads elsewhere; the file of that name in the data set was taken"]
    root = put(tmp_path / "two", files | {"other/cb06-x.png": None})
    (reason,) = sets.reasons(root)
    assert "leads out of the data set's folder, and 2 files" in reason


# YOLO -----------------------------------------------------------------------------------------------------------


def a_yolo(root: Path, yaml: str, *labels: str) -> Path:
    files: dict[str, Any] = {"data.yaml": yaml}
    for number, label in enumerate(labels):
        files |= {f"images/{number}.png": None, f"labels/{number}.txt": label}
    return put(root, files)


@pytest.mark.parametrize(
    ("shape", "line"),
    [("[3, 2]", "0 .5 .5 .4 .4 .4 .4 .6 .4 .5 .6"), ("[3, 3]", "0 .5 .5 .4 .4 .4 .4 1 .6 .4 2 .5 .6 0")],
)
def test_of_a_pose_the_box_is_taken(tmp_path: Path, shape: str, line: str) -> None:
    root = a_yolo(tmp_path, f"names: [cat]\nkpt_shape: {shape}", line)
    assert said(root) == {"images/0.png": [(DETECTION, ["cat"], True)]}
    assert sets.converted(root) == ["keypoints are not kept; the box is"]


TURNED = "0 .5 .25 .75 .5 .5 .75 .25 .5"


def test_a_turned_box_is_kept_as_polygon_and_enclosing_box(tmp_path: Path) -> None:
    for yaml, labels in (("names: [cat]\ntask: obb", (TURNED, "")), ("names: [cat]", (TURNED, TURNED))):
        root = a_yolo(tmp_path / str(len(yaml)), yaml, *labels)
        found = sets.statements(root)["images/0.png"]
        (box,), (mask,) = found[DETECTION].boxes or (), found[SEGMENTATION].masks or ()
        assert (box["x"], box["y"], box["width"], box["height"]) == (6, 4, 12, 8)
        assert mask["label"] == "cat"
        assert "a turned box (OBB) is kept as a polygon and its enclosing box" in sets.converted(root)
    assert said(a_yolo(tmp_path / "empty", "names: [cat]\ntask: obb", ""))["images/0.png"] == [
        (DETECTION, [], True),
        (SEGMENTATION, [], True),
    ]


def test_a_polygon_of_four_points_among_others_is_a_polygon(tmp_path: Path) -> None:
    root = a_yolo(tmp_path, "names: [cat]", TURNED, "0 .1 .1 .5 .1 .5 .5 .3 .3 .1 .5")
    assert said(root)["images/0.png"] == [(SEGMENTATION, ["cat"], True)]
    assert sets.converted(root) == []


def test_noise_at_the_edge_is_clamped_and_more_is_refused(tmp_path: Path) -> None:
    root = a_yolo(tmp_path, "names: [cat]", "0 1.0000001 .5 .2 1.001", "0 1.04 .5 .1 .1", "0 -.0005 .5 .1 .1")
    assert [*said(root).values()] == [[(DETECTION, ["cat"], True)], [], [(DETECTION, ["cat"], True)]]
    assert len(sets.converted(root)) == 2
    assert sets.reasons(root) == ["a coordinate is 1.04, not between 0 and 1: YOLO's are fractions of the image's size"]


def test_label_files_beside_their_images_are_found(tmp_path: Path) -> None:
    files = {
        f"{split}/{n}": c for split in ("train", "valid") for n, c in {"a.png": None, "a.txt": "0 .5 .5 .1 .1"}.items()
    }
    root = put(tmp_path / "flat", files | {"classes.txt": "cat\n"})
    assert sources.resolve(root, "auto") == "yolo"
    assert said(root) == {f"{split}/a.png": [(DETECTION, ["cat"], True)] for split in ("train", "valid")}
    assert [of[0].metadata for of in sets.of_images(root).values()] == [{"split": "train"}, {"split": "valid"}]
    captions = put(tmp_path / "captions", {"a.png": None, "a.txt": "a cat on a mat", "b.png": None})
    assert sources.resolve(captions, "auto") == "folder"


def test_the_split_is_the_yamls(tmp_path: Path) -> None:
    yaml = "names: [cat]\ntrain: ../one/images\nval: two/images\ntest: two/images\n"
    root = put(tmp_path, {"data.yaml": yaml, "one/images/a.png": None, "two/images/b.png": None})
    assert [of[0].metadata for of in sets.of_images(root).values()] == [{"split": "train"}, {}]


def test_several_yolo_sets_below_a_folder_have_their_own_names(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        a_yolo(tmp_path / name, f"names: [{name}]", "0 .5 .5 .1 .1")
    assert said(tmp_path) == {f"{n}/images/0.png": [(DETECTION, [n], True)] for n in ("cat", "dog")}


def test_a_label_file_without_its_image_is_named(tmp_path: Path) -> None:
    root = put(a_yolo(tmp_path, "names: [cat]", ""), {"labels/gone.txt": "0 .5 .5 .1 .1"})
    assert sets.reasons(root) == ["the data set has no image with this name"]


# VOC, class folders, files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("folders", [("", ""), ("images/", "annotations/"), ("train/", "train/")])
def test_xml_beside_images_is_found(tmp_path: Path, folders: tuple[str, str]) -> None:
    images, sheets = folders
    root = put(tmp_path, {f"{images}a.png": None, f"{sheets}a.xml": voc(corners(1, 2, 3, 4))})
    assert sources.resolve(root, "auto") == "voc"
    assert said(root) == {f"{images}a.png": [(DETECTION, ["cat"], True)]}


def test_the_split_of_voc_is_that_of_its_image_sets(tmp_path: Path) -> None:
    files = {f"JPEGImages/{n}.png": None for n in "abc"}
    sets_of = {"ImageSets/Main/train.txt": "a\nc\n", "ImageSets/Main/val.txt": "b\nc\n"}
    read = sets.of_images(put(tmp_path, files | sets_of))
    assert [of[0].metadata for of in read.values()] == [{"split": "train"}, {"split": "val"}, {}]


def test_class_folders_below_splits_are_the_classes(tmp_path: Path) -> None:
    names = ["train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "test/3.png"]
    root = put(tmp_path, dict.fromkeys(names))
    assert sources.resolve(root, "auto") == "imagefolder"
    read = sets.of_images(root)
    assert {n: ([t.label for t in of[0].ground_truths], of[0].metadata) for n, of in read.items()} == {
        "train/cat/1.png": (["cat"], {"split": "train"}),
        "train/dog/1.png": (["dog"], {"split": "train"}),
        "val/cat/2.png": (["cat"], {"split": "val"}),
        "test/3.png": ([], {"split": "test"}),
    }
    assert read["train/cat/1.png"][0].source == str(tmp_path / "train")


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.png", "val/2.png"],
        ["images/1.png", "masks/1.png"],
        ["2024-05-01/1.png", "2024-05-02/1.png"],
        ["a/cat/1.png", "a/dog/2.png", "b/cat/3.png"],
    ],
)
def test_folders_that_are_no_classes_are_not_read_so_and_that_is_said(tmp_path: Path, names: list[str]) -> None:
    root = put(tmp_path, dict.fromkeys(names))
    assert sources.resolve(root, "auto") == "folder"
    assert not any(said(root).values())
    (note,) = [item.note for item in sources.read(root, "folder") if item.note]
    assert "folders were not read as classes" in note


def test_files_are_told_by_their_first_bytes_and_the_others_are_counted(tmp_path: Path) -> None:
    files = {"0a1b2c": None, "b.dat": None, "notes.txt": "BMW", "x.heic2": b"\0\0\0\x18ftypheic", ".hidden.png": None}
    root = put(tmp_path, files | {"c.png": None, "c.json": {"shapes": []}, "noext": "text"})
    items = [*sources.read(root, "folder")]
    assert [i.path.name for i in items if i.path] == ["0a1b2c", "b.dat", "c.png"]
    assert sorted(i.passed_over for i in items if i.passed_over) == [
        *("hidden", "not an image (.json)", "not an image (.txt)", "not an image (without an extension)"),
    ]
    assert [i.error for i in items if i.error] == [
        "an image of a format that is not supported; convert it to JPEG or PNG"
    ]
    assert [i.note for i in items if i.note] == [
        "1 .json files are named as images beside them; they were not read: it is no layout we know"
    ]


def test_a_tars_class_number_without_a_name_is_refused(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name, data in {"a.png": PNG, "a.cls": b"7", "b.png": PNG, "b.cls": b"0", "b.npy": b"x"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    put(tmp_path, {"classes.txt": "cat\n"})
    items = [*sources.read(tmp_path, "auto")]
    assert [i.error for i in items if i.error] == [
        "its annotations are broken: class 7 is not in classes.txt, which has 1 classes"
    ]
    read = [i.read_annotations(WIDTH, HEIGHT) for i in items if i.read_annotations]
    assert [[t.label for t in one.ground_truths] for one in read] == [[], ["cat"]]
    assert [one.metadata for one in read] == [{"split": "train"}] * 2
    assert [i.passed_over for i in items if i.passed_over] == [
        "a member of a tar that is no image, .json, .cls or .txt"
    ]


def test_metadata_of_lists_of_objects_and_numbers_as_text(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png", "objects": [{"bbox": ["1", 2, 3, 4], "label": 5.0}], "label": 3.0},
        {"file_name": "b.png", "objects": [], "label": None},
    ]
    root = put(tmp_path, {"a.png": None, "b.png": None, "metadata.jsonl": "\n".join(map(json.dumps, rows))})
    assert said(root) == {
        "a.png": [("classification", "3", True), (DETECTION, ["5"], True)],
        "b.png": [(DETECTION, [], True)],
    }
