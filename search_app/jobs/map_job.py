"""Makes a map: `jobs.Job("search_app.jobs.map_job", uri, parameters)`; the result is its id. It cannot resume."""

from __future__ import annotations

from typing import Any

from search_app.jobs import jobs


def _main(uri: str, parameters: dict[str, Any], progress: jobs.ReportProgress) -> str:
    import lake
    from embeddings.maps import maps

    return maps.make(lake.open(uri), progress=progress, **parameters).id


if __name__ == "__main__":
    jobs.work(_main)
