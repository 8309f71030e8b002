"""serve, quickstart: start the app and the HTTP API, on a lake or on the demo lake."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from lake.errors import BadInput
from search_app.cli.terminal import Add, number, output, uri

if TYPE_CHECKING:
    from search_app.server.live_ingest import IngestSettings


def register(add: Add) -> None:
    for name, run, help in (
        ("serve", _serve, "start the app and the HTTP API"),
        ("quickstart", _quickstart, "build a demo lake of real solar cells and start the app"),
    ):
        p = add(name, run, help, writes=True)
        p.add_argument("--host", default="127.0.0.1")
        p.add_argument("--port", type=_port, default=8501)
        if name == "serve":
            p.add_argument("--no-ui", action="store_true", help="only the HTTP API, without the app")
            _ingest_options(p)
            p.add_argument("--jobs", type=int, default=1, metavar="N", help="run at most so many jobs at once (default 1); 0: leave them to lakeloop jobs work")  # fmt: skip  # noqa: E501
            p.add_argument("--job-memory-gb", type=number, metavar="GB", help="memory limit of each worker process of a job")  # fmt: skip  # noqa: E501
            p.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a host name of this server that clients use; repeat for more")  # fmt: skip  # noqa: E501
            p.add_argument("--require-key", action="store_true", help="refuse requests without an access key; always on unless --host is this machine")  # fmt: skip  # noqa: E501
            p.add_argument("--allow-user", action="append", default=[], metavar="USER", help="a user who may log in at the identity provider of .streamlit/secrets.toml: an e-mail address, @domain or *, and =SCOPE,SCOPE (default: read); repeat for more")  # fmt: skip  # noqa: E501
            p.add_argument("--https", action="store_true", help="browsers use https through a proxy: mark cookies as secure")  # fmt: skip  # noqa: E501
        else:
            p.add_argument("--no-serve", action="store_true", help="only build the lake")


def _port(text: str) -> int:
    """The type of --port."""
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"{port} is no port: choose one from 1 to 65535, or 0 for any that is free")
    return port


def _serve(args: argparse.Namespace) -> int:
    from search_app.security.access import AccessPolicy
    from search_app.security.url_import import fetch
    from search_app.server.server import serve

    if args.allow_user and args.no_ui:
        raise BadInput("--allow-user is for the app and --no-ui leaves the app out; give only one of them")
    if args.jobs < 0:
        raise BadInput(f"--jobs is {args.jobs}; it must not be negative")
    if args.job_memory_gb is not None and not args.job_memory_gb > 0:
        raise BadInput(f"--job-memory-gb is {args.job_memory_gb}; it must be more than 0")
    policy = AccessPolicy(args.require_key, args.https, tuple(args.allow_user))
    serve(
        uri(args),
        args.host,
        args.port,
        ui=not args.no_ui,
        allow_hosts=args.allow_host,
        policy=policy,
        settings=_settings(args, uri(args)),
        fetch=fetch if args.url_import else None,
        job_limits=(args.jobs, args.job_memory_gb),
    )
    return 0


def _ingest_options(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("live ingest")
    g.add_argument("--spool", metavar="FOLDER", help="folder on a local disk for accepted events (default: in the folder of the lake)")  # fmt: skip  # noqa: E501
    g.add_argument("--max-rate", type=number, metavar="N", help="most events a second; more get status 429")
    g.add_argument("--max-spool-gb", type=number, default=20, metavar="GB", help="most GB of waiting events; more get status 503 (default 20)")  # fmt: skip  # noqa: E501
    g.add_argument("--min-free-gb", type=number, default=1, metavar="GB", help="GB of the disk to keep free; below, events get status 507 (default 1)")  # fmt: skip  # noqa: E501
    g.add_argument("--max-body-gb", type=number, default=0.25, metavar="GB", help="most GB of request bodies in memory; more get status 503 (default 0.25)")  # fmt: skip  # noqa: E501
    g.add_argument("--keep-share", type=number, default=1.0, metavar="SHARE", help="store the bytes of this share of images, chosen by their id (default 1: all)")  # fmt: skip  # noqa: E501
    g.add_argument("--keep-below", type=number, default=0.0, metavar="CONFIDENCE", help="also store every image predicted with less confidence than this")  # fmt: skip  # noqa: E501
    g.add_argument("--embed", nargs="?", const="oldest", choices=("oldest", "newest", "sampled"), metavar="ORDER", help="embed new images all the time: oldest first (default), newest or sampled")  # fmt: skip  # noqa: E501
    g.add_argument("--url-import", action="store_true", help="allow POST /v1/images to fetch public URLs")


def _settings(args: argparse.Namespace, uri: str) -> IngestSettings:
    from pathlib import Path

    from lake.spool.drain import Sampling
    from lake.spool.spool import beside
    from search_app.api.admission import IngestLimits
    from search_app.server.live_ingest import IngestSettings

    spool = Path(args.spool) if args.spool else beside(uri)
    if spool is None:
        raise BadInput(f"{uri} is not on a local disk: give --spool FOLDER for waiting events")
    for name in ("max_spool_gb", "min_free_gb", "max_body_gb"):
        if not getattr(args, name) >= 0:
            raise BadInput(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must not be negative")
    for name in ("keep_share", "keep_below"):
        if not 0 <= getattr(args, name) <= 1:
            raise BadInput(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be between 0 and 1")
    if args.max_rate is not None and not args.max_rate > 0:
        raise BadInput(f"--max-rate is {args.max_rate}; it must be more than 0")
    limits = IngestLimits(
        rate=args.max_rate,
        spool_bytes=int(args.max_spool_gb * 2**30),
        free_bytes=int(args.min_free_gb * 2**30),
        in_flight_bytes=int(args.max_body_gb * 2**30),
    )
    return IngestSettings(spool, limits, Sampling(args.keep_share, args.keep_below), embed=args.embed)


def _quickstart(args: argparse.Namespace) -> int:
    from search_app.demo.quickstart import quickstart
    from search_app.security.hosts import is_loopback

    # Other hosts need an access key, which the stream of the demo does not have.
    live = not args.no_serve and is_loopback(args.host)
    facts = quickstart(args.lake or os.environ.get("LAKELOOP_LAKE") or "solar.lake", live)
    output(args, facts, "")
    if not args.no_serve:
        from lake.spool.spool import beside
        from search_app.demo.replay import Replay
        from search_app.server.live_ingest import IngestSettings
        from search_app.server.server import serve

        spool = beside(facts["lake"])
        assert spool is not None, "the demo lake is a folder"
        with Replay(facts["lake"]) as replay:
            serve(
                facts["lake"], args.host, args.port, settings=IngestSettings(spool, embed="oldest"), ready=replay.start
            )
    return 0
