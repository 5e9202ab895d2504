"""The layers of the chunked graph as assets: all layers of a graph in one run, or chosen layers of it again.

::

    plan_batches ─► run_batch (mapped) ─► plan_batches_2 ─► run_batch_2 (mapped) ─► ... ─► finish_layers

``plan_batches`` goes through the layers of the run, bottom-up. It runs few and quick batches itself, and goes on with
the next layer. At the first layer with more work it hands out the batches as mapped steps, and the next
``plan_batches`` goes on when these have ended. Rounds that are not needed are skipped, and start no process.

Dagster's record of steps does not decide whether a layer is complete, since a re-execution from failure can drop mapped
steps: ``finish_layers`` checks the done-markers of every layer, and planning lists only chunks without one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from sv_pipeline.config import IngestMode
from sv_pipeline.defs.coordinator import coordinator_for, prepare_coordinator
from sv_pipeline.defs.executors import work_in_planning_steps
from sv_pipeline.defs.fanout import StepLog, run_elsewhere
from sv_pipeline.defs.metadata import explained_failures, pictures
from sv_pipeline.defs.partitions import graph_layers, graphs, layer_partition, layers_of_partition
from sv_pipeline.defs.planning import prediction_metadata
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import INGEST_GROUP, MERGE_POOL, OWNERS, RETRIES, TABLE_POOL
from sv_pipeline.defs.turns import after_earlier_runs
from sv_pipeline.errors import NotFoundError
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.batches import Batch, Stage
from sv_pipeline.ingest.small_work import SmallWork
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.sizes import DIALOG_WIDTH
from sv_pipeline.wording import counted

__all__ = ["LAYER", "LAYER_COMPLETE", "chunked_graph", "layer"]

LAYER = dg.AssetKey("layer")
LAYER_COMPLETE = "layer_complete"
ROUNDS = 8
"""Rounds of a run. The last one runs everything itself; before it, seven layers can be handed out in mapped steps.

Each layer has an eighth of the chunks of the one below, so that of 10^9 chunks only the lowest eight layers have more
than 8 batches of 64 chunks.
"""

_MODE = dg.Field(
    dg.Enum.from_python_enum(IngestMode),
    is_required=False,
    description="both, graph, voxels or setup; default: the graph's own configuration.",
)


@dataclass(frozen=True)
class _LayerRun:
    """The layers that a run builds."""

    context: dg.OpExecutionContext
    pipeline: PipelineResource

    @property
    def keys(self) -> list[str]:
        """The partition keys of the run: ids of graphs, or keys of layers."""
        try:
            return sorted(map(str, self.context.partition_keys))
        except dg.DagsterInvalidInvocationError as error:
            # The sensor of registered graphs has removed a partition that somebody had typed.
            asked = self.context.run.tags.get("dagster/partition", "of this run")
            raise NotFoundError(
                f"no registered graph has the partition {asked}.", remedy="Choose one that the UI offers."
            ) from error

    @property
    def graph_ids(self) -> list[str]:
        """The graphs of the run, in the order by which mapping keys number them."""
        return sorted({key.split("|")[0] for key in self.keys})

    @property
    def is_one_layer(self) -> bool:
        """Whether the run is for one partition of the asset ``layer``, whose result is the result of the run."""
        return len(self.keys) == 1 and "|" in self.keys[0]

    def mode(self, dataset: Dataset) -> IngestMode:
        """Return the mode of the run: that of its configuration, or else of the graph's."""
        return self.context.op_config.get("mode") or dataset.config.ingest.mode

    def layers(self) -> list[tuple[Dataset, int]]:
        """Return the layers that the run builds, graph by graph and bottom-up, without those it has reported."""
        datasets = {graph_id: self.pipeline.dataset(graph_id) for graph_id in self.graph_ids}
        reported = self._reported()
        return [
            (dataset, number)
            for key in self.keys
            for dataset in [datasets[key.split("|")[0]]]
            for number in layers_of_partition(dataset, key)
            if layer_partition(dataset.graph_id, number) not in reported
        ]

    def _reported(self) -> set[str]:
        """Return the partitions of layers whose completion an earlier step of this run has reported."""
        events = self.context.instance.all_logs(self.context.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        found = [entry.asset_materialization for entry in events]
        return {str(event.partition) for event in found if event and event.asset_key == LAYER}

    def report(self, dataset: Dataset, number: int, metadata: dict[str, Any]) -> None:
        """Record a complete layer as a materialization of its partition, and as a result of its check."""
        partition = layer_partition(dataset.graph_id, number)
        self.context.log_event(dg.AssetMaterialization(LAYER, partition=partition, metadata=metadata))
        evaluation = dg.AssetCheckEvaluation(
            asset_key=LAYER, check_name=LAYER_COMPLETE, passed=True, partition=partition, metadata={"missing": 0}
        )
        # log_event accepts evaluations, although its signature does not say so.
        self.context.log_event(evaluation)  # type: ignore[arg-type]

    def finish(self, dataset: Dataset, number: int) -> dict[str, Any]:
        """Check by the done-markers that no chunk is missing, merge populated parts; return the layer's metadata."""
        from sv_pipeline.reports import views

        mode = self.mode(dataset)
        report = stages.finish_layer(dataset, number, mode)
        drawn = (
            {}
            if mode is IngestMode.VOXELS
            else pictures(nodes_picture=lambda: views.layer_picture(dataset, number, width=DIALOG_WIDTH))
        )
        counted = {name: value for name, value in report.numbers.items() if value is not None}
        return {"chunks": report.chunks, **counted, **prediction_metadata(dataset, number), **drawn}


def _plan(context: dg.OpExecutionContext, pipeline: PipelineResource, here: SmallWork) -> Iterator[Any]:
    run = _LayerRun(context, pipeline)
    with explained_failures():
        for dataset, number in run.layers():
            mode = run.mode(dataset)
            with after_earlier_runs(context, run.graph_ids):
                batches = stages.plan_layer(dataset, number, mode)
            name = f"layer {number} of {dataset.graph_id}"
            left = _run_here(run, dataset, batches, here, StepLog(context.log, name, batches))
            done = counted(len(batches) - len(left), "batch", "batches")
            context.log.info("%s: %s done, %d handed out", name, done, len(left))
            if left:
                for batch in left:
                    mapping_key = _mapping_key(batch, dataset.graph_id, run.graph_ids)
                    yield dg.DynamicOutput(None, output_name="batches", mapping_key=mapping_key)
                return
            # Parts are merged by finish_layers, for which the pool of merges has a limit of its own.
            if not run.is_one_layer and not stages.has_parts(dataset, number, mode):
                run.report(dataset, number, run.finish(dataset, number))
    yield dg.Output(None, "complete")


def _run_here(
    run: _LayerRun, dataset: Dataset, batches: Sequence[Batch], here: SmallWork, progress: StepLog
) -> list[Batch]:
    """Run batches in this step if they are few, or in pods if SV_PIPELINE_FANOUT says so; return what is left."""
    if not batches:
        return []
    prepared = prepare_coordinator(run.context, run.pipeline, dataset, batches)
    by_coordinator = next((batch for batch in batches if batch.stage is Stage.VOXELS), batches[0])
    with coordinator_for(run.context, run.pipeline, dataset, by_coordinator) as address:
        left = here.run(dataset, batches, address, advance=progress.advance)
    return run_elsewhere(run.context, dataset, left, progress, lambda _: prepared)


def _mapping_key(batch: Batch, graph_id: str, graph_ids: Sequence[str]) -> str:
    """Return the name of a mapped step; it numbers the graph if the run has several, since ids may hold ``-``."""
    return batch.key if len(graph_ids) == 1 else f"{batch.key}_of_{graph_ids.index(graph_id)}"


@dg.op(
    ins={"start": dg.In(dg.Nothing)},
    out={
        "batches": dg.DynamicOut(dg.Nothing, is_required=False),
        "complete": dg.Out(dg.Nothing, is_required=False),
    },
    config_schema={"mode": _MODE},
    retry_policy=RETRIES,
    pool=TABLE_POOL,
)
def plan_batches(context: dg.OpExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
    """Build layers as long as their work is small, and list the unfinished batches of the first larger layer."""
    with explained_failures():
        here = work_in_planning_steps(context)
    yield from _plan(context, pipeline, here)


@dg.op(
    ins={"start": dg.In(dg.Nothing)},
    out=dg.Out(dg.Nothing),
    config_schema={"mode": _MODE},
    retry_policy=RETRIES,
    pool=TABLE_POOL,
)
def build_the_rest(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    """Build all layers that are left, in this step."""
    for _ in _plan(context, pipeline, SmallWork.everything()):
        pass  # nothing is handed out


@dg.op(ins={"start": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), retry_policy=RETRIES, pool=TABLE_POOL)
def run_batch(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    """Build the unfinished chunks of a batch."""
    key, _, number = str(context.get_mapping_key()).partition("_of_")
    with explained_failures():
        dataset = pipeline.dataset(_LayerRun(context, pipeline).graph_ids[int(number or 0)])
        batch = Batch.parse(key)
        with coordinator_for(context, pipeline, dataset, batch) as address:
            progress = StepLog(context.log, key, [batch])
            report = stages.run_batch(dataset, batch, coordinator_address=address, advance=progress.advance)
    context.log.info("%d chunks in %.1f s: %s", report.chunks, report.seconds, report.counts)


@dg.op(
    ins={"rounds": dg.In(dg.Nothing)},
    out=dg.Out(is_required=False),
    config_schema={"mode": _MODE},
    retry_policy=RETRIES,
    pool=MERGE_POOL,
)
def finish_layers(context: dg.OpExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
    """Check by the done-markers that no chunk is missing, and merge the populated parts."""
    run = _LayerRun(context, pipeline)
    metadata: dict[str, Any] = {"chunks": 0}
    with explained_failures():
        for dataset, number in run.layers():
            metadata = run.finish(dataset, number)
            if not run.is_one_layer:
                run.report(dataset, number, metadata)
    if run.is_one_layer:
        yield dg.MaterializeResult(metadata=metadata)
    elif not any("|" in key for key in run.keys):
        dataset = pipeline.dataset(run.graph_ids[0])
        yield dg.MaterializeResult(metadata={"layers": dataset.grid.n_layers, "chunks": dataset.grid.count(2)})
    # A run for several partitions of the asset 'layer' has reported each of them.


def _rounds(start: Any) -> Any:
    """Chain the rounds; all but the first are skipped unless the one before has handed out batches."""
    ends = []
    for number in range(1, ROUNDS):
        suffix = "" if number == 1 else f"_{number}"
        planned = plan_batches.alias(f"plan_batches{suffix}")(start)
        start = planned.batches.map(run_batch.alias(f"run_batch{suffix}")).collect()
        ends.append(planned.complete)
    return finish_layers([*ends, build_the_rest(start)])


@dg.config_mapping(config_schema={"mode": _MODE})
def one_mode(value: dict[str, Any]) -> dict[str, Any]:
    """Pass one mode to all ops that plan or finish layers."""
    config = {} if value.get("mode") is None else {"mode": value["mode"].name}
    plans = ["plan_batches", *(f"plan_batches_{number}" for number in range(2, ROUNDS))]
    return {name: {"config": config} for name in (*plans, "build_the_rest", "finish_layers")}


_COMMON: dict[str, Any] = {
    "kinds": {"tensorstore"},
    "owners": OWNERS,
    "config": one_mode,
}


@dg.graph_asset(
    partitions_def=graphs, ins={"base_ocdbt": dg.AssetIn(dagster_type=dg.Nothing)}, group_name=INGEST_GROUP, **_COMMON
)
def chunked_graph(base_ocdbt: Any) -> Any:
    """All layers of the chunked graph, bottom-up; the populate layer also includes the base's voxels at all mips.

    Each layer that becomes complete is recorded at once as its partition of the asset `layer`. Only unfinished chunks
    are built, so after a failure it is materialized again.
    """
    return _rounds(base_ocdbt)


@dg.graph_asset(
    partitions_def=graph_layers,
    # Dagster cannot be told which graph the key of a layer belongs to. Planning checks that the table exists and that
    # the layer below is complete.
    ins={
        "base_ocdbt": dg.AssetIn(dagster_type=dg.Nothing, partition_mapping=dg.SpecificPartitionsPartitionMapping([]))
    },
    group_name="layers",
    # One run builds the chosen layers bottom-up; a run for each would start before the layer below is complete.
    backfill_policy=dg.BackfillPolicy.single_run(),
    **_COMMON,
)
def layer(base_ocdbt: Any) -> Any:
    """The single layers of the chunked graph, as `chunked_graph` builds them; one can be built again alone.

    Nobody needs to materialize it in an ordinary ingest. To build a layer anew, purge it with
    [purge_layer_job](/guess/purge_layer_job) first.
    """
    return _rounds(base_ocdbt)
