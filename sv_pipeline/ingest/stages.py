"""Each step of an ingest as a function of a dataset: register, set up, plan, run one batch, check, fork.

Every function may be called again at any time: it keeps what is done, and makes what is missing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.backoff import Backoff
from sv_pipeline.config import DatasetConfig, IngestMode, PopulateMethod
from sv_pipeline.errors import ConfigError, ConflictError, NotFoundError, NotReadyError
from sv_pipeline.graph.chunked_graph import create_chunked_graph, open_chunked_graph
from sv_pipeline.graph.edges import has_split_edges
from sv_pipeline.ingest import planning, progress, watershed
from sv_pipeline.ingest.announcing import announce_fork, publish_documents
from sv_pipeline.ingest.atomic import atomic_groups
from sv_pipeline.ingest.batches import Batch, Stage, plan_batches
from sv_pipeline.ingest.failure_details import batch_details, stage_details
from sv_pipeline.ingest.parents import parent_groups
from sv_pipeline.ingest.registration import attach, register, require_watershed, source_is_needed
from sv_pipeline.memory import memory_budget
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base import populate
from sv_pipeline.storage.error_dump import dump_errors
from sv_pipeline.storage.presence import building

__all__ = [
    "BatchReport",
    "LayerReport",
    "attach",
    "finish_edges",
    "finish_labels",
    "finish_layer",
    "has_parts",
    "layers_of",
    "make_fork",
    "missing_mask",
    "needs_watershed",
    "plan_layer",
    "plan_watershed",
    "publish_documents",
    "register",
    "run_batch",
    "setup",
    "step_size",
]

logger = logging.getLogger(__name__)
Coordinates = npt.NDArray[np.int64]
SETUP_ATTEMPTS = 5
NO_TASKS = np.zeros((0, 3), np.int64)


@dataclass(frozen=True)
class BatchReport:
    """The result of one batch."""

    key: str
    chunks: int
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerReport:
    """The result of a complete layer."""

    layer: int
    chunks: int
    numbers: dict[str, float | None] = field(default_factory=dict)
    """Numbers of what was made and how fast, by name; only for the parts that the mode includes."""


# -- set-up -------------------------------------------------------------------------------------------------------


def needs_watershed(dataset: Dataset) -> bool:
    """Whether the ingest makes the watershed volume: a source is configured, and is still there or still needed."""
    return dataset.config.source is not None and source_is_needed(dataset)


def setup(dataset: Dataset, mode: IngestMode | None = None) -> dict[str, Any]:
    """Create the table and the base, as far as the mode includes them. Nothing happens to those that exist."""
    mode = mode or dataset.config.ingest.mode
    done: dict[str, Any] = {}
    if mode is not IngestMode.VOXELS:
        done["table"] = "there already" if _has_table(dataset) else _create_table(dataset)
        progress.require_own_graph(dataset.graph)
    if mode is not IngestMode.GRAPH:
        _refuse_foreign_pieces(dataset)
        if dataset.fork.exists():
            info = dataset.base.info()
        else:
            info = dataset.base.create(dataset.config.ocdbt_config, grid=dataset.grid, memory=_memory(dataset))
        done["base"] = asdict(info)
    planning.keep_if_absent(dataset)
    return done


def _has_table(dataset: Dataset) -> bool:
    """Whether the graph was set up completely; a crash during set-up leaves a table without meta."""
    try:
        open_chunked_graph(dataset.table)
    except NotFoundError:
        return False
    return True


def _with_base(dataset: Dataset) -> DatasetConfig:
    """The configuration for the meta row, which tells other software if the base refers to the watershed's voxels."""
    config = dataset.config
    try:
        refers = dataset.base.info().refers
    except NotFoundError:
        return config
    if not refers or config.ocdbt_config.populate_method.refers:
        return config
    by_reference = config.ocdbt_config.model_copy(update={"populate_method": PopulateMethod.AUTO})
    return config.model_copy(update={"ocdbt_config": by_reference})


def _refuse_foreign_pieces(dataset: Dataset) -> None:
    """Raise ConflictError if other software has split supervoxels: a new fork would show them unsplit."""
    if dataset.fork.exists():
        return
    try:
        graph = dataset.graph
    except NotFoundError:
        return
    if progress.built_elsewhere(graph) and has_split_edges(graph):
        raise ConflictError(
            f"other software has split supervoxels of graph {dataset.graph_id!r}: the watershed lacks the pieces.",
            remedy="The graph can be read and verified here, but voxels made of this watershed would contradict it. "
            "Make a watershed volume of its present segmentation, and a graph of that.",
        )


def _create_table(dataset: Dataset) -> str:
    for attempt in range(SETUP_ATTEMPTS):
        try:
            create_chunked_graph(dataset.table, _with_base(dataset))
        except ConflictError:
            # Another process is setting up the same registered graph at this moment.
            if _has_table(dataset):
                return "created by another run"
            if attempt + 1 == SETUP_ATTEMPTS:
                raise
            time.sleep(Backoff(0.2).jittered(attempt + 1))
        else:
            return "created"
    raise AssertionError("unreachable")


# -- planning -----------------------------------------------------------------------------------------------------


def layers_of(dataset: Dataset, chosen: Sequence[int] | None = None) -> list[int]:
    """Return the layers to build, in order: all, or those ``chosen``. ConfigError if the graph lacks a chosen layer."""
    layers = range(2, dataset.grid.n_layers + 1)
    for layer in chosen or ():
        if layer not in layers:
            raise ConfigError(
                f"graph {dataset.graph_id!r} has no layer {layer} to build.",
                remedy=f"Its layers are 2 to {dataset.grid.n_layers}.",
            )
    return list(layers) if chosen is None else sorted(set(chosen))


def plan_watershed(dataset: Dataset, stage: Stage) -> list[Batch]:
    """Return the unfinished batches of a watershed stage, and create the target volume if it does not exist."""
    plan = watershed.prepare_watershed(dataset.config)
    missing = ~watershed.done_mask(plan.target, watershed.WatershedPass(stage.value), plan.grid)
    return plan_batches(stage, 2, plan.grid, missing, dataset.config.ingest.chunks_per_batch)


def plan_layer(dataset: Dataset, layer: int, mode: IngestMode | None = None) -> list[Batch]:
    """Return the unfinished batches of a layer.

    Raises
    ------
    NotReadyError
        If the layer below is not complete, the set-up was not run, or voxels are missing of a watershed that is made
        here and not complete.
    """
    mode = mode or dataset.config.ingest.mode
    batches: list[Batch] = []
    if mode in (IngestMode.BOTH, IngestMode.GRAPH):
        graph = _graph(dataset)
        progress.require_own_graph(graph)
        if layer > 2:
            progress.require_layer_complete(graph, layer - 1)
        missing = progress.missing_mask(graph, layer)
        batches += plan_batches(Stage.GRAPH, layer, graph.grid, missing, dataset.config.ingest.chunks_per_batch)
    if mode in (IngestMode.BOTH, IngestMode.VOXELS):
        plan = _populate_plan(dataset, NO_TASKS)
        if plan.layer == layer:
            plan = _populate_plan(dataset)
            if plan.missing:
                require_watershed(dataset)
            batches += plan_batches(Stage.VOXELS, layer, dataset.grid, plan.missing, 1)
    return batches


def missing_mask(dataset: Dataset, stage: Stage, layer: int) -> npt.NDArray[np.bool_]:
    """Whether the chunk of each index of a layer has no done-marker of a stage, shape (chunks,)."""
    if stage is Stage.GRAPH:
        return progress.missing_mask(_graph(dataset), layer)
    if stage is Stage.VOXELS:
        grid, missing = dataset.grid, np.array(_populate_plan(dataset).missing, np.int64)
    else:
        plan = watershed.prepare_watershed(dataset.config)
        grid, missing = plan.grid, watershed.pending(plan, watershed.WatershedPass(stage.value))
    mask = np.zeros(grid.count(layer), np.bool_)
    mask[grid.index(layer, missing.reshape(-1, 3))] = True
    return mask


def _graph(dataset: Dataset) -> Any:
    try:
        return dataset.graph
    except NotFoundError as error:
        raise NotReadyError(
            f"graph {dataset.graph_id!r} has no table yet.", remedy="Run the set-up first (asset base_ocdbt)."
        ) from error


def _populate_plan(dataset: Dataset, only: Coordinates | None = None) -> populate.PopulatePlan:
    config = dataset.config.ocdbt_config
    return populate.populate_plan(dataset.base, dataset.grid, config, only=only, memory=_memory(dataset))


def _memory(dataset: Dataset) -> int:
    return memory_budget(dataset.config.ingest.worker_memory_mb)


def step_size(dataset: Dataset, layer: int, mode: IngestMode | None = None) -> int:
    """Return the number of chunks of a layer, with those whose voxels are populated with it; done or not."""
    mode = mode or dataset.config.ingest.mode
    kinds = (mode in (IngestMode.BOTH, IngestMode.GRAPH)) + has_parts(dataset, layer, mode)
    return dataset.grid.count(layer) * kinds


def has_parts(dataset: Dataset, layer: int, mode: IngestMode | None = None) -> bool:
    """Whether the voxels of the base are populated with this layer, so that its completion merges their parts."""
    mode = mode or dataset.config.ingest.mode
    return mode in (IngestMode.BOTH, IngestMode.VOXELS) and _populate_plan(dataset).layer == layer


# -- running ------------------------------------------------------------------------------------------------------


def run_batch(
    dataset: Dataset,
    batch: Batch,
    *,
    coordinator_address: str | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> BatchReport:
    """Build the unfinished chunks of a batch. A failure is stored in the chunks' ingest rows and raised.

    Parameters
    ----------
    advance
        Called with the number of chunks whenever further chunks of the batch are durable, or are found to be done.
    """
    started = time.monotonic()
    runner = {
        Stage.LABELS: _run_watershed,
        Stage.EDGES: _run_watershed,
        Stage.GRAPH: _run_graph,
        Stage.VOXELS: _run_voxels,
    }[batch.stage]
    with (
        building(dataset.home, dataset.graph_id),
        dump_errors(batch.key, lambda: batch_details(dataset, batch)),
    ):
        counts = runner(dataset, batch, coordinator_address, advance)
    return BatchReport(batch.key, batch.stop - batch.first, round(time.monotonic() - started, 3), counts)


def _run_watershed(dataset: Dataset, batch: Batch, _: str | None, advance: Callable[[int], None]) -> dict[str, int]:
    plan = watershed.prepare_watershed(dataset.config)
    run = watershed.run_label_batch if batch.stage is Stage.LABELS else watershed.run_edge_batch
    run(plan, batch.coordinates(plan.grid), advance)
    return {}


def _run_graph(dataset: Dataset, batch: Batch, _: str | None, advance: Callable[[int], None]) -> dict[str, int]:
    graph = _graph(dataset)
    coordinates = batch.coordinates(graph.grid)
    if batch.layer == 2:
        groups = atomic_groups(graph, coordinates, dataset.config)
    else:
        groups = parent_groups(graph, batch.layer, coordinates, budget=_memory(dataset))
    counts = {"nodes": 0, "edges": 0}
    for reports in groups:
        counts["nodes"] += sum(r.nodes for r in reports)
        counts["edges"] += sum(r.edges for r in reports)
        advance(len(reports))
    return counts


def _run_voxels(
    dataset: Dataset, batch: Batch, coordinator_address: str | None, advance: Callable[[int], None]
) -> dict[str, int]:
    plan = _populate_plan(dataset, batch.coordinates(dataset.grid))
    total = 0
    advance(batch.stop - batch.first - len(plan.missing))
    for task in plan.missing:
        report = populate.populate_task(plan, task, coordinator_address=coordinator_address)
        total += sum(math.prod(shape) for shape in report.shapes)
        advance(1)
    return {"voxels": total}


# -- completion ---------------------------------------------------------------------------------------------------


def finish_labels(dataset: Dataset) -> None:
    """Check that the label pass has finished all chunks, and make the table of objects."""
    with dump_errors("finish_labels", lambda: stage_details(dataset, Stage.LABELS, 2)):
        watershed.finish_labels(watershed.prepare_watershed(dataset.config))


def finish_edges(dataset: Dataset) -> dict[str, Any]:
    """Check that all edge files exist, and return the counts of the finished watershed by name."""
    with dump_errors("finish_edges", lambda: stage_details(dataset, Stage.EDGES, 2)):
        return asdict(watershed.finish_watershed(watershed.prepare_watershed(dataset.config)))


def finish_layer(dataset: Dataset, layer: int, mode: IngestMode | None = None) -> LayerReport:
    """Check by the done-markers alone, not by reports of success, that a layer is complete; merge populated parts.

    Raises
    ------
    NotReadyError
        If chunks are missing. The message says how many, and names the first.
    """
    mode = mode or dataset.config.ingest.mode
    numbers: dict[str, float | None] = {}
    if mode in (IngestMode.BOTH, IngestMode.GRAPH):
        graph = _graph(dataset)
        with dump_errors(f"finish_layer_{layer}", lambda: stage_details(dataset, Stage.GRAPH, layer)):
            progress.require_layer_complete(graph, layer)
            status = progress.layer_status(graph, layer)[layer]
        numbers |= {
            "nodes": status.nodes,
            "edges": status.edges,
            "work_seconds": status.seconds,
            "chunks_per_second": status.throughput,
            "milliseconds_per_chunk": 1000 * status.seconds / max(status.done, 1),
        }
    if mode in (IngestMode.BOTH, IngestMode.VOXELS):
        plan = _populate_plan(dataset, NO_TASKS)
        if plan.layer == layer:
            with dump_errors(f"finish_layer_{layer}", lambda: stage_details(dataset, Stage.VOXELS, layer)):
                report = populate.finish_populate(plan)
            numbers |= {
                "voxel_tasks": report.n_tasks,
                "merged_parts": report.merged_parts,
                "base_generation": report.generation,
            }
    return LayerReport(layer, dataset.grid.count(layer), numbers)


def make_fork(dataset: Dataset, *, recreate: bool = False) -> None:
    """Create the graph's fork, unless it exists and ``recreate`` is false, and announce it to other software."""
    if recreate or not dataset.fork.exists():
        dataset.fork.create(recreate=recreate)
    announce_fork(dataset)
    publish_documents(dataset)
