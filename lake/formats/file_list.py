"""A list: `image_ids.txt`, an id a line, which `slice create --ids` takes; and what each image was first called.

It holds no images and no labels: it says which images they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from lake.formats.annotation import Sample
from lake.formats.export_files import Part, Whole


def write(part: Part, samples: Iterator[Sample]) -> None:
    for sample in samples:
        part.line("ids", [sample.image.image_id, sample.image.source])
        for task in sample.truths:
            part.leave_out(task)


def finish(whole: Whole) -> None:
    whole.text("image_ids.txt", (image_id for image_id, _ in whole.lines("ids")))
    # A name may hold anything but is one line here.
    whole.text("sources.txt", (" ".join((source or "").splitlines()) for _, source in whole.lines("ids")))
