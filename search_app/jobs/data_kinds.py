"""The jobs ingest, export and maintain, with the functions of `lake`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from lake.jobs.running_job import Work
from lake.storage import schema
from lake.storage.store import Lake

if TYPE_CHECKING:
    from lake.ingest.report import IngestReport
    from lake.prediction_logs.log import LogOptions
    from lake.slices.export import ExportReport
    from lake.upkeep.maintenance import MaintenanceReport

Arguments = Mapping[str, Any]
# Files and images that a result lists by name; it has the number of all.
LISTED = 100
# Refused files that the log names.
SHOWN = 20


def ingest_check(lake: Lake, arguments: Arguments) -> None:
    from lake.ingest import sources, white_points

    if (white_point := arguments.get("white_point")) is not None:
        white_points.parse(white_point)
    if arguments.get("model_version") and not arguments.get("model"):
        raise BadInput("a model version needs the name of the model")
    sources.resolve(Path(arguments["path"]), arguments.get("layout", "auto"))
    _log_options(arguments)


# What a person says about a prediction log; see `LogOptions.parsed`.
_OF_A_LOG = ("map", "truth", "encoding", "separator", "confidence_scale")


def _log_options(arguments: Arguments) -> LogOptions:
    from lake.prediction_logs.log import LogOptions

    return LogOptions.parsed(**{name: arguments[name] for name in _OF_A_LOG if name in arguments})


def ingest(lake: Lake, arguments: Arguments, work: Work) -> IngestReport:
    from lake.formats.annotation import ModelName
    from lake.ingest import sources, white_points
    from lake.ingest.ingest import ingest as ingest_all

    path = Path(arguments["path"])
    layout = sources.resolve(path, arguments.get("layout", "auto"))
    white_point = arguments.get("white_point")
    said = {name: arguments[name] for name in ("white_point", *_OF_A_LOG) if arguments.get(name)}
    work.audit("ingest", str(path), {"layout": layout} | said)
    model = ModelName(arguments.get("model"), arguments.get("model_version"))
    report = ingest_all(
        lake,
        path,
        layout,
        model=model,
        orientation=arguments.get("orientation"),
        white_point=None if white_point is None else white_points.parse(white_point),
        log=_log_options(arguments),
        progress=work.counter("images"),
    )
    for rejected in report.rejected[:SHOWN]:
        work.log(f"rejected {rejected['source']}: {rejected['reason']}")
    if len(report.rejected) > SHOWN:
        work.log(f"... and {len(report.rejected) - SHOWN} more (list all with --json)")
    if not (report.images_new + report.images_known + report.predictions_new + report.predictions_known):
        raise BadInput(f"nothing readable in {path} ({len(report.rejected)} rejected)")
    return report


def ingest_result(report: IngestReport) -> dict[str, Any]:
    facts = report.as_dict()
    return facts | {"rejected": report.rejected[:LISTED], "rejected_count": len(report.rejected)}


def export_check(lake: Lake, arguments: Arguments) -> None:
    from lake import slices
    from lake.slices import kept_exports
    from lake.slices.export import FORMATS

    slice_ = slices.get(lake, arguments["slice"])
    format = arguments.get("format", "imagefolder")
    if arguments.get("predictions") is not None and not FORMATS[format].predictions:
        supported = ", ".join(name for name, entry in FORMATS.items() if entry.predictions)
        raise BadInput(f"format {format} has no place for predictions; these have: {supported}")
    if "out" not in arguments:
        if slice_.live:
            raise BadInput(f"{slice_.id} is live: freeze it to export it, so that the export says what it has")
        kept_exports.folder_of(lake, slice_, format)


def export(lake: Lake, arguments: Arguments, work: Work) -> ExportReport:
    from lake import slices
    from lake.slices import kept_exports
    from lake.slices.export import export as export_slice

    slice_ = slices.get(lake, arguments["slice"])
    format, predictions = arguments.get("format", "imagefolder"), arguments.get("predictions")
    out = Path(arguments["out"]) if "out" in arguments else kept_exports.folder_of(lake, slice_, format)
    work.audit("slice export", slice_.id, {"format": format, "predictions": predictions})
    count = work.counter("images", slice_.size)
    return export_slice(lake, slice_, out, format, predictions=predictions, progress=count)


def export_result(report: ExportReport) -> dict[str, Any]:
    facts = report.as_dict()
    return facts | {"left_out": report.left_out[:LISTED], "left_out_count": len(report.left_out)}


def maintain_check(lake: Lake, arguments: Arguments) -> None:
    pass


def maintain(lake: Lake, arguments: Arguments, work: Work) -> MaintenanceReport:
    from lake.upkeep import maintenance

    older_than = dt.timedelta(seconds=arguments["older_than"]) if "older_than" in arguments else maintenance.OLDER_THAN
    count = work.counter("tables", len(schema.TABLES))
    return maintenance.maintain(lake, older_than=older_than, progress=count)


def maintain_result(report: MaintenanceReport) -> dict[str, Any]:
    names = ("fragments_before", "fragments_after", "bytes_before", "bytes_after", "versions_removed")
    totals = {name: report.total(name) for name in (*names, "leftovers_removed")}
    return totals | {"seconds": report.seconds, "complete": report.complete}
