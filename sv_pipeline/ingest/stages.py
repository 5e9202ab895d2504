"""Each step of an ingest as a function of a dataset: register, set up, plan, run one batch, check, fork.

Every function may be called again at any time: what is done stays done, what is missing is made.
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
from sv_pipeline.errors import ConfigError, ConflictError, NotFoundError, NotReadyError, SvPipelineError
from sv_pipeline.graph.chunked_graph import create_chunked_graph, open_chunked_graph
from sv_pipeline.graph.edges import has_split_edges
from sv_pipeline.ingest import progress, watershed
from sv_pipeline.ingest.announcing import announce_fork, publish_documents
from sv_pipeline.ingest.atomic import build_atomic_chunks
from sv_pipeline.ingest.batches import Batch, Stage, plan_batches
from sv_pipeline.ingest.parents import build_parent_chunks
from sv_pipeline.ingest.registration import attach, register, source_is_needed
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base import populate

__all__ = [
    "BatchReport",
    "LayerReport",
    "attach",
    "finish_edges",
    "finish_labels",
    "finish_layer",
    "layers_of",
    "make_fork",
    "needs_watershed",
    "plan_layer",
    "plan_watershed",
    "publish_documents",
    "register",
    "run_batch",
    "setup",
]

logger = logging.getLogger(__name__)
Coordinates = npt.NDArray[np.int64]
SETUP_ATTEMPTS = 5


@dataclass(frozen=True)
class BatchReport:
    """What one batch did."""

    key: str
    chunks: int
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerReport:
    """A complete layer."""

    layer: int
    chunks: int
    numbers: dict[str, float | None] = field(default_factory=dict)
    """What was made and how fast, by name; only what the mode asked for."""


# -- set-up -------------------------------------------------------------------------------------------------------


def needs_watershed(dataset: Dataset) -> bool:
    """Whether the watershed volume is ours to make: a source is configured, and was not removed when all was made."""
    return dataset.config.source is not None and source_is_needed(dataset)


def setup(dataset: Dataset, mode: IngestMode | None = None) -> dict[str, Any]:
    """Create the table and the base, as far as the mode asks for them; idempotent."""
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
            info = dataset.base.create(dataset.config.ocdbt_config, grid=dataset.grid)
        done["base"] = asdict(info)
    return done


def _has_table(dataset: Dataset) -> bool:
    """Whether the graph was set up to the end; a table without meta is what a crash in the middle leaves."""
    try:
        open_chunked_graph(dataset.table)
    except NotFoundError:
        return False
    return True


def _with_base(dataset: Dataset) -> DatasetConfig:
    """The configuration; where the watershed has a base that refers to it, one that tells other software so."""
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
    """A fork starts as the watershed, which lacks what other software has cut: better none than a stale one."""
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
            # Somebody else is setting up the same registered graph at this moment.
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
    """The layers that are built, in order; those ``chosen``, if given. ConfigError for one that the graph lacks."""
    layers = range(2, dataset.grid.n_layers + 1)
    for layer in chosen or ():
        if layer not in layers:
            raise ConfigError(
                f"graph {dataset.graph_id!r} has no layer {layer} to build.",
                remedy=f"Its layers are 2 to {dataset.grid.n_layers}.",
            )
    return list(layers) if chosen is None else sorted(set(chosen))


def plan_watershed(dataset: Dataset, stage: Stage) -> list[Batch]:
    """Unfinished batches of a stage of the watershed; prepares the target volume if it is not there."""
    plan = watershed.prepare_watershed(dataset.config)
    missing = watershed.pending(plan, watershed.WatershedPass(stage.value))
    return plan_batches(stage, 2, plan.grid, missing, dataset.config.ingest.chunks_per_batch)


def plan_layer(dataset: Dataset, layer: int, mode: IngestMode | None = None) -> list[Batch]:
    """Unfinished batches of a layer.

    Raises
    ------
    NotReadyError
        If the layer below is not complete, or set-up was not run.
    """
    mode = mode or dataset.config.ingest.mode
    batches: list[Batch] = []
    if mode in (IngestMode.BOTH, IngestMode.GRAPH):
        graph = _graph(dataset)
        progress.require_own_graph(graph)
        if layer > 2:
            progress.require_layer_complete(graph, layer - 1)
        missing = progress.missing_coordinates(graph, layer)
        batches += plan_batches(Stage.GRAPH, layer, graph.grid, missing, dataset.config.ingest.chunks_per_batch)
    if mode in (IngestMode.BOTH, IngestMode.VOXELS):
        plan = _populate_plan(dataset)
        if plan.layer == layer:
            batches += plan_batches(Stage.VOXELS, layer, dataset.grid, plan.missing, 1)
    return batches


def _graph(dataset: Dataset) -> Any:
    try:
        return dataset.graph
    except NotFoundError as error:
        raise NotReadyError(
            f"graph {dataset.graph_id!r} has no table yet.", remedy="Run the set-up first (asset base_ocdbt)."
        ) from error


def _populate_plan(dataset: Dataset, only: Coordinates | None = None) -> populate.PopulatePlan:
    return populate.populate_plan(dataset.base, dataset.grid, dataset.config.ocdbt_config, only=only)


# -- running ------------------------------------------------------------------------------------------------------


def run_batch(
    dataset: Dataset,
    batch: Batch,
    *,
    coordinator_address: str | None = None,
    advance: Callable[[int], None] | None = None,
) -> BatchReport:
    """Do the unfinished chunks of a batch; a failure is remembered with the chunks and raised."""
    started = time.monotonic()
    runner = {
        Stage.LABELS: _run_watershed,
        Stage.EDGES: _run_watershed,
        Stage.GRAPH: _run_graph,
        Stage.VOXELS: _run_voxels,
    }[batch.stage]
    counts = runner(dataset, batch, coordinator_address)
    report = BatchReport(batch.key, batch.stop - batch.first, round(time.monotonic() - started, 3), counts)
    if advance is not None:
        advance(report.chunks)
    return report


def _run_watershed(dataset: Dataset, batch: Batch, _: str | None) -> dict[str, int]:
    plan = watershed.prepare_watershed(dataset.config)
    run = watershed.run_label_batch if batch.stage is Stage.LABELS else watershed.run_edge_batch
    run(plan, batch.coordinates(plan.grid))
    return {}


def _run_graph(dataset: Dataset, batch: Batch, _: str | None) -> dict[str, int]:
    graph = _graph(dataset)
    coordinates = batch.coordinates(graph.grid)
    try:
        if batch.layer == 2:
            reports = build_atomic_chunks(graph, coordinates, dataset.config)
        else:
            reports = build_parent_chunks(graph, batch.layer, coordinates)
    except SvPipelineError as error:
        progress.mark_failed(graph, batch.layer, coordinates, error)
        raise
    return {"nodes": sum(r.nodes for r in reports), "edges": sum(r.edges for r in reports)}


def _run_voxels(dataset: Dataset, batch: Batch, coordinator_address: str | None) -> dict[str, int]:
    plan = _populate_plan(dataset, batch.coordinates(dataset.grid))
    total = 0
    for task in plan.missing:
        report = populate.populate_task(plan, task, coordinator_address=coordinator_address)
        total += sum(math.prod(shape) for shape in report.shapes)
    return {"voxels": total}


# -- completion ---------------------------------------------------------------------------------------------------


def finish_labels(dataset: Dataset) -> None:
    """Check that all chunks are labelled and make the table of objects."""
    watershed.finish_labels(watershed.prepare_watershed(dataset.config))


def finish_edges(dataset: Dataset) -> dict[str, Any]:
    """Check that all edge files are there; numbers of the finished watershed."""
    return asdict(watershed.finish_watershed(watershed.prepare_watershed(dataset.config)))


def finish_layer(dataset: Dataset, layer: int, mode: IngestMode | None = None) -> LayerReport:
    """Check by the done-markers that a layer is complete (never by who reported success); merge populated parts.

    Raises
    ------
    NotReadyError
        Naming how many chunks are missing and the first of them.
    """
    mode = mode or dataset.config.ingest.mode
    numbers: dict[str, float | None] = {}
    if mode in (IngestMode.BOTH, IngestMode.GRAPH):
        graph = _graph(dataset)
        progress.require_layer_complete(graph, layer)
        status = progress.layer_status(graph)[layer]
        numbers |= {
            "nodes": status.nodes,
            "edges": status.edges,
            "work_seconds": status.seconds,
            "chunks_per_second": status.throughput,
            "milliseconds_per_chunk": 1000 * status.seconds / max(status.done, 1),
        }
    if mode in (IngestMode.BOTH, IngestMode.VOXELS):
        plan = _populate_plan(dataset)
        if plan.layer == layer:
            report = populate.finish_populate(plan)
            numbers |= {
                "voxel_tasks": report.n_tasks,
                "merged_parts": report.merged_parts,
                "base_generation": report.generation,
            }
    return LayerReport(layer, dataset.grid.count(layer), numbers)


def make_fork(dataset: Dataset, *, recreate: bool = False) -> None:
    """The fork of a graph, unless it is there and ``recreate`` is not asked for; other software is told of it."""
    if recreate or not dataset.fork.exists():
        dataset.fork.create(recreate=recreate)
    announce_fork(dataset)
    publish_documents(dataset)
