"""The sensor that shows in Dagster what a terminal has built, and what a terminal has purged.

It is level-triggered: each tick compares the done-markers of every graph with the materializations that Dagster knows.
A graph of which everything is known costs two small reads a tick. Dagster cannot take a materialization back, so layers
that were purged keep theirs, and their check ``layer_complete`` fails.
"""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import dagster as dg

from sv_pipeline.defs.layers import LAYER, LAYER_COMPLETE
from sv_pipeline.defs.metadata import explained_failures, viewer_links
from sv_pipeline.defs.partitions import layer_partition
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import SLOT_TAG, UNFINISHED_RUNS
from sv_pipeline.defs.turns import graphs_of_run
from sv_pipeline.registry import Registry, ask_every_graph
from sv_pipeline.reports.built import Built, is_whole, what_is_built
from sv_pipeline.reports.viewer_links import viewer_link

__all__ = ["built_in_a_terminal_sensor", "check_layers_job"]

NOTE = "found complete by its done-markers; it was not built by a run of this Dagster instance"
PARTS = {
    "watershed": "watershed",
    "base_ocdbt": "base",
    "chunked_graph": "graph",
    "fork": "fork",
    "reader_contract": "readable",
}
"""The field of `Built` that says whether the partition of an asset is complete."""
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
            metadata = {"note": NOTE, **(links() if name in SHOWN else {})}
            yield dg.AssetMaterialization(name, description=NOTE, partition=graph_id, metadata=metadata)
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

    graph_id: str


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


@dg.sensor(job_name=check_layers_job.name, minimum_interval_seconds=20, default_status=dg.DefaultSensorStatus.RUNNING)
def built_in_a_terminal_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
    """Report complete assets and layers that no run has materialized, and layers whose chunks were purged.

    The cursor holds the state of each graph: "whole" if everything is complete and known, or else the layers whose
    check was requested because chunks are missing.
    """
    known: dict[str, Any] = json.loads(context.cursor) if context.cursor else {}
    busy = _graphs_of_runs(context.instance)

    def ask(registry: Registry, graph_id: str) -> Built | None:
        dataset = registry.get(graph_id)
        if graph_id in busy or (known.get(graph_id) == "whole" and is_whole(dataset)):
            return None
        return what_is_built(dataset)

    answers = ask_every_graph(pipeline.registry, ask)
    said = [f"{graph_id}: {answer}" for graph_id, answer in answers.items() if isinstance(answer, str)]
    cursor = {graph_id: known[graph_id] for graph_id in answers if graph_id in known}
    events: list[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation] = []
    requests: list[dg.RunRequest] = []
    found = {graph_id: answer for graph_id, answer in answers.items() if isinstance(answer, Built)}
    if found:
        done = {name: context.instance.get_materialized_partitions(dg.AssetKey(name)) for name in (*PARTS, "layer")}
        for graph_id, built in found.items():
            failed = known[graph_id] if isinstance(known.get(graph_id), list) else []
            link = partial(_links, pipeline, graph_id)
            events += _new(graph_id, built, done, link)
            broken = [number for number in built.missing if layer_partition(graph_id, number) in done["layer"]]
            if request := _recheck(graph_id, built, broken, failed):
                requests.append(request)
            cursor[graph_id] = "whole" if built.whole else broken
    reason = None if events or requests else "; ".join(said) or f"{len(answers)} graphs, nothing is new"
    return dg.SensorResult(
        run_requests=requests, skip_reason=None if requests else reason, asset_events=events, cursor=json.dumps(cursor)
    )
