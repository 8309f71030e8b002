"""Data set formats: what is written is read again, by us and by the formats' own readers; strangers' are checked."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lake import ids
from lake.errors import BadInput
from lake.formats import annotation, arrow_rows
from lake.formats.annotation import (
    CLASSIFICATION,
    DETECTION,
    SEGMENTATION,
    Annotations,
    ExportSample,
    GroundTruth,
    ModelName,
)
from lake.formats.coco import documents as coco
from lake.formats.export_files import ExportPart, ExportPlan, WholeExport
from lake.formats.item import ReadOptions
from lake.formats.paths import MANIFEST
from lake.formats.voc import reader as voc
from lake.formats.voc import writer as voc_writer
from lake.formats.voc.xml_elements import parse
from lake.formats.yolo import data_sets
from lake.formats.yolo import writer as yolo_writer
from lake.ingest import sources
from lake.regions import masks, polygons
from lake.slices import export
from lake.storage.blobs import StoredImage
from tests import pictures

WIDTH, HEIGHT = 24, 16
PICTURES = [pictures.encoded(pictures.noise(i, WIDTH, HEIGHT), "PNG" if i % 2 else "JPEG") for i in range(3)]
ODD = [
    "../x",
    "a/b",
    "é ü",
    "b:c\n",
    "con",
    '"quoted"',
    "\x7f",
    "a,b",
    "0",
    "#",
    "null",
    " x ",
    "\u2028",
    "x" * 300,
    "=1+1",
    "'=1+1",
    "-1.5",
    "\t@a",
]

names = st.one_of(st.sampled_from(ODD), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8))
maybe = st.one_of(st.none(), names)
side = st.floats(0, 8, allow_nan=False).map(lambda v: v + 0.0)


@st.composite
def boxes(draw: Any, scores: bool) -> list[dict[str, Any]]:
    score = st.floats(0, 1) if scores else st.none()
    corner = st.tuples(side, side, side, side)
    return draw(st.lists(st.builds(annotation.box, maybe, corner, score), max_size=3))


@st.composite
def drawn_masks(draw: Any, scores: bool) -> list[dict[str, Any]]:
    """Instances that share no pixel, each with one at least: what VOC can say."""
    count = draw(st.integers(0, 3))
    owner = np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, count + 1, (HEIGHT, WIDTH))
    score = st.floats(0, 1) if scores else st.none()
    owner[0, :count] = range(1, count + 1)
    return [
        annotation.mask(draw(maybe), masks.encode(owner == i + 1), HEIGHT, WIDTH, draw(score)) for i in range(count)
    ]


@st.composite
def statements(draw: Any, tasks: tuple[str, ...], scores: bool) -> dict[str, GroundTruth]:
    truths = {}
    for task in tasks:
        if draw(st.booleans()):
            if task == CLASSIFICATION:
                truths[task] = GroundTruth(task, draw(names))
            elif task == DETECTION:
                truths[task] = GroundTruth(task, boxes=draw(boxes(scores)))
            else:
                truths[task] = GroundTruth(task, masks=draw(drawn_masks(scores)))
    return truths


def write(format: str, truths: list[dict[str, GroundTruth]], out: Path) -> ExportPart:
    """A data set of the three pictures, without a lake."""
    every = [t for of in truths for t in of.values()]
    plan = ExportPlan(
        "s@1",
        len(truths),
        sorted(annotation.instance_classes(every)),
        sorted({str(t.label) for t in every if t.task == CLASSIFICATION}),
        SEGMENTATION if any(t.task == SEGMENTATION for t in every) else DETECTION,
    )
    part, left = ExportPart(out, plan, 0), out.with_name(out.name + "-lines")
    images = [
        StoredImage(ids.image_id(d), d, "PNG" if i % 2 else "JPEG", WIDTH, HEIGHT, "x") for i, d in enumerate(PICTURES)
    ]
    out.mkdir()
    left.mkdir()
    export.FORMATS[format].write(
        part, (ExportSample(i, im, t) for i, (im, t) in enumerate(zip(images, truths, strict=True)))
    )
    for name, lines in part.lines.items():
        (left / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    export.FORMATS[format].finish(WholeExport(out, plan, [left]))
    facts: dict[str, Any] = {"format": format, "state": "complete"}
    if format == "imagefolder":
        from lake.formats import imagefolder

        facts["classes"] = imagefolder.folders(list(plan.labels))
    (out / MANIFEST).write_text(json.dumps(facts))
    return part


def read(out: Path) -> dict[str, Annotations]:
    """By image_id what `auto` reads of a data set in which nothing is wrong."""
    annotations_of = {}
    for item in sources.read(out, sources.resolve(out, "auto")):
        assert item.error is None, item
        if item.passed_over is not None:
            continue
        data = item.data if item.path is None else item.path.read_bytes()
        annotations = item.read_annotations(WIDTH, HEIGHT) if item.read_annotations else Annotations()
        assert annotations.rejected == []
        assert data is not None
        annotations_of[ids.image_id(data)] = annotations
    return annotations_of


def same(annotations: Annotations, expected: dict[str, GroundTruth], exact: bool) -> None:
    """The statements agree; of boxes whose coordinates a format says otherwise, to a millionth of a pixel."""
    by_task = {t.task: t for t in annotations.ground_truths}
    assert {*by_task} == {*expected}
    for task, truth in expected.items():
        mine = by_task[task]
        assert (mine.label, mine.masks) == (truth.label, truth.masks)
        assert [b["label"] for b in mine.boxes or ()] == [b["label"] for b in truth.boxes or ()]
        if exact:
            assert mine.boxes == truth.boxes
        for one, other in zip(mine.boxes or (), truth.boxes or (), strict=True):
            assert all(abs(one[k] - other[k]) < 1e-6 for k in ("x", "y", "width", "height"))


# What of a statement each format can say, and whether boxes come back to the last bit.
SAYS: dict[str, tuple[tuple[str, ...], bool, bool]] = {
    "imagefolder": ((CLASSIFICATION,), False, True),
    "coco": ((CLASSIFICATION, DETECTION, SEGMENTATION), True, True),
    "jsonl": ((CLASSIFICATION, DETECTION, SEGMENTATION), True, True),
    "csv": ((CLASSIFICATION, DETECTION, SEGMENTATION), True, True),
    "hf": ((CLASSIFICATION, DETECTION, SEGMENTATION), True, True),
    "webdataset": ((CLASSIFICATION, DETECTION, SEGMENTATION), True, True),
    "parquet": ((CLASSIFICATION, DETECTION, SEGMENTATION), True, True),
    "lance": ((CLASSIFICATION, DETECTION, SEGMENTATION), True, True),
    "yolo": ((DETECTION,), False, False),
    "voc": ((DETECTION,), False, False),
}


def _sayable(format: str, truths: list[dict[str, GroundTruth]]) -> bool:
    """Whether the format has characters for every class. CSV has no NUL, XML no control characters."""
    every = {name for of in truths for t in of.values() for name in t.classes()}
    return not (
        (format == "csv" and any("\0" in n for n in every))
        or (format == "voc" and any(voc_writer._NOT_XML.search(n) for n in every))
    )


@pytest.mark.parametrize("format", SAYS)
def test_what_is_written_is_read_again(format: str, say: Any) -> None:
    round_trip(format, 12)


@pytest.mark.soak
@pytest.mark.parametrize("format", SAYS)
def test_what_is_written_is_read_again_long(format: str, say: Any) -> None:
    say(f"{format}: {round_trip(format, 1_000):,} data sets of three images written and read again")


def round_trip(format: str, most: int) -> int:
    tasks, scores, exact = SAYS[format]
    ran = 0

    @settings(max_examples=most)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal ran
        kinds = (
            (data.draw(st.sampled_from([(DETECTION,), (SEGMENTATION,)])),)[0] if format in ("yolo", "voc") else tasks
        )
        said = [data.draw(statements(kinds, scores)) for _ in PICTURES]
        if format == "voc" and SEGMENTATION in kinds:
            said = [{k: annotation.without_redundant_boxes(t) for k, t in of.items()} for of in said]
        if not _sayable(format, said):
            return
        ran += 1
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "out")
            part = write(format, said, out)
            assert not part.unsaid
            found = read(out)
        assert {*found} == {ids.image_id(p) for p in PICTURES}
        for picture, wanted in zip(PICTURES, said, strict=True):
            same(found[ids.image_id(picture)], wanted, exact)

    check()
    assert ran
    return ran


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32), st.floats(0, 1))
def test_an_outline_filled_is_the_mask(height: int, width: int, seed: int, share: float) -> None:
    """Whatever its parts and holes are."""
    mask = np.random.default_rng(seed).random((height, width)) < share
    line = [v for point in polygons.outline(mask) for v in point]
    filled = polygons.fill([line], height, width) if line else masks.encode(np.zeros_like(mask))
    assert (masks.decode(filled, height, width) == mask).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_fill_as_pycocotools_does(say: Any) -> None:
    reference = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for turn in range(300):
        height, width = rng.integers(1, 60, 2).tolist()
        many = [(rng.random(2 * rng.integers(3, 12)) * 70 - 5).round(turn % 3).tolist() for _ in range(1 + turn % 2)]
        theirs = reference.decode(reference.merge(reference.frPyObjects(many, height, width)))
        assert (masks.decode(polygons.fill(many, height, width), height, width) == theirs).all(), (many, height, width)
    say("polygons: 300 random ones filled to the same pixels as pycocotools'")


# Strangers' files --------------------------------------------------------------------------------------------


def refused(items: Any, size: tuple[int, int] = (WIDTH, HEIGHT)) -> list[str]:
    """Every reason in a data set, of files and of annotations."""
    out = []
    for item in items:
        out += [item.error] if item.error else []
        out += [reason for _, reason in item.read_annotations(*size).rejected] if item.read_annotations else []
    return out


def a_coco(root: Path, annotations: list[Any], **more: Any) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.png").write_bytes(PICTURES[1])
    image = {"id": 7, "file_name": "a.png"} | more
    document = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (root / "annotations.json").write_text(json.dumps(document))
    return root


GOOD = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_id": 8}, "no image has the id 8"),
        ({"image_id": None}, "it has no image_id"),
        ({"category_id": 9}, "no category has the id 9"),
        ({"bbox": [1, 2, 3]}, "bbox is not"),
        ({"bbox": [1, 2, -3, 4]}, "negative width"),
        ({"bbox": [1, 2, 1e400, 4]}, "the box's width is inf, not a finite number"),
        ({"score": 3}, "the score is 3"),
        ({"segmentation": [[1, 2, 3]]}, "three points"),
        ({"segmentation": [[1e9, 0, 0, 1, 5, 5]]}, "farther outside"),
        ({"segmentation": {"size": [3, 3], "counts": "1"}}, "the mask's size"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5]}}, "do not add up"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "~"}}, "character"),
    ],
)
def test_every_annotation_that_cannot_be_taken_has_a_reason(tmp_path: Path, change: Any, reason: str) -> None:
    """The good one beside it is taken."""
    items = [*sources.read(a_coco(tmp_path / "x", [GOOD, GOOD | change]), "coco")]
    (found,) = refused(items)
    assert reason in found
    taken = [t for item in items if item.read_annotations for t in item.read_annotations(WIDTH, HEIGHT).ground_truths]
    assert sum(len(t.boxes or ()) for t in taken) == 1


def test_a_picture_of_another_size_than_the_document_says(tmp_path: Path) -> None:
    """Its boxes would lie elsewhere: EXIF turned it, or it is another picture."""
    root = a_coco(tmp_path / "x", [GOOD], width=HEIGHT, height=WIDTH)
    assert refused(sources.read(root, "coco")) == ["the document says 16 x 24, the upright image is 24 x 16"]


def test_results_are_answers_of_a_model(tmp_path: Path) -> None:
    root = a_coco(tmp_path / "x", [GOOD])
    (root / "results.json").write_text(json.dumps([GOOD | {"score": 0.5}]))
    (item,) = sources.read(root, "auto", ReadOptions(ModelName("m7", "2")))
    assert item.read_annotations is not None
    first, second = item.read_annotations(WIDTH, HEIGHT).predictions
    assert (first["model"], second["model"], second["boxes"][0]["score"]) == ("m7", "m7", 0.5)
    (item,) = sources.read(root / "results.json", "auto")
    assert item.read_annotations is not None
    said = item.read_annotations(WIDTH, HEIGHT)
    assert [b["score"] for b in said.predictions[0]["boxes"]] == [0.5]
    assert [t.task for t in said.ground_truths] == [DETECTION]


OUTSIDE = ["../secret.png", "/etc/passwd", "link.png", "a\0b", "http://x/a.png", "..\\secret.png", ""]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_path_of_a_data_set_leaves_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(PICTURES[1])
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    for folder in (root, root / "images"):
        (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "annotations.json").write_text(json.dumps({"images": [{"id": 1, "file_name": name}], "categories": []}))
    (root / "rows").mkdir()
    (root / "rows" / "metadata.jsonl").write_text(json.dumps({"file_name": name.replace("link", "../link")}) + "\n")
    (root / "data.yaml").write_text(json.dumps({"names": ["a"], "train": name, "val": "."}))
    for layout, place in (("coco", root), ("metadata", root / "rows"), ("yolo", root)):
        items = [*sources.read(place, layout)]  # type: ignore[arg-type]
        assert any(item.error for item in items), layout
        assert not [i for i in items if i.path and i.path.resolve() == (tmp_path / "secret.png") and not i.error], (
            layout
        )


BOMB = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><annotation><filename>&b;</filename></annotation>'
LEAK = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><filename>&a;</filename></annotation>'


@pytest.mark.parametrize(
    ("sheet", "reason"),
    [
        (BOMB, "document type declaration"),
        (LEAK, "document type declaration"),
        (b"<annotation>&b;</annotation>", "broken XML"),
        (b"<a>" * 100, "nested deeper"),
        (b"", "broken XML"),
        (
            b"<annotation><size><width>1</width><height>2</height></size></annotation>",
            "the document says 1 x 2, the upright image is 24 x 16",
        ),
        (b"<annotation><object><name>a</name></object></annotation>", "it has no bndbox"),
    ],
)
def test_xml_is_read_without_entities(tmp_path: Path, sheet: bytes, reason: str) -> None:
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir()
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(PICTURES[0])
    (tmp_path / "Annotations" / "a.xml").write_bytes(sheet)
    (found,) = refused(sources.read(tmp_path, "auto"))
    assert reason in found


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 .5 .5 .1", "a box has 4"),
        ("9 .5 .5 .1 .1", "class 9 has no name"),
        ("x .5 .5 .1 .1", "number 1 is 'x', not a number"),
        ("0 50 50 10 10", "fractions of the image's size"),
        ("0 nan .5 .1 .1", "'nan', not a number"),
        ("0 .5 .5 .1 .1 3", "the score is 3"),
    ],
)
def test_a_line_of_yolo_that_says_nothing(tmp_path: Path, line: str, reason: str) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "a.png").write_bytes(PICTURES[1])
    (tmp_path / "labels" / "a.txt").write_text(f"0 .5 .5 .25 .5\n{line}\n")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: ../images\n")
    items = [*sources.read(tmp_path, "auto")]
    (found,) = refused(items)
    assert reason in found
    assert items[0].read_annotations is not None
    (box,) = items[0].read_annotations(WIDTH, HEIGHT).ground_truths[0].boxes or ()
    assert (box["label"], box["x"], box["y"], box["width"], box["height"]) == ("cat", 9, 4, 6, 8)


def test_metadata_of_other_tools(tmp_path: Path) -> None:
    """Class numbers and `categories` as the Hub has them; other columns are kept; unnamed images come along."""
    for name, data in zip("ab", PICTURES, strict=False):
        (tmp_path / f"{name}.png").write_bytes(data)
    row = {"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]], "categories": [5]}, "camera": 7, "text": "hm"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + '\nbroken\n{"x": 1}\n')
    items = [*sources.read(tmp_path, "auto")]
    assert [bool(i.error) for i in items] == [False, True, True, False]
    assert items[0].read_annotations is not None
    said = items[0].read_annotations(WIDTH, HEIGHT)
    assert said.metadata == {"camera": 7, "text": "hm"}
    assert said.ground_truths == [GroundTruth(DETECTION, boxes=[annotation.box("5", (1, 2, 3, 4))])]


def test_a_voc_box_without_width_is_read_where_its_corners_round() -> None:
    sheet = voc_writer._xml("a", WIDTH, HEIGHT, [annotation.box("cat", (7.584661237671443, 2, 0, 4))], False)
    (element,) = [child for child in parse(sheet.encode()).children if child.name == "object"]
    assert voc.read_box(element, own=True)["width"] == 0


def test_a_tar_is_never_unpacked(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in (("../../a.png", PICTURES[1]), ("../../a.json", b'{"label": "cat"}'), ("b.json", b"{")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("c.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    items = [*sources.read(tmp_path, "auto")]
    taken = [i for i in items if i.data is not None]
    assert [i.data for i in taken] == [PICTURES[1]]
    assert sorted(i.error for i in items if i.error) == ["no image among json", "not a regular file"]
    assert [p.name for p in tmp_path.rglob("*")] == ["x.tar"]


# The formats' own readers ------------------------------------------------------------------------------------

BOX, MASK = annotation.box("dog", (1, 2, 3.25, 4)), np.zeros((HEIGHT, WIDTH), bool)
MASK[2:6, 3:9] = True
SAID: list[dict[str, GroundTruth]] = [
    {CLASSIFICATION: GroundTruth(CLASSIFICATION, "cat"), DETECTION: GroundTruth(DETECTION, boxes=[BOX, BOX])},
    {
        CLASSIFICATION: GroundTruth(CLASSIFICATION, "é"),
        SEGMENTATION: GroundTruth(SEGMENTATION, masks=[annotation.mask("cow", masks.encode(MASK), HEIGHT, WIDTH)]),
    },
    {},
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # compiled before numpy 2
def test_pycocotools_reads_coco(tmp_path: Path) -> None:
    reader = pytest.importorskip("pycocotools.coco")
    write("coco", SAID, tmp_path / "out")
    found = reader.COCO(tmp_path / "out" / "annotations.json")
    assert [c["name"] for c in found.loadCats(found.getCatIds())] == ["cow", "dog"]
    (one,) = found.loadAnns(found.getAnnIds(catIds=found.getCatIds(["cow"])))
    assert (found.annToMask(one) == MASK).all()
    assert one["area"] == MASK.sum()
    assert [a["bbox"] for a in found.loadAnns(found.getAnnIds(imgIds=[1]))] == [[1, 2, 3.25, 4]] * 2


def test_torchvision_reads_folders_coco_and_voc(tmp_path: Path) -> None:
    from embeddings.embedders import torch_import

    readers = torch_import.torchvision().datasets
    for format in ("imagefolder", "coco", "voc"):
        write(format, SAID, tmp_path / format)
    folder = readers.ImageFolder(tmp_path / "imagefolder")
    assert (len(folder), len(folder.classes)) == (3, 3)
    if coco_reader := pytest.importorskip("pycocotools.coco"):
        assert coco_reader
        found = readers.CocoDetection(tmp_path / "coco" / "images", tmp_path / "coco" / "annotations.json")
        assert [len(target) for _, target in found] == [2, 1, 0]
    boxed = readers.VOCDetection(tmp_path / "voc", "2012", "train")
    corners = [o["bndbox"] for _, sheet in boxed for o in sheet["annotation"]["object"]]
    assert corners[0] == {"xmin": "2", "ymin": "3", "xmax": "4.25", "ymax": "6"}
    ((picture, pixels),) = readers.VOCSegmentation(tmp_path / "voc", "2012", "train")
    assert picture.size == pixels.size
    assert ((np.asarray(pixels) == 1) == MASK).all()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_webdataset_reads_its_tars(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    write("webdataset", SAID, tmp_path / "out")
    found = [*wds.WebDataset(str(tmp_path / "out" / "part-000000.tar"), shardshuffle=False).decode("pil")]
    assert [s["json"]["label"] for s in found] == ["cat", "é", None]
    assert [s.get("cls") for s in found] == [0, 1, None]
    assert all((s.get("png") or s["jpg"]).size == (WIDTH, HEIGHT) for s in found)


def test_datasets_reads_the_hubs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    write("hf", SAID, tmp_path / "out")
    (tmp_path / "out" / MANIFEST).unlink()
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    rows = [*found["train"]]
    assert [r["label"] for r in rows] == ["cat", "é", None]
    assert rows[0]["objects"]["bbox"] == [[1, 2, 3.25, 4]] * 2
    assert rows[0]["image"].size == (WIDTH, HEIGHT)


def test_a_reader_as_ultralytics_has_one(tmp_path: Path) -> None:
    """Its rules, from its documentation: names, paths relative to the YAML, a text file an image, values in 0 to 1."""
    import yaml

    write(
        "yolo", [{DETECTION: SAID[0][DETECTION]}, {DETECTION: GroundTruth(DETECTION, boxes=[])}, {}], tmp_path / "out"
    )
    data = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    files = sorted((tmp_path / "out" / data["train"]).iterdir())
    texts = {p.stem: Path(str(p).replace("/images/", "/labels/")).with_suffix(".txt") for p in files}
    lines = [np.array([ln.split() for ln in t.read_text().splitlines()], float) for t in texts.values() if t.exists()]
    assert sorted(len(ln) for ln in lines) == [0, 2]
    rows = next(ln for ln in lines if len(ln))
    assert rows.shape == (2, 5)
    assert (rows[:, 1:] <= 1).all()
    assert data["names"][int(rows[0, 0])] == "dog"
    assert rows[0, 1:] * [WIDTH, HEIGHT, WIDTH, HEIGHT] == pytest.approx([2.625, 4, 3.25, 4])


def test_documents_are_told_by_how_they_begin(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"info": {}, "images": [], "categories": []}')
    (tmp_path / "b.json").write_text('[{"image_id": 1, "category_id": 2}]')
    (tmp_path / "c.json").write_text('{"name": "package"}')
    assert [p.name for p in coco.find(tmp_path)] == ["a.json", "b.json"]
    assert data_sets.description(tmp_path) is None
    assert not arrow_rows.holds_images(tmp_path / "a.json")
    with pytest.raises(BadInput, match="neither a folder"):
        sources.resolve(tmp_path / "c.json", "auto")


@given(st.text(max_size=30))
@example("\x85\u2028\ufeff\ufffe\U0001f600")
def test_yaml_has_any_name(name: str) -> None:
    import yaml

    assert yaml.safe_load(f"a: {yolo_writer._quoted(name)}") == {"a": name}


def test_the_palette_is_the_development_kits() -> None:
    colours = voc_writer._palette()
    assert [colours[3 * i : 3 * i + 3] for i in (0, 1, 2, 15, 255)] == [
        *([0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [224, 224, 192]),
    ]
    assert Image.open(io.BytesIO(voc_writer._png(np.zeros((2, 2), np.uint8)))).mode == "P"
