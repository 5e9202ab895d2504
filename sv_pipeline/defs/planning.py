"""The forecast of an ingest as an asset, and the job that writes one chunk again."""

from typing import Any

import dagster as dg
from pydantic import Field

from sv_pipeline.defs.metadata import explained_failures
from sv_pipeline.defs.partitions import graphs
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import OWNERS, UPKEEP
from sv_pipeline.errors import ConfigError
from sv_pipeline.ingest import planning
from sv_pipeline.ingest.prices import parse_prices
from sv_pipeline.ingest.requeue import requeue_chunk
from sv_pipeline.reports.plan import PlanReport, comparisons_of, plan_report

__all__ = ["ingest_plan", "prediction_metadata", "requeue_chunk_job"]


class PlanConfig(dg.Config):
    """Options of a forecast."""

    workers: int = Field(default=0, ge=0, description="Number of worker processes; 0 takes that of the configuration.")
    sample: int = Field(default=0, ge=0, description="Number of chunks to ingest in a scratch place; 0 takes none.")
    prices: dict[str, float] = Field(default_factory=dict, description="Prices by name, such as worker-hour.")


@dg.asset(partitions_def=graphs, group_name="planning", kinds={"json"}, owners=OWNERS)
def ingest_plan(
    context: dg.AssetExecutionContext, pipeline: PipelineResource, config: PlanConfig
) -> dg.MaterializeResult:
    """The forecast of the graph's ingest: chunks, steps, rows, bytes, memory, time and costs. It builds nothing.

    It may be materialized as soon as the graph is registered. With `sample` in its configuration, it ingests so many
    chunks in a scratch place first, which makes it more exact.
    """
    with explained_failures():
        dataset = pipeline.dataset(context.partition_key)
        prices = parse_prices(config.prices)
        found = planning.plan_ingest(dataset.config, dataset.home, workers=config.workers or None, sample=config.sample)
        if config.sample:
            planning.keep_forecast(dataset.home, found)
        report = plan_report(found, dataset.config, prices, dataset)
    return dg.MaterializeResult(metadata=_metadata(report))


def _metadata(report: PlanReport) -> dict[str, Any]:
    """Numbers that can be plotted, and the whole report."""
    found, work = report.forecast, report.forecast.workload
    quantities = {name.replace(" ", "_"): quantity.estimate.value for name, quantity in found.quantities.items()}
    return {
        "chunks": dg.MetadataValue.text(" / ".join(f"{count:,}" for count in work.layers.values())),
        "batches": work.batches,
        "steps": work.steps,
        "workers": found.workers,
        "sampled_chunks": 0 if found.sample is None else found.sample.chunks,
        "work_hours": found.work.value / 3600,
        "hours": found.wall.value / 3600,
        "hours_low": found.wall.low / 3600,
        "hours_high": found.wall.high / 3600,
        "worker_memory_bytes": found.worker_memory.value,
        **({} if (nodes := report.bigtable_nodes) is None else {"bigtable_nodes": nodes.value}),
        **quantities,
        **{f"cost_{line.price.replace('-', '_')}": line.amount.value for line in report.costs},
        "report": dg.MetadataValue.json(report.to_dict()),
    }


def prediction_metadata(dataset: Any, layer: int) -> dict[str, float]:
    """Return the prediction for a layer beside what happened, as metadata of the layer's asset."""
    prefix = f"layer {layer}: "
    result: dict[str, float] = {}
    for one in comparisons_of(dataset):
        if one.name.startswith(prefix):
            name = one.name.removeprefix(prefix).replace(" ", "_")
            result |= {f"predicted_{name}": one.predicted.value, f"actual_{name}": one.actual}
    return result


# -- one chunk --------------------------------------------------------------------------------------------------------


class RequeueConfig(dg.Config):
    """The chunk to build or to write again."""

    graph_id: str = Field(description="A registered graph.")
    layer: int = Field(ge=2, description="Layer of the chunk; 2 for the finest.")
    chunk: list[int] = Field(description="Coordinates (x, y, z) in chunks of the layer.")


@dg.op
def write_chunk(context: dg.OpExecutionContext, pipeline: PipelineResource, config: RequeueConfig) -> None:
    """Build a chunk; a chunk that is done is written again with the same rows and voxels."""
    with explained_failures():
        if len(config.chunk) != 3:
            raise ConfigError(f"'chunk' is {config.chunk}.", remedy="Give three numbers, x, y and z.")
        x, y, z = config.chunk
        dataset = pipeline.dataset(config.graph_id)
        address = pipeline.coordinator_address(dataset)
        report = requeue_chunk(dataset, config.layer, (x, y, z), coordinator=address)
    context.add_output_metadata(
        {
            "chunk": dg.MetadataValue.text(f"{report.coordinate} of layer {report.layer}"),
            "nodes": report.nodes or 0,
            "edges": report.edges or 0,
            "mips": len(report.voxels or ()),
        }
    )


@dg.job(tags=UPKEEP)
def requeue_chunk_job() -> None:
    """Build one chunk of a graph, or write it again if it is done. It is refused if the graph has edits."""
    write_chunk()
