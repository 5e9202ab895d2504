"""The assets of the ingest, from the segmentation to the published specs. Chunks are done in batches (mapped steps).

Dagster's record of steps does not decide whether an asset is complete, since a re-execution from failure can drop
mapped steps: the collecting op checks the done-markers, and planning lists only chunks without one.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from sv_pipeline.config import IngestMode
from sv_pipeline.defs.metadata import explained_failures, pictures
from sv_pipeline.defs.partitions import MAX_LAYER, graph_layers, graphs, layer_key, partition_of
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.batches import Batch, Stage
from sv_pipeline.ingest.missing_chunks import missing_chunks
from sv_pipeline.redaction import redacted, redacted_value

__all__ = ["base_ocdbt", "fork", "layer", "reader_contract", "watershed"]

OWNERS = ["team:segmentation"]
# A step is retried if its process was killed or storage did not answer, but not after a user's mistake (allow_retries).
RETRIES = dg.RetryPolicy(max_retries=3, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


# -- watershed ----------------------------------------------------------------------------------------------------


def _plan_watershed(context: dg.OpExecutionContext, pipeline: PipelineResource, stage: Stage) -> Iterator[Any]:
    with explained_failures():
        dataset = pipeline.dataset(context.partition_key)
        batches = stages.plan_watershed(dataset, stage) if stages.needs_watershed(dataset) else []
    context.log.info("%s: %d batches to do", stage, len(batches))
    for batch in batches:
        yield dg.DynamicOutput(None, mapping_key=batch.key)


@dg.op(out=dg.DynamicOut(dg.Nothing))
def plan_labels(context: dg.OpExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
    """List the chunks that have no supervoxels yet, in batches."""
    yield from _plan_watershed(context, pipeline, Stage.LABELS)


@dg.op(ins={"labelled": dg.In(dg.Nothing)}, out=dg.DynamicOut(dg.Nothing))
def plan_edges(context: dg.OpExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
    """Check that all chunks are labelled, and list the chunks that have no edge file yet, in batches."""
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
        report = stages.run_batch(pipeline.dataset(context.partition_key), batch)
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
    return dg.MaterializeResult(
        metadata={
            "volume": dg.MetadataValue.path(redacted(dataset.watershed_url)),
            "size": dg.MetadataValue.text(" x ".join(map(str, volume.bounds.shape))),
            "resolution_nm": dg.MetadataValue.text(" x ".join(f"{r:g}" for r in volume.scales[0].resolution)),
            "chunks": dataset.grid.count(2),
            "layers": dataset.grid.n_layers,
            "missing_chunks": dg.MetadataValue.json(missing) if missing else "none",
            **numbers,
            **pictures(supervoxels=lambda: views.supervoxels_picture(dataset)),
        }
    )


@dg.graph_asset(partitions_def=graphs, group_name="ingest", kinds={"tensorstore"}, owners=OWNERS)
def watershed() -> Any:
    """Supervoxels with node ids, their edges and components: either given, or made from any segmentation."""
    labelled = plan_labels().map(run_watershed_batch.alias("label_batch")).collect()
    edges = plan_edges(labelled).map(run_watershed_batch.alias("edge_batch")).collect()
    return finish_watershed(edges)


# -- base ---------------------------------------------------------------------------------------------------------


@dg.asset(partitions_def=graphs, deps=[watershed], group_name="ingest", kinds={"tensorstore"}, owners=OWNERS)
def base_ocdbt(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """The graph's table, and the base that all graphs of a watershed share, both created empty."""
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


# -- layers -------------------------------------------------------------------------------------------------------

_MODE = dg.Field(
    dg.Enum.from_python_enum(IngestMode),
    is_required=False,
    description="both, graph, voxels or setup; default: the graph's own configuration.",
)


@dg.op(ins={"base_ocdbt": dg.In(dg.Nothing)}, out=dg.DynamicOut(dg.Nothing), config_schema={"mode": _MODE})
def plan_batches(context: dg.OpExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
    """List the layer's chunks without a done-marker, in batches. Fails unless the layer below is complete."""
    graph_id, number = partition_of(context)
    with explained_failures():
        dataset = pipeline.dataset(graph_id)
        if number > dataset.grid.n_layers:
            context.log.info("graph %s has %d layers: nothing to do", graph_id, dataset.grid.n_layers)
            return
        batches = stages.plan_layer(dataset, number, context.op_config.get("mode"))
    context.log.info("%d batches to do", len(batches))
    for batch in batches:
        yield dg.DynamicOutput(None, mapping_key=batch.key)


@dg.op(ins={"start": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def run_batch(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    """Build the unfinished chunks of a batch."""
    graph_id, _ = partition_of(context)
    with explained_failures():
        dataset = pipeline.dataset(graph_id)
        batch = Batch.parse(str(context.get_mapping_key()))
        address = pipeline.coordinator_address(dataset)
        report = stages.run_batch(dataset, batch, coordinator_address=address)
    context.log.info("%d chunks in %.1f s: %s", report.chunks, report.seconds, report.counts)


@dg.op(ins={"batches": dg.In(dg.Nothing)}, config_schema={"mode": _MODE})
def finish_layer(context: dg.OpExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """Check by the done-markers that no chunk is missing, and merge the populated parts."""
    from sv_pipeline.reports import views

    graph_id, number = partition_of(context)
    with explained_failures():
        dataset = pipeline.dataset(graph_id)
        if number > dataset.grid.n_layers:
            return dg.MaterializeResult(metadata={"chunks": 0, "note": f"{graph_id} has no layer {number}"})
        mode = context.op_config.get("mode") or dataset.config.ingest.mode
        report = stages.finish_layer(dataset, number, mode)
    if number == dataset.grid.n_layers:
        # Layers that the graph lacks are marked as complete with its top layer, so that the UI shows no gap.
        for absent in range(number + 1, MAX_LAYER + 1):
            partition = dg.MultiPartitionKey({"graph": graph_id, "layer": layer_key(absent)})
            note = {"note": f"{graph_id} has no layer {absent}"}
            context.log_event(dg.AssetMaterialization("layer", partition=partition, metadata=note))
    drawn = {} if mode is IngestMode.VOXELS else pictures(nodes_picture=lambda: views.layer_picture(dataset, number))
    return dg.MaterializeResult(
        metadata={
            "chunks": report.chunks,
            **{name: value for name, value in report.numbers.items() if value is not None},
            **drawn,
        }
    )


@dg.config_mapping(config_schema={"mode": _MODE})
def one_mode(value: dict[str, Any]) -> dict[str, Any]:
    """Pass one mode to the planning and the collecting op."""
    config = {} if value.get("mode") is None else {"mode": value["mode"].name}
    return {"plan_batches": {"config": config}, "finish_layer": {"config": config}}


@dg.graph_asset(
    partitions_def=graph_layers,
    ins={"base_ocdbt": dg.AssetIn(dagster_type=dg.Nothing)},
    group_name="ingest",
    kinds={"bigtable", "tensorstore"},
    owners=OWNERS,
    config=one_mode,
)
def layer(base_ocdbt: Any) -> Any:
    """One layer of the chunked graph; the populate layer also includes the base's voxels at all mips."""
    return finish_layer(plan_batches(base_ocdbt).map(run_batch).collect())


# -- fork and contract --------------------------------------------------------------------------------------------


class ForkConfig(dg.Config):
    """Configuration of the fork: whether an existing fork is made anew."""

    recreate: bool = False


@dg.asset(partitions_def=graphs, deps=[layer], group_name="ingest", kinds={"tensorstore"}, owners=OWNERS)
def fork(context: dg.AssetExecutionContext, pipeline: PipelineResource, config: ForkConfig) -> dg.MaterializeResult:
    """The graph's own copy-on-write view of the base. It is one small object; no voxels are copied."""
    from sv_pipeline.reports import views

    with explained_failures():
        dataset = pipeline.dataset(context.partition_key)
        if dataset.config.ingest.mode is IngestMode.GRAPH:
            return dg.MaterializeResult(metadata={"note": "ingested without voxels (mode graph): nothing to fork"})
        stages.make_fork(dataset, recreate=config.recreate)
    return dg.MaterializeResult(metadata=pictures(mips=lambda: views.mips_picture(dataset)))


@dg.asset(partitions_def=graphs, deps=[fork], group_name="ingest", kinds={"json"}, owners=OWNERS)
def reader_contract(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """The specs with which readers and viewers open the segmentation at every mip; published beside the fork."""
    from sv_pipeline.reports import views
    from sv_pipeline.reports.info import graph_info

    with explained_failures():
        dataset = pipeline.dataset(context.partition_key)
        info = graph_info(dataset)
        stages.publish_documents(dataset)
    return dg.MaterializeResult(
        metadata={
            "specs": dg.MetadataValue.json(info.to_dict()),
            **pictures(roots=lambda: views.roots_picture(dataset)),
        }
    )


def _plain(value: Any) -> Any:
    """Copy nested dictionaries of dataclasses into values that can be written as JSON."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
