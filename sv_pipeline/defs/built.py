"""The sensor that shows in Dagster what a terminal has built, and what a terminal has purged.

It is level-triggered: each tick compares the done-markers of every graph with the materializations that Dagster knows.
A graph of which everything is known costs two small reads a tick. Dagster cannot take a materialization back, so layers
that were purged keep theirs, and their check ``layer_complete`` fails.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import dagster as dg
from pydantic import Field

from sv_pipeline.defs.layers import LAYER, LAYER_COMPLETE
from sv_pipeline.defs.metadata import explained_failures, viewer_links
from sv_pipeline.defs.partitions import layer_partition
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import SLOT_TAG, UNFINISHED_RUNS
from sv_pipeline.defs.ticks import ended_tick, read_cursor, told
from sv_pipeline.defs.turns import graphs_of_run
from sv_pipeline.registry import Registry, ask_every_graph
from sv_pipeline.reports.built import Built, is_whole, what_is_built
from sv_pipeline.reports.viewer_links import viewer_link

__all__ = ["built_in_a_terminal_sensor", "check_layers_job"]

NOTE = "found complete by its done-markers; it was not built by a run of this Dagster instance"
NOTE_OF_MIPS = "no edit has to be downsampled: the coarser mips show the voxels of mip 0"
PARTS = {
    "watershed": "watershed",
    "base_ocdbt": "base",
    "chunked_graph": "graph",
    "fork": "fork",
    "reader_contract": "readable",
    "pyramid": "up_to_date",
}
"""The field of `Built` that says whether the partition of an asset is complete."""
COMPLETE, INCOMPLETE, MISSING = "complete", "not complete", "layers that have lost chunks"
"""What the cursor says of a graph: whether it is complete, or which layers are known to have lost chunks."""
SHOWN = ("fork", "reader_contract")
"""Assets whose materializations say how to look at the graph."""


def _graphs_of_runs(instance: dg.DagsterInstance) -> set[str]:
    """Return the graphs that runs are building at this moment: they report by themselves."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED_RUNS))
    return {graph_id for run in runs for graph_id in graphs_of_run(run)}


def _new(
    graph_id: str, built: Built, done: dict[str, set[str]], links: Callable[[], dict[str, Any]]
) -> Iterator[dg.AssetMaterialization]:
    """Yield materializations of what is complete and has none; those of voxels have links to viewers."""
    for name, part in PARTS.items():
        if getattr(built, part) and graph_id not in done[name]:
            note = NOTE_OF_MIPS if name == "pyramid" else NOTE
            metadata = {"note": note, **(links() if name in SHOWN else {})}
            yield dg.AssetMaterialization(name, description=note, partition=graph_id, metadata=metadata)
    for number, numbers in built.layers.items():
        if (partition := layer_partition(graph_id, number)) not in done["layer"]:
            yield dg.AssetMaterialization(
                LAYER, description=NOTE, partition=partition, metadata={"note": NOTE, **numbers}
            )


def _links(pipeline: PipelineResource, graph_id: str) -> dict[str, Any]:
    return viewer_links(lambda: viewer_link(pipeline.dataset(graph_id)))


def _recheck(graph_id: str, built: Built, broken: list[int], failed: list[int]) -> dg.RunRequest | None:
    """Return a run that evaluates the check of a graph's layers, if the incomplete ones are not those known as such.

    A check of a partition can be evaluated only once without a run.
    """
    if broken == failed or (not broken and not built.graph):
        return None
    config = dg.RunConfig(ops={"check_layers": LayersConfig(graph_id=graph_id)})
    return dg.RunRequest(run_key=f"{graph_id}:{time.time():.0f}", run_config=config, tags={"sv/graph_id": graph_id})


class LayersConfig(dg.Config):
    """The graph whose layers are checked."""

    graph_id: str = Field(description="A registered graph.")


@dg.op
def check_layers(context: dg.OpExecutionContext, pipeline: PipelineResource, config: LayersConfig) -> None:
    """Evaluate the check of each layer that Dagster shows as materialized, by its done-markers."""
    with explained_failures():
        built = what_is_built(pipeline.dataset(config.graph_id))
    done = context.instance.get_materialized_partitions(LAYER)
    for number in sorted({*built.layers, *built.missing}):
        if (partition := layer_partition(config.graph_id, number)) not in done:
            continue
        missing = built.missing.get(number, 0)
        evaluation = dg.AssetCheckEvaluation(
            asset_key=LAYER,
            check_name=LAYER_COMPLETE,
            passed=not missing,
            partition=partition,
            metadata={"missing": missing},
            description=f"{missing} chunks have no done-marker any more: they were purged" if missing else None,
        )
        # log_event accepts evaluations, although its signature does not say so.
        context.log_event(evaluation)  # type: ignore[arg-type]


@dg.job(executor_def=dg.in_process_executor, tags={SLOT_TAG: "verify"})
def check_layers_job() -> None:
    """Evaluate the check of a graph's layers; the sensor starts it when layers were purged or built again."""
    check_layers()


@dg.sensor(
    job_name=check_layers_job.name,
    minimum_interval_seconds=20,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Shows in Dagster what a terminal has built: materializes complete assets and layers that no run of "
    "Dagster has made, and has the check of layers evaluated whose chunks were purged. The cursor says of each graph "
    "whether it is complete, or else which of its layers are known to have lost chunks.",
)
def built_in_a_terminal_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
    """Report complete assets and layers that no run has materialized, and layers whose chunks were purged."""
    known = read_cursor(context)
    busy = _graphs_of_runs(context.instance)

    def ask(registry: Registry, graph_id: str) -> Built | None:
        dataset = registry.get(graph_id)
        if graph_id in busy or (known.get(graph_id) == COMPLETE and is_whole(dataset)):
            return None
        return what_is_built(dataset)

    answers = ask_every_graph(pipeline.registry, ask)
    cursor = {graph_id: known[graph_id] for graph_id in answers if graph_id in known}
    events: list[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation] = []
    requests: list[dg.RunRequest] = []
    said = []
    done: dict[str, set[str]] = {}
    for graph_id, built in answers.items():
        if not isinstance(built, Built):
            as_before = "a run is building it" if graph_id in busy else "complete, as before"
            said.append(f"{graph_id}: {built or as_before}")
            continue
        if not done:
            done = {name: context.instance.get_materialized_partitions(dg.AssetKey(name)) for name in (*PARTS, "layer")}
        new = list(_new(graph_id, built, done, partial(_links, pipeline, graph_id)))
        broken = [number for number in built.missing if layer_partition(graph_id, number) in done["layer"]]
        request = _recheck(graph_id, built, broken, _known_as_broken(known.get(graph_id)))
        events += new
        requests += [request] if request else []
        cursor[graph_id] = {MISSING: broken} if broken else COMPLETE if built.whole else INCOMPLETE
        said.append(_what_was_found(graph_id, built, len(new), checked=request is not None))
    return ended_tick(
        context,
        told(said) or "there are no graphs",
        cursor=cursor,
        run_requests=requests,
        asset_events=events,
    )


def _known_as_broken(state: object) -> list[int]:
    return list(state.get(MISSING, [])) if isinstance(state, dict) else []


def _what_was_found(graph_id: str, built: Built, new: int, *, checked: bool) -> str:
    layers = len(built.layers) + len(built.missing)
    state = "complete" if built.whole else f"{len(built.layers)} of {layers} layers complete" if layers else "not begun"
    news = f", {new} assets and layers newly shown" if new else ""
    return f"{graph_id}: {state}{news}{', its layers are checked again' if checked else ''}"
