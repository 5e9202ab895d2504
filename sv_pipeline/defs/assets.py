"""The assets of the ingest, from the segmentation to the published specs, without the layers of the graph.

Chunks are done in batches: a few are run by the step that plans them, more of them as mapped steps. Dagster's record of
steps does not decide whether an asset is complete, since a re-execution from failure can drop mapped steps: the
collecting op checks the done-markers, and planning lists only chunks without one.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from sv_pipeline.config import IngestMode
from sv_pipeline.defs.executors import work_in_planning_steps
from sv_pipeline.defs.fanout import StepLog, run_elsewhere
from sv_pipeline.defs.layers import chunked_graph
from sv_pipeline.defs.metadata import explained_failures, pictures, viewer_links
from sv_pipeline.defs.partitions import add_partitions, graphs
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import INGEST_GROUP, OWNERS, RETRIES
from sv_pipeline.defs.turns import after_earlier_runs
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.batches import Batch, Stage
from sv_pipeline.ingest.missing_chunks import missing_chunks
from sv_pipeline.redaction import redacted, redacted_value
from sv_pipeline.reports.sizes import DIALOG_WIDTH
from sv_pipeline.wording import counted

__all__ = ["base_ocdbt", "fork", "reader_contract", "watershed"]


# -- watershed ----------------------------------------------------------------------------------------------------


def _plan_watershed(context: dg.OpExecutionContext, pipeline: PipelineResource, stage: Stage) -> Iterator[Any]:
    with explained_failures():
        dataset = pipeline.dataset(context.partition_key)
        batches = stages.plan_watershed(dataset, stage) if stages.needs_watershed(dataset) else []
        progress = StepLog(context.log, f"watershed {stage} of {dataset.graph_id}", batches)
        here = work_in_planning_steps(context).run(dataset, batches, advance=progress.advance)
        left = run_elsewhere(context, dataset, here, progress)
    done = counted(len(batches) - len(left), "batch", "batches")
    context.log.info("%s: %s done, %d handed out", stage, done, len(left))
    for batch in left:
        yield dg.DynamicOutput(None, mapping_key=batch.key)


@dg.op(out=dg.DynamicOut(dg.Nothing), retry_policy=RETRIES)
def plan_labels(context: dg.OpExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
    """List the chunks that have no supervoxels yet, in batches; a few batches are run at once."""
    yield from _plan_watershed(context, pipeline, Stage.LABELS)


@dg.op(ins={"labelled": dg.In(dg.Nothing)}, out=dg.DynamicOut(dg.Nothing), retry_policy=RETRIES)
def plan_edges(context: dg.OpExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
    """Check that all chunks are labelled, and list the chunks without an edge file; a few batches are run at once."""
    with explained_failures():
        dataset = pipeline.dataset(context.partition_key)
        if stages.needs_watershed(dataset):
            stages.finish_labels(dataset)
    yield from _plan_watershed(context, pipeline, Stage.EDGES)


@dg.op(ins={"start": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def run_watershed_batch(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    """Label the chunks of a batch, or write their edge files."""
    with explained_failures():
        batch = Batch.parse(str(context.get_mapping_key()))
        progress = StepLog(context.log, batch.key, [batch])
        report = stages.run_batch(pipeline.dataset(context.partition_key), batch, advance=progress.advance)
    context.log.info("%d chunks in %.1f s", report.chunks, report.seconds)


@dg.op(ins={"edges": dg.In(dg.Nothing)})
def finish_watershed(context: dg.OpExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """Check by the done-markers that every chunk is complete."""
    from sv_pipeline.reports import views

    with explained_failures():
        dataset = pipeline.dataset(context.partition_key)
        needed = stages.needs_watershed(dataset)
        numbers = stages.finish_edges(dataset) if needed else {"given": True}
        missing = missing_chunks(dataset, needed=needed)
        volume = dataset.volume
    add_partitions(context.instance, [dataset])
    return dg.MaterializeResult(
        metadata={
            "volume": dg.MetadataValue.path(redacted(dataset.watershed_url)),
            "size": dg.MetadataValue.text(" x ".join(map(str, volume.bounds.shape))),
            "resolution_nm": dg.MetadataValue.text(" x ".join(f"{r:g}" for r in volume.scales[0].resolution)),
            "chunks": dataset.grid.count(2),
            "layers": dataset.grid.n_layers,
            "missing_chunks": dg.MetadataValue.json(missing) if missing else "none",
            **numbers,
            **pictures(supervoxels=lambda: views.supervoxels_picture(dataset, width=DIALOG_WIDTH)),
        }
    )


@dg.graph_asset(partitions_def=graphs, group_name=INGEST_GROUP, kinds={"tensorstore"}, owners=OWNERS)
def watershed() -> Any:
    """Supervoxels with node ids, their edges and components: either given, or made from any segmentation.

    This is the first asset of a graph. A graph becomes a partition when it is registered, by
    [register_graph_job](/guess/register_graph_job) or in a terminal. Then *Materialize all* of the group `ingest`
    builds it in one run. Whatever is complete is kept, so after a failure the same is done again.
    """
    labelled = plan_labels().map(run_watershed_batch.alias("label_batch")).collect()
    edges = plan_edges(labelled).map(run_watershed_batch.alias("edge_batch")).collect()
    return finish_watershed(edges)


# -- base ---------------------------------------------------------------------------------------------------------


@dg.asset(partitions_def=graphs, deps=[watershed], group_name=INGEST_GROUP, kinds={"tensorstore"}, owners=OWNERS)
def base_ocdbt(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """The graph's table, and the base that all graphs of a watershed share, both created empty.

    `chunked_graph` fills them. The base holds the voxels of the watershed, or refers to them, and is never edited.
    """
    with explained_failures():
        dataset = pipeline.dataset(context.partition_key)
        done = stages.setup(dataset)
    return dg.MaterializeResult(
        metadata={
            "table": str(done.get("table", "not part of this mode")),
            "config": dg.MetadataValue.json(redacted_value(dataset.config.ocdbt_config.model_dump(mode="json"))),
            "base": dg.MetadataValue.json(redacted_value(_plain(done.get("base", {})))),
        }
    )


# -- fork and contract --------------------------------------------------------------------------------------------


class ForkConfig(dg.Config):
    """Configuration of the fork: whether an existing fork is made anew."""

    recreate: bool = False


@dg.asset(
    partitions_def=graphs,
    deps=[base_ocdbt, chunked_graph],
    group_name=INGEST_GROUP,
    kinds={"tensorstore"},
    owners=OWNERS,
)
def fork(context: dg.AssetExecutionContext, pipeline: PipelineResource, config: ForkConfig) -> dg.MaterializeResult:
    """The graph's own copy-on-write view of the base. It is one small object; no voxels are copied.

    Edits write to it: [split_job](/guess/split_job), [merge_job](/guess/merge_job), [undo_job](/guess/undo_job), or
    a terminal. Its observations show recoveries of edits whose process died, and edits if the graph is configured so.
    """
    from sv_pipeline.reports import views
    from sv_pipeline.reports.viewer_links import viewer_link

    with explained_failures():
        dataset = pipeline.dataset(context.partition_key)
        if dataset.config.ingest.mode is IngestMode.GRAPH:
            return dg.MaterializeResult(metadata={"note": "ingested without voxels (mode graph): nothing to fork"})
        with after_earlier_runs(context.op_execution_context, [dataset.graph_id]):
            stages.make_fork(dataset, recreate=config.recreate)
    return dg.MaterializeResult(
        metadata={
            **pictures(mips=lambda: views.mips_picture(dataset, width=DIALOG_WIDTH)),
            **viewer_links(lambda: viewer_link(dataset)),
        }
    )


@dg.asset(partitions_def=graphs, deps=[fork], group_name=INGEST_GROUP, kinds={"json"}, owners=OWNERS)
def reader_contract(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """The specs with which readers and viewers open the segmentation at every mip; published beside the fork.

    This is the last asset of an ingest: the graph is ready. Its checks are the invariants of the graph, which
    [verify_job](/guess/verify_job) also proves, each night by itself.
    """
    from sv_pipeline.reports import views
    from sv_pipeline.reports.info import graph_info

    with explained_failures():
        dataset = pipeline.dataset(context.partition_key)
        info = graph_info(dataset)
        stages.publish_documents(dataset)
    return dg.MaterializeResult(
        metadata={
            "specs": dg.MetadataValue.json(info.to_dict()),
            **pictures(roots=lambda: views.roots_picture(dataset, width=DIALOG_WIDTH)),
            **viewer_links(lambda: info.viewer),
            **viewer_links(lambda: info.neuroglancer, "in neuroglancer, before edits"),
        }
    )


def _plain(value: Any) -> Any:
    """Copy nested dictionaries of dataclasses into values that can be written as JSON."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
