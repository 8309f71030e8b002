"""A slice written out in a format that others read: a job in parts, which goes on where it was stopped.

    report = export(lake, slices.get(lake, "rainy"), Path("rainy"), "coco", predictions="m7", progress=print)

The target is an empty or new folder. While it is being written, `.lakeloop-export/` in it holds the plan (the images
and the labels, fixed at the start) and what each finished part wrote; the same call again checks those files against
their hashes and goes on. At the end `lakeloop-export.json` says what was written and what could not be, and
`lakeloop-export.sha256` has the hash of every file (`sha256sum -c` reads it). The app runs it as a process of its own:
see `search_app/jobs/jobs.py`.
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

from lake import slices
from lake.errors import BadInput, CouldNot
from lake.formats import arrow_rows, coco, file_list, imagefolder, label_studio, metadata, voc, webdataset, yolo
from lake.formats.annotation import (
    CLASSIFICATION,
    DETECTION,
    SEGMENTATION,
    ExportSample,
    as_json,
    instance_classes,
    prediction_regions,
)
from lake.formats.export_files import ExportPart, ExportPlan, WholeExport, WrittenFile, on_disk
from lake.formats.paths import MANIFEST
from lake.slices import ground_truth
from lake.sql import connections
from lake.storage import blobs
from lake.version import VERSION

if TYPE_CHECKING:
    from lake.slices import Slice
    from lake.storage.store import Lake

STATE = ".lakeloop-export"
HASHES = "lakeloop-export.sha256"
# What is done again after a stop; small files are then few seconds' work, and 64 MB are held at once.
PART_IMAGES = 256


@dataclass(frozen=True)
class ExportFormat:
    """How one format is written, and whether it has a place for a model's answers."""

    write: Callable[[ExportPart, Iterator[ExportSample]], None]
    finish: Callable[[WholeExport], None]
    predictions: bool = True


FORMATS = {
    "imagefolder": ExportFormat(imagefolder.write, imagefolder.finish, predictions=False),
    "coco": ExportFormat(coco.write, coco.finish),
    "yolo": ExportFormat(yolo.write, yolo.finish),
    "voc": ExportFormat(voc.write, voc.finish, predictions=False),
    "csv": ExportFormat(metadata.write, metadata.finish_csv),
    "jsonl": ExportFormat(metadata.write, metadata.finish_jsonl),
    "parquet": ExportFormat(arrow_rows.write_parquet, arrow_rows.finish_parquet),
    "webdataset": ExportFormat(webdataset.write, webdataset.finish),
    "hf": ExportFormat(metadata.write_hub, metadata.finish_hub),
    "list": ExportFormat(file_list.write, file_list.finish, predictions=False),
    "label-studio": ExportFormat(label_studio.write, label_studio.finish),
    "lance": ExportFormat(arrow_rows.write_lance, arrow_rows.finish_lance),
}


@dataclass
class ExportReport:
    """What an export wrote. `left_out`: images that could not be, with the reason. `unsaid`: what the format cannot
    say, with how often. `resumed`: images that an earlier run had written. `already`: it was finished before.
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
    made: Slice,
    out: str | Path,
    format: str,
    *,
    predictions: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> ExportReport:
    """Writes a slice's images and labels to the folder `out`; `predictions`: also this model's newest answer to each.

    `progress` is called with the number of images just done. Labels are those the slice was frozen with. Raises
    BadInput for an unknown format or model, a format without predictions, and a folder that holds anything else.
    """
    started = time.perf_counter()
    target = Path(out)
    if format not in FORMATS:
        raise BadInput(f"format {format!r} is none of {', '.join(FORMATS)}")
    if predictions is not None:
        if not FORMATS[format].predictions:
            able = ", ".join(name for name, f in FORMATS.items() if f.predictions)
            raise BadInput(f"format {format} has no place for predictions; these have: {able}")
        _check_model(lake, predictions)
    job = {"slice": made.id, "format": format, "predictions": predictions}
    done = _claimed(target, job)
    if done is not None:
        return done
    with _locked(target):
        report = _Run(lake, made, target, job, progress or (lambda n: None)).run()
    report.seconds = time.perf_counter() - started
    return report


def _check_model(lake: Lake, model: str) -> None:
    known = connections.query(lake, "SELECT DISTINCT model FROM answers ORDER BY model")["model"].to_pylist()
    if model not in known:
        near = difflib.get_close_matches(model, known, 3) or known[:5]
        raise BadInput(f"no model {model!r} has answered; the lake has {', '.join(near) or 'no answers'}")


def _claimed(target: Path, job: Mapping[str, Any]) -> ExportReport | None:
    """Makes the target this job's; the report of a job that is finished. Raises BadInput when it is another's."""
    if target.is_dir() and (target / MANIFEST).is_file():
        try:
            found = json.loads((target / MANIFEST).read_text("utf-8"))
            theirs = {k: found[k] for k in job}
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{target / MANIFEST} is not readable; give another folder") from error
        if theirs != job:
            said = ", ".join(f"{k} {v}" for k, v in theirs.items() if v)
            raise BadInput(f"{target} is an export of {said}; give another folder")
        if found["state"] != "complete":
            return None
        fields = {k: v for k, v in found.items() if k in ExportReport.__dataclass_fields__}
        return ExportReport(**fields | {"out": str(target), "already": True, "seconds": 0.0})
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{target} exists and is not an empty folder")
    (target / STATE).mkdir(parents=True)
    _replace(target / MANIFEST, as_json({**job, "state": "writing", "lakeloop": VERSION}))
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


class _Run:
    def __init__(
        self, lake: Lake, made: Slice, target: Path, job: Mapping[str, Any], progress: Callable[[int], None]
    ) -> None:
        self.lake, self.made, self.target, self.job, self.progress = lake, made, target, job, progress
        self.format = FORMATS[job["format"]]
        self.state = target / STATE
        self.report = ExportReport(made.id, job["format"], str(target))
        self.unsaid: Counter[str] = Counter()

    def run(self) -> ExportReport:
        contents, plan = self.planned()
        hashes = self.state / "hashes"
        hashes.unlink(missing_ok=True)
        with hashes.open("w", encoding="utf-8") as listed:
            for number, start in enumerate(range(0, contents.num_rows, PART_IMAGES)):
                self.part(number, contents.slice(start, PART_IMAGES), plan, listed)
            whole = WholeExport(self.target, plan, sorted(p for p in self.state.iterdir() if p.is_dir()))
            self.format.finish(whole)
            self.take(whole.files, listed)
        self.report.unsaid = dict(self.unsaid)
        self.finish(plan, hashes)
        return self.report

    # The plan ----------------------------------------------------------------------------------------------

    def planned(self) -> tuple[pa.Table, ExportPlan]:
        """The images and their labels' events, and what of them is known before the first is written."""
        import pyarrow.parquet as pq

        stored, known = self.state / "plan.parquet", self.state / "plan.json"
        if stored.is_file() and known.is_file():
            return pq.read_table(stored), ExportPlan(**json.loads(known.read_text("utf-8")))
        contents = ground_truth.current_events(self.lake, slices.contents(self.lake, self.made))
        classes: set[str] = set()
        labels: set[str] = set()
        masked = False
        for start in range(0, contents.num_rows, PART_IMAGES):
            part = contents.slice(start, PART_IMAGES)
            said = [t for of in ground_truth.of_images(self.lake, part).values() for t in of.values()]
            said += [prediction_regions(a) for a in self.answers(part).values()]
            classes |= instance_classes(said)
            labels |= {name for t in said if t.task == CLASSIFICATION for name in t.classes()}
            masked |= any(t.task == SEGMENTATION for t in said)
        plan = ExportPlan(
            self.made.id,
            contents.num_rows,
            sorted(classes),
            sorted(labels),
            SEGMENTATION if masked else DETECTION,
            self.job["predictions"],
        )
        pq.write_table(contents.select(["image_id", "label_events"]), stored)
        _replace(known, as_json(asdict(plan)))
        return contents, plan

    def answers(self, part: pa.Table) -> Mapping[str, dict[str, Any]]:
        model = self.job["predictions"]
        return {} if model is None else ground_truth.newest_predictions(self.lake, model, part["image_id"].to_pylist())

    # A part ------------------------------------------------------------------------------------------------

    def part(self, number: int, contents: pa.Table, plan: ExportPlan, listed: Any) -> None:
        names = contents["image_id"].to_pylist()
        erased = self.lake.erased(names)
        record = self.state / f"{number:06d}.json"
        found = self.finished(record, erased)
        if found is None:
            found = self.written(number, contents, plan, erased)
            _replace(record, as_json(found))
        else:
            self.report.resumed += found["images"]
        self.report.images += found["images"]
        self.report.left_out += found["left_out"]
        self.unsaid.update(found["unsaid"])
        self.take([WrittenFile(*f) for f in found["files"]], listed)
        self.progress(len(names))

    def finished(self, record: Path, erased: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a part wrote, when all of it is there as it was written, and nothing of it was erased since."""
        if not record.is_file():
            return None
        found: dict[str, Any] = json.loads(record.read_text("utf-8"))
        fresh = set(erased) <= {one["image_id"] for one in found["left_out"]}
        files = [WrittenFile(*f) for f in found["files"]]
        if fresh and all(_as_written(self.target, file) for file in files):
            return found
        if not fresh and self.report.format == "lance":
            raise CouldNot(f"an image was erased while {self.target} was being written; delete it and export again")
        for file in files:
            (self.target / file.path).unlink(missing_ok=True)
        return None

    def written(self, number: int, contents: pa.Table, plan: ExportPlan, erased: Mapping[str, Any]) -> dict[str, Any]:
        part = ExportPart(self.target, plan, number)
        names = contents["image_id"].to_pylist()
        said, answers = ground_truth.of_images(self.lake, contents), self.answers(contents)
        written: set[str] = set()

        def samples() -> Iterator[ExportSample]:
            place = {name: number * PART_IMAGES + i for i, name in enumerate(names)}
            for image in blobs.images(self.lake, [n for n in names if n not in erased]):
                written.add(image.image_id)
                truths = dict(sorted(said.get(image.image_id, {}).items()))
                yield ExportSample(place[image.image_id], image, truths, answers.get(image.image_id))

        self.format.write(part, samples())
        folder = self.state / f"{number:06d}"
        folder.mkdir(exist_ok=True)
        for name, lines in part.lines.items():
            (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        left_out = [
            {
                "image_id": name,
                "reason": f"it was erased on {erased[name]:%Y-%m-%d}" if name in erased else "its bytes were not kept",
            }
            for name in names
            if name not in written
        ]
        files = [[f.path, f.bytes, f.sha256] for f in part.files]
        return {"images": len(written), "left_out": left_out, "unsaid": part.unsaid, "files": files}

    # The end -----------------------------------------------------------------------------------------------

    def take(self, files: Sequence[WrittenFile], listed: Any) -> None:
        for file in files:
            self.report.files += 1
            self.report.bytes += file.bytes
            listed.write(f"{file.sha256}  {file.path}\n")

    def finish(self, plan: ExportPlan, hashes: Path) -> None:
        """The manifest says complete only when everything it speaks of is on the disk."""
        hashes.rename(self.target / HASHES)
        os.sync()
        said = self.report.as_dict()
        for name in ("out", "resumed", "already", "seconds"):
            del said[name]
        size = slices.erased_count(self.lake, self.made)
        facts = {
            **self.job,
            "state": "complete",
            "lakeloop": VERSION,
            "lake": self.lake.uri,
            "version": self.made.version,
            "definition": self.made.definition,
            "predictions_version": self.made.predictions_version,
            **said,
            "erased_before": size,
            "hashes": {"file": HASHES, "sha256": on_disk(self.target, HASHES).sha256},
        }
        if self.report.format == "imagefolder":
            facts["classes"] = imagefolder.folders(list(plan.labels))
        _replace(self.target / MANIFEST, json.dumps(facts, ensure_ascii=False, indent=1))
        shutil.rmtree(self.state)


def _as_written(root: Path, file: WrittenFile) -> bool:
    place = root / file.path
    return place.is_file() and place.stat().st_size == file.bytes and on_disk(root, file.path) == file


def _replace(path: Path, text: str) -> None:
    """A file that is there whole or not at all, also after a power loss."""
    half = path.with_name(path.name + ".part")
    with half.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    half.rename(path)
