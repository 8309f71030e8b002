"""Exports a slice in a format that other tools read: a job in parts that resumes where it was stopped.

    report = export(lake, slices.get(lake, "rainy"), Path("rainy"), "coco", predictions="m7", progress=print)

The target is an empty or new folder. During the export, `.lakeloop-export/` in it has the plan (the images and the
labels, fixed at the start) and the files of each finished part; the same call again checks those files against their
hashes and continues. At the end `lakeloop-export.json` lists what was written and what was left out, and
`lakeloop-export.sha256` has the hash of every file (`sha256sum -c` reads it).
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake import slices, whole_file
from lake.errors import BadInput, CouldNot
from lake.formats import arrow_rows, file_list, imagefolder, marks, metadata, webdataset
from lake.formats.annotation import (
    CLASSIFICATION,
    DETECTION,
    SEGMENTATION,
    ExportSample,
    GroundTruth,
    as_json,
    instance_classes,
    prediction_regions,
)
from lake.formats.coco import writer as coco
from lake.formats.export_files import ExportPart, ExportPlan, WholeExport, WrittenFile, on_disk
from lake.formats.label_studio import writer as label_studio
from lake.formats.paths import MANIFEST
from lake.formats.voc import writer as voc
from lake.formats.yolo import writer as yolo
from lake.slices import ground_truth
from lake.sql import connections
from lake.storage import blobs
from lake.version import VERSION

if TYPE_CHECKING:
    from lake.slices import Slice
    from lake.storage.store import Lake

STATE = ".lakeloop-export"
HASHES = "lakeloop-export.sha256"
# A stopped part is written again: a few seconds' work for small files. A part holds 64 MB in memory.
PART_IMAGES = 256


@dataclass(frozen=True)
class ExportFormat:
    """The writer of a format, and what it has a place for: a model's predictions, crowd regions, incomplete labels.

    `background`: an image without annotations is one that shows nothing, so an image whose label is incomplete is left
    out.
    """

    write: Callable[[ExportPart, Iterator[ExportSample]], None]
    finish: Callable[[WholeExport], None]
    predictions: bool = True
    crowds: bool = False
    incomplete: bool = False
    background: bool = False


_ROWS = {"crowds": True, "incomplete": True}
FORMATS = {
    "imagefolder": ExportFormat(imagefolder.write, imagefolder.finish, predictions=False),
    "coco": ExportFormat(coco.write, coco.finish, crowds=True, background=True),
    "yolo": ExportFormat(yolo.write, yolo.finish, background=True),
    "voc": ExportFormat(voc.write, voc.finish, predictions=False, background=True),
    "csv": ExportFormat(metadata.write, metadata.finish_csv, **_ROWS),
    "jsonl": ExportFormat(metadata.write, metadata.finish_jsonl, **_ROWS),
    "parquet": ExportFormat(arrow_rows.write_parquet, arrow_rows.finish_parquet, **_ROWS),
    "webdataset": ExportFormat(webdataset.write, webdataset.finish, **_ROWS),
    "hf": ExportFormat(metadata.write_hub, metadata.finish_hub, **_ROWS),
    "list": ExportFormat(file_list.write, file_list.finish, predictions=False),
    "label-studio": ExportFormat(label_studio.write, label_studio.finish),
    "lance": ExportFormat(arrow_rows.write_lance, arrow_rows.finish_lance, **_ROWS),
}


@dataclass
class ExportReport:
    """What an export wrote. `left_out`: images that could not be written, with the reason. `unsaid`: what the format
    has no place for, with its count. `resumed`: images that an earlier run had written. `already`: the export was
    finished before.
    """

    slice: str
    format: str
    out: str
    images: int = 0
    files: int = 0
    bytes: int = 0
    left_out: list[dict[str, str]] = field(default_factory=list)
    unsaid: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    already: bool = False
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def export(
    lake: Lake,
    slice_: Slice,
    out: str | Path,
    format: str,
    *,
    predictions: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> ExportReport:
    """Writes a slice's images and labels to the folder `out`; `predictions`: also this model's newest prediction each.

    `progress` is called with the number of images just done. Labels are those the slice was frozen with. Raises
    BadInput for an unknown format or model, for predictions in a format without a place for them, and for a folder with
    other files.
    """
    started = time.perf_counter()
    target = Path(out)
    if format not in FORMATS:
        raise BadInput(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    if predictions is not None:
        if not FORMATS[format].predictions:
            supported = ", ".join(name for name, f in FORMATS.items() if f.predictions)
            raise BadInput(f"format {format} has no place for predictions; these have: {supported}")
        _check_model(lake, predictions)
    job = {"slice": slice_.id, "format": format, "predictions": predictions}
    finished = _claimed(target, job)
    if finished is not None:
        return finished
    with _locked(target):
        report = _Export(lake, slice_, target, job, progress or (lambda n: None)).run()
    report.seconds = time.perf_counter() - started
    return report


def _check_model(lake: Lake, model: str) -> None:
    known = connections.query(lake, "SELECT DISTINCT model FROM predictions ORDER BY model")["model"].to_pylist()
    if model not in known:
        near = difflib.get_close_matches(model, known, 3) or known[:5]
        raise BadInput(f"no predictions of a model {model!r}; the lake has {', '.join(near) or 'none of any'}")


def _claimed(target: Path, job: Mapping[str, Any]) -> ExportReport | None:
    """Claims the folder for this job; the report if the job is finished. Raises BadInput if it has other files."""
    if target.is_dir() and (target / MANIFEST).is_file():
        try:
            manifest = json.loads((target / MANIFEST).read_text("utf-8"))
            other_job = {k: manifest[k] for k in job}
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{target / MANIFEST} is not readable; give another folder") from error
        if other_job != job:
            description = ", ".join(f"{k} {v}" for k, v in other_job.items() if v)
            raise BadInput(f"{target} is an export of {description}; give another folder")
        if manifest["state"] != "complete":
            return None
        fields = {k: v for k, v in manifest.items() if k in ExportReport.__dataclass_fields__}
        return ExportReport(**fields | {"out": str(target), "already": True, "seconds": 0.0})
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{target} exists and is not an empty folder")
    (target / STATE).mkdir(parents=True)
    whole_file.replace(target / MANIFEST, as_json({**job, "state": "writing", "lakeloop": VERSION}))
    return None


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    (target / STATE).mkdir(exist_ok=True)
    with (target / STATE / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CouldNot(f"another export is writing to {target}") from error
        yield


def _incomplete(truths: Mapping[str, GroundTruth]) -> str | None:
    """Why an image cannot be written where an image without annotations shows nothing; None if it can."""
    tasks = [task for task, truth in truths.items() if truth.incomplete and task != CLASSIFICATION]
    return f"its label for {' and '.join(tasks)} is incomplete" if tasks else None


class _Export:
    def __init__(
        self, lake: Lake, slice_: Slice, target: Path, job: Mapping[str, Any], progress: Callable[[int], None]
    ) -> None:
        self.lake, self.slice, self.target, self.job, self.progress = lake, slice_, target, job, progress
        self.format = FORMATS[job["format"]]
        self.state = target / STATE
        self.report = ExportReport(slice_.id, job["format"], str(target))
        self.unsaid: Counter[str] = Counter()

    def run(self) -> ExportReport:
        contents, plan = self.planned()
        hashes = self.state / "hashes"
        hashes.unlink(missing_ok=True)
        with hashes.open("w", encoding="utf-8") as hashes_file:
            for number, start in enumerate(range(0, contents.num_rows, PART_IMAGES)):
                self.part(number, contents.slice(start, PART_IMAGES), plan, hashes_file)
            whole = WholeExport(self.target, plan, sorted(p for p in self.state.iterdir() if p.is_dir()))
            self.format.finish(whole)
            self.take(whole.files, hashes_file)
        self.report.unsaid = dict(self.unsaid)
        self.finish(plan, hashes)
        return self.report

    # The plan ----------------------------------------------------------------------------------------------

    def planned(self) -> tuple[pa.Table, ExportPlan]:
        """The images with their label events, and the plan: fixed before the first image is written."""
        import pyarrow.parquet as pq

        stored, known = self.state / "plan.parquet", self.state / "plan.json"
        if stored.is_file() and known.is_file():
            return pq.read_table(stored), ExportPlan(**json.loads(known.read_text("utf-8")))
        contents = ground_truth.current_events(self.lake, slices.contents(self.lake, self.slice))
        classes: set[str] = set()
        labels: set[str] = set()
        masked = False
        for start in range(0, contents.num_rows, PART_IMAGES):
            part = contents.slice(start, PART_IMAGES)
            truths = [t for of in ground_truth.of_images(self.lake, part).values() for t in of.values()]
            truths += [prediction_regions(a) for a in self.predictions(part).values()]
            classes |= instance_classes(truths)
            if self.format.crowds:
                classes |= {(mask or box)["label"] or "" for truth in truths for box, mask in truth.crowds()}
            labels |= {name for t in truths if t.task == CLASSIFICATION for name in t.classes()}
            masked |= any(t.task == SEGMENTATION for t in truths)
        plan = ExportPlan(
            self.slice.id,
            contents.num_rows,
            sorted(classes),
            sorted(labels),
            SEGMENTATION if masked else DETECTION,
            self.job["predictions"],
        )
        pq.write_table(contents.select(["image_id", "label_events"]), stored)
        whole_file.replace(known, as_json(asdict(plan)))
        return contents, plan

    def predictions(self, part: pa.Table) -> Mapping[str, dict[str, Any]]:
        model = self.job["predictions"]
        return {} if model is None else ground_truth.newest_predictions(self.lake, model, part["image_id"].to_pylist())

    # A part ------------------------------------------------------------------------------------------------

    def part(self, number: int, contents: pa.Table, plan: ExportPlan, hashes: Any) -> None:
        names = contents["image_id"].to_pylist()
        erased = self.lake.erased(names)
        record_path = self.state / f"{number:06d}.json"
        record = self.finished(record_path, erased)
        if record is None:
            record = self.written(number, contents, plan, erased)
            whole_file.replace(record_path, as_json(record))
        else:
            self.report.resumed += record["images"]
        self.report.images += record["images"]
        self.report.left_out += record["left_out"]
        self.unsaid.update(record["unsaid"])
        self.take([WrittenFile(*f) for f in record["files"]], hashes)
        self.progress(len(names))

    def finished(self, record: Path, erased: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of a finished part; None if a file is missing or changed, or an image was erased since."""
        if not record.is_file():
            return None
        content: dict[str, Any] = json.loads(record.read_text("utf-8"))
        known_erasures = set(erased) <= {one["image_id"] for one in content["left_out"]}
        files = [WrittenFile(*f) for f in content["files"]]
        if known_erasures and all(_as_written(self.target, file) for file in files):
            return content
        if not known_erasures and self.report.format == "lance":
            raise CouldNot(f"an image was erased while {self.target} was being written; delete it and export again")
        for file in files:
            (self.target / file.path).unlink(missing_ok=True)
        return None

    def written(self, number: int, contents: pa.Table, plan: ExportPlan, erased: Mapping[str, Any]) -> dict[str, Any]:
        part = ExportPart(self.target, plan, number)
        names = contents["image_id"].to_pylist()
        truths, predictions = ground_truth.of_images(self.lake, contents), self.predictions(contents)
        written: set[str] = set()
        reasons = {name: f"it was erased on {moment:%Y-%m-%d}" for name, moment in erased.items()}
        if self.format.background:
            reasons |= {name: of_incomplete for name in names if (of_incomplete := _incomplete(truths.get(name, {})))}

        def samples() -> Iterator[ExportSample]:
            number_of = {name: number * PART_IMAGES + i for i, name in enumerate(names)}
            for image in blobs.images(self.lake, [n for n in names if n not in reasons]):
                written.add(image.image_id)
                by_task = dict(sorted(truths.get(image.image_id, {}).items()))
                if not self.format.incomplete:
                    by_task = marks.without(part, by_task, crowds=not self.format.crowds)
                yield ExportSample(number_of[image.image_id], image, by_task, predictions.get(image.image_id))

        self.format.write(part, samples())
        folder = self.state / f"{number:06d}"
        folder.mkdir(exist_ok=True)
        for name, lines in part.lines.items():
            (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        left_out = [
            {"image_id": name, "reason": reasons.get(name, "its bytes were not kept")}
            for name in names
            if name not in written
        ]
        files = [[f.path, f.bytes, f.sha256] for f in part.files]
        return {"images": len(written), "left_out": left_out, "unsaid": part.unsaid, "files": files}

    # The end -----------------------------------------------------------------------------------------------

    def take(self, files: Sequence[WrittenFile], hashes: Any) -> None:
        for file in files:
            self.report.files += 1
            self.report.bytes += file.bytes
            hashes.write(f"{file.sha256}  {file.path}\n")

    def finish(self, plan: ExportPlan, hashes: Path) -> None:
        """Writes the manifest: its state is complete only when all files are on disk."""
        hashes.rename(self.target / HASHES)
        os.sync()
        report = self.report.as_dict()
        for name in ("out", "resumed", "already", "seconds"):
            del report[name]
        size = slices.erased_count(self.lake, self.slice)
        facts = {
            **self.job,
            "state": "complete",
            "lakeloop": VERSION,
            "lake": self.lake.uri,
            "version": self.slice.version,
            "definition": self.slice.definition,
            "predictions_version": self.slice.predictions_version,
            **report,
            "erased_before": size,
            "hashes": {"file": HASHES, "sha256": on_disk(self.target, HASHES).sha256},
        }
        if self.report.format == "imagefolder":
            facts["classes"] = imagefolder.folders(list(plan.labels))
        whole_file.replace(self.target / MANIFEST, json.dumps(facts, ensure_ascii=False, indent=1))
        shutil.rmtree(self.state)


def _as_written(root: Path, file: WrittenFile) -> bool:
    path = root / file.path
    return path.is_file() and path.stat().st_size == file.bytes and on_disk(root, file.path) == file
