"""Exports a slice: `jobs.Job("search_app.jobs.export_job", uri, {"name", "format", "out", "predictions"})`.

The result is the export's report as a dictionary. A cancelled export resumes when you start it again with the same
parameters.
"""

from __future__ import annotations

from typing import Any

from search_app.jobs import jobs


def _main(uri: str, parameters: dict[str, Any], progress: jobs.ReportProgress) -> dict[str, Any]:
    import lake
    from lake import slices
    from lake.slices.export import export

    opened = lake.open(uri)
    slice_ = slices.get(opened, parameters["name"])
    done = 0

    def count(images: int) -> None:
        nonlocal done
        done += images
        progress(done / max(slice_.size, done, 1))

    out, format, predictions = parameters["out"], parameters["format"], parameters.get("predictions")
    return export(opened, slice_, out, format, predictions=predictions, progress=count).as_dict()


if __name__ == "__main__":
    jobs.work(_main)
