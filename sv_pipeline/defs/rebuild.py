"""A full rebuild of mips as a backfill: one partition per (graph, mip), from mip 1 upwards, each in batches."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from sv_pipeline.defs.metadata import explained_failures, pictures
from sv_pipeline.defs.partitions import graph_mips, mip_partition_of
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import RETRIES
from sv_pipeline.pyramid.rebuild_batches import MipRebuild
from sv_pipeline.reports.sizes import DIALOG_WIDTH

__all__ = ["rebuild_mip_job"]


def _rebuild(context: dg.OpExecutionContext, pipeline: PipelineResource) -> MipRebuild:
    graph_id, mip = mip_partition_of(context)
    return MipRebuild(pipeline.dataset(graph_id), mip)


@dg.op(out=dg.DynamicOut(dg.Nothing))
def plan_rebuild(context: dg.OpExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
    """List what is left of the mip, in batches. Fails if there is no such mip, or while the one below is rebuilt."""
    with explained_failures():
        batches = _rebuild(context, pipeline).plan()
    context.log.info("%d batches to do", len(batches))
    for batch in batches:
        yield dg.DynamicOutput(None, mapping_key=batch)


@dg.op(ins={"start": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def rebuild_batch(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    """Rebuild a box of the mip. Storage chunks that do not change are not written."""
    with explained_failures():
        report = _rebuild(context, pipeline).run(str(context.get_mapping_key()))
    context.log.info("%d of %d storage chunks were different", report.chunks_written, report.chunks_made)


@dg.op(ins={"batches": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing))
def finish_rebuild(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    """Check in the fork that no box is left; changes that still coarser mips need are listed there as pending."""
    from sv_pipeline.reports import views

    with explained_failures():
        rebuild = _rebuild(context, pipeline)
        lag = rebuild.finish()
    context.add_output_metadata(
        {
            "operations_behind": lag.entries,
            "boxes_behind": lag.boxes,
            **pictures(mips=lambda: views.mips_picture(rebuild.dataset, width=DIALOG_WIDTH)),
        }
    )


@dg.job(
    partitions_def=graph_mips,
    # A re-execution from failure can drop mapped steps. All steps are repeated instead, which is cheap, because the
    # fork lists what is left.
    tags={"dagster/priority": "-1", "dagster/retry_strategy": "ALL_STEPS", "dagster/max_retries": "2"},
)
def rebuild_mip_job() -> None:
    """Rebuild a whole mip from the one below. To rebuild all mips of a graph, launch a backfill of those that it has.

    Partitions are offered for all mips that a graph can have. The run of one that it lacks fails, and names those that
    there are.
    """
    finish_rebuild(plan_rebuild().map(rebuild_batch).collect())
