"""Format `list`: `image_ids.txt` and `sources.txt`, one line per image, without images and labels.

`lakeloop slice create --ids` takes `image_ids.txt`. `sources.txt` has the name each image was ingested under.
"""

from __future__ import annotations

from collections.abc import Iterator

from lake.formats.annotation import ExportSample
from lake.formats.export_files import ExportPart, WholeExport


def write(part: ExportPart, samples: Iterator[ExportSample]) -> None:
    for sample in samples:
        part.line("ids", [sample.image.image_id, sample.image.source])
        for task in sample.ground_truths:
            part.leave_out(task)


def finish(whole: WholeExport) -> None:
    whole.text("image_ids.txt", (image_id for image_id, _ in whole.lines("ids")))
    # A source may hold line breaks; it takes one line here.
    whole.text("sources.txt", (" ".join((source or "").splitlines()) for _, source in whole.lines("ids")))
