"""The jobs embed, cluster, map, discover and duplicates, with the functions of `embeddings`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embeddings.embedders import embedder as embedders
from lake.analytics import metrics
from lake.jobs.running_job import Work
from lake.slices import cluster_nodes
from lake.sql import where
from lake.storage.store import Lake

if TYPE_CHECKING:
    from embeddings.backfill.backfill import BackfillReport
    from embeddings.clusters.drilldown import ClusterTree
    from embeddings.discovery.findings import Discovery
    from embeddings.duplicates.duplicates import Duplicates
    from embeddings.maps.maps import Map

Arguments = Mapping[str, Any]
# Image ids that a result lists for a group; it has the number of all.
LISTED = 1_000
# Images that the log names.
SHOWN = 20


def embed_check(lake: Lake, arguments: Arguments) -> None:
    embedders.known_or_new(lake, arguments.get("embedder"))


def embed(lake: Lake, arguments: Arguments, work: Work) -> BackfillReport:
    from embeddings.backfill.backfill import BackfillReport, backfill
    from lake.analytics import summary

    record = embedders.known_or_new(lake, arguments.get("embedder"))
    file = Path(arguments["weights"]) if "weights" in arguments else None
    todo = summary.embedding_progress(lake, [record])[0]
    retry = bool(arguments.get("retry_failed"))
    total = todo["missing"] + todo["failed"] * retry
    if total == 0 and record.dim is not None and file is None:  # without loading the network
        impossible = {reason: todo[reason] for reason in ("without_bytes", "unreadable")}
        return BackfillReport(record.name, failed_before=todo["failed"], **impossible)
    work.progress(0, total, "images", "loads the network")
    trust, engine = arguments.get("trust_sha256"), arguments.get("engine", "auto")
    model = embedders.for_lake(lake, record, file=file, trust_sha256=trust, engine=engine, images=total)
    work.audit("embed", record.name, {"missing": total})
    order = arguments.get("order", "oldest")
    count = work.counter("images", total)
    report = backfill(lake, record, model, file=file, order=order, retry_failed=retry, progress=count)
    for image_id, reason in list(report.reasons.items())[:SHOWN]:
        work.log(f"failed {image_id}: {reason}")
    return report


def embed_result(report: BackfillReport) -> dict[str, Any]:
    return {name: value for name, value in asdict(report).items() if name != "reasons"}


def cluster_check(lake: Lake, arguments: Arguments) -> None:
    if arguments.get("node") is None:
        embedders.record_of(lake, arguments.get("embedder")).require_dim()
    _check_scope(lake, arguments)


def cluster(lake: Lake, arguments: Arguments, work: Work) -> ClusterTree:
    from embeddings.clusters import drilldown

    tree = drilldown.cluster(lake, **arguments, progress=lambda stage: work.progress(0, stage=stage))
    work.audit("cluster", tree.tree, _detail(arguments))
    if tree.remark:
        work.log(tree.remark)
    return tree


def cluster_result(tree: ClusterTree) -> dict[str, Any]:
    facts = {name: getattr(tree, name) for name in ("tree", "embedder", "method", "remark", "seconds")}
    return facts | {"nodes": [node.path for node in tree.nodes][:LISTED]}


def map_check(lake: Lake, arguments: Arguments) -> None:
    cluster_check(lake, arguments)


def map(lake: Lake, arguments: Arguments, work: Work) -> Map:
    from embeddings.maps import maps

    made = maps.make(lake, **arguments, progress=lambda share: work.progress(100 * share, 100, "%"))
    work.audit("map", made.id, _detail(arguments))
    return made


def map_result(made: Map) -> dict[str, Any]:
    return {"map": made.id, "size": made.size, "fitted": made.fitted, "embedder": made.embedder}


def discover_check(lake: Lake, arguments: Arguments) -> None:
    metrics.scope(lake, arguments.get("where"), arguments.get("slice"))


def discover(lake: Lake, arguments: Arguments, work: Work) -> Discovery:
    from embeddings.discovery import discovery

    options = {name: value for name, value in arguments.items() if name in ("by", "errors", "seed")}
    scope = metrics.scope(lake, arguments.get("where"), arguments.get("slice"))

    def report(share: float, stage: str) -> None:
        work.progress(100 * share, 100, "%", stage)

    return discovery.discover(lake, scope, **options, progress=report)


def discover_result(discovery: Discovery) -> dict[str, Any]:
    from embeddings.discovery import findings

    facts = findings.facts(discovery)
    for finding in facts["findings"]:  # `predictions` has the number of all
        finding["image_ids"] = finding["image_ids"][:LISTED]
    return facts


def duplicates_check(lake: Lake, arguments: Arguments) -> None:
    embedders.record_of(lake, arguments.get("embedder")).require_dim()
    _check_scope(lake, arguments)


def duplicates(lake: Lake, arguments: Arguments, work: Work) -> Duplicates:
    from embeddings.duplicates import duplicates as near_duplicates
    from lake import slices

    name = arguments.get("slice")
    image_ids = slices.members(lake, slices.get(lake, name)).to_pylist() if name else None
    options = {"embedder": arguments.get("embedder"), "threshold": arguments.get("threshold")}
    return near_duplicates.find(lake, image_ids, **options, progress=work.counter("images"))


def duplicates_result(copies: Duplicates) -> dict[str, Any]:
    facts = {name: getattr(copies, name) for name in ("compared", "redundant", "without_vector", "without_thumbnail")}
    facts |= {"embedder": copies.embedder, "threshold": copies.threshold, "group_count": len(copies.groups)}
    return facts | {"groups": [group[:LISTED] for group in copies.groups[:LISTED]]}


def _check_scope(lake: Lake, arguments: Arguments) -> None:
    """Raises BadInput for a filter, slice or node that does not exist, and for several of them."""
    from lake import slices
    from lake.errors import BadInput

    given = [name for name in ("where", "slice", "node") if arguments.get(name) is not None]
    if len(given) > 1:
        raise BadInput(f"{' and '.join(given)} contradict each other: give only one")
    if arguments.get("where") is not None:
        where.check(lake, arguments["where"])
    if arguments.get("slice") is not None:
        slices.get(lake, arguments["slice"])
    if arguments.get("node") is not None:
        cluster_nodes.embedder(lake, arguments["node"])


def _detail(arguments: Arguments) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != "words"}
