"""A map as a program: `jobs.Job("search_app.jobs.map_job", uri, how)`; `made` is its id. Cancelled, it is lost."""

from __future__ import annotations

from typing import Any

from search_app.jobs import jobs


def _main(uri: str, how: dict[str, Any], tell: jobs.Tell) -> str:
    import lake
    from embeddings.maps import maps

    return maps.make(lake.open(uri), progress=tell, **how).id


if __name__ == "__main__":
    jobs.work(_main)
