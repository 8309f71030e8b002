"""An export as a program: `jobs.Job("search_app.jobs.export_job", uri, {"name", "format", "out", "predictions"})`.

`made` is the export's report as a dictionary. Cancelled, it goes on when the same is asked for again.
"""

from __future__ import annotations

from typing import Any

from search_app.jobs import jobs


def _main(uri: str, how: dict[str, Any], tell: jobs.Tell) -> dict[str, Any]:
    import lake
    from lake import slices
    from lake.slices.export import export

    opened = lake.open(uri)
    made = slices.get(opened, how["name"])
    done = 0

    def count(images: int) -> None:
        nonlocal done
        done += images
        tell(done / max(made.size, done, 1))

    out, format = how["out"], how["format"]
    return export(opened, made, out, format, predictions=how.get("predictions"), progress=count).as_dict()


if __name__ == "__main__":
    jobs.work(_main)
