"""The coarser mips of a graph as an asset, with a job that brings them up to date and a check of their lag."""

from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from sv_pipeline.config import IngestMode
from sv_pipeline.defs.assets import fork
from sv_pipeline.defs.metadata import explained_failures, pictures
from sv_pipeline.defs.partitions import graphs
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import OWNERS, RETRIES
from sv_pipeline.pyramid.catch_up import catch_up
from sv_pipeline.pyramid.lag import LagVerdict, lag_verdict, lags
from sv_pipeline.reports.sizes import DIALOG_WIDTH_OF_ROWS

__all__ = ["downsample_job", "pyramid", "pyramid_keeps_up", "verdict_numbers", "verdict_severity"]


class PyramidConfig(dg.Config):
    """The operations to downsample, and the memory for it."""

    operations: list[int] = Field(
        default_factory=list, description="Only downsample what these operations changed; empty = all."
    )
    memory_megabytes: int = Field(
        default=1024, ge=1, description="Memory for voxels, in MB; larger work is divided into parts."
    )


@dg.asset(
    partitions_def=graphs,
    deps=[fork],
    group_name="edits",
    kinds={"tensorstore"},
    owners=OWNERS,
    retry_policy=RETRIES,
)
def pyramid(
    context: dg.AssetExecutionContext, pipeline: PipelineResource, config: PyramidConfig
) -> dg.MaterializeResult:
    """The coarser mips of a fork, up to date with its mip 0: whatever edits changed is downsampled again.

    After edits, `downsample_sensor` materializes it by itself. Several runs at once share the work, since each block of
    the volume is locked while it is worked on.
    """
    from sv_pipeline.reports import pyramid_views

    with explained_failures():
        dataset = pipeline.dataset(context.partition_key)
        if dataset.config.ingest.mode is IngestMode.GRAPH:
            return dg.MaterializeResult(metadata={"note": "ingested without voxels (mode graph): no mips"})
        done = catch_up(dataset, config.operations or None, memory_budget=config.memory_megabytes << 20)
    context.log.info("before: %s; after: %s", done.before, done.after)
    if not done.report.complete:
        context.log.warning("some blocks are left: another run is working on them, or edits keep changing them")
    shown: dict[str, Callable[[], bytes]] = {}
    if done.shown is not None:
        shown["mips_around_the_edit"] = lambda: pyramid_views.catch_up_picture(
            dataset, done, width=DIALOG_WIDTH_OF_ROWS
        )
    return dg.MaterializeResult(
        metadata={
            **pictures(**shown),
            **done.numbers(),
            "operations": dg.MetadataValue.json(_some(done.report.operations)),
            "generation": done.generation_after,
        }
    )


downsample_job = dg.define_asset_job(
    "downsample_job",
    selection=dg.AssetSelection.assets(pyramid),
    description="Bring the coarser mips of a graph up to date with edits. downsample_sensor starts it; it may also be "
    "run by hand at any time.",
    # Edits have slots of their own. Among the runs of partitions, readers wait for these.
    tags={"dagster/priority": "1"},
)


@dg.asset_check(asset=pyramid, name="pyramid_keeps_up")
def pyramid_keeps_up(pipeline: PipelineResource) -> dg.AssetCheckResult:
    """Check that coarser mips show all edits after max_lag_seconds, in all graphs, and that all ledgers can be read."""
    with explained_failures():
        verdict = lag_verdict(lags(pipeline.registry), pipeline.max_lag_seconds)
    return dg.AssetCheckResult(
        passed=verdict.passed,
        severity=verdict_severity(verdict),
        metadata=verdict_numbers(verdict, pipeline.max_lag_seconds),
        description=verdict.explanation,
    )


def verdict_severity(verdict: LagVerdict) -> dg.AssetCheckSeverity:
    """Return WARN for a lag, which readers can see and which passes by itself, and ERROR for an unreadable ledger."""
    return dg.AssetCheckSeverity.ERROR if verdict.unknown else dg.AssetCheckSeverity.WARN


def verdict_numbers(verdict: LagVerdict, max_seconds: float) -> dict[str, Any]:
    """Return the numbers that the check plots."""
    return {
        "operations_behind": verdict.operations,
        "boxes_behind": verdict.boxes,
        "seconds_behind": round(verdict.worst_seconds, 1),
        "alerts_above_seconds": max_seconds,
    }


def _some(operations: Sequence[int], most: int = 100) -> list[int | str]:
    more = len(operations) - most
    return [*operations[:most], *([f"and {more} more"] if more > 0 else [])]
