"""Builds one chunk of a graph once more, by its coordinates: its nodes, and its voxels at the populate layer.

A chunk that is not done is built as in an ingest. A chunk that is done is written again with exactly the same cells and
voxels: its ids and its time are reserved, and a digest refuses another input. No marker is removed, so the layers above
stay complete, and a process that is killed meanwhile leaves a sound graph.

A fork is a copy of the base's manifest as it was. So that the graph sees the voxels that were written again, its fork,
which has no edits, is made again. A process that is killed just then leaves no fork; the next ingest makes it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sv_pipeline.config import IngestMode
from sv_pipeline.errors import ConfigError, ConflictError, NotReadyError
from sv_pipeline.ingest import progress, stages
from sv_pipeline.ingest.atomic import build_atomic_chunks
from sv_pipeline.ingest.parents import build_parent_chunks
from sv_pipeline.ingest.purge import refuse_if_edited
from sv_pipeline.ingest.registration import require_watershed
from sv_pipeline.memory import memory_budget
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base import populate
from sv_pipeline.segmentation.base.repopulate import repopulate_task

__all__ = ["RequeueReport", "requeue_chunk"]

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class RequeueReport:
    """What was built or written again."""

    graph_id: str
    layer: int
    coordinate: Triple
    nodes: int | None
    """Number of nodes of the chunk's task; None if the mode has no graph."""
    supervoxels: int | None
    edges: int | None
    voxels: tuple[Triple, ...] | None
    """Shapes of the boxes that were written, at each mip; None if the chunk is no populate task or the mode has no
    voxels."""


def requeue_chunk(
    dataset: Dataset, layer: int, coordinate: Triple, *, mode: IngestMode | None = None, coordinator: str | None = None
) -> RequeueReport:
    """Build a chunk, or write it again if it is done.

    Parameters
    ----------
    layer
        Layer of the chunk; 2 for the finest.
    coordinate
        Coordinates (x, y, z) of the chunk, in chunks of its layer.
    mode
        ``graph``, ``voxels`` or ``both``. Default: that of the configuration.
    coordinator
        host:port of the OCDBT coordinator, for a populate task that is not done and needs one.

    Raises
    ------
    ConfigError
        If the graph has no such chunk, or the mode builds nothing of it.
    ConflictError
        If the graph was edited, if other software built it, or if the input of the chunk has changed.
    NotReadyError
        If the layer below is not complete, or the graph is not set up.
    """
    mode = mode or dataset.config.ingest.mode
    grid = dataset.grid
    if not 2 <= layer <= grid.n_layers:
        raise ConfigError(
            f"graph {dataset.graph_id!r} has no layer {layer}.", remedy=f"Its layers are 2 to {grid.n_layers}."
        )
    if not all(0 <= c < n for c, n in zip(coordinate, grid.shape(layer), strict=True)):
        raise ConfigError(
            f"layer {layer} of graph {dataset.graph_id!r} has no chunk {coordinate}.",
            remedy=f"It has {' x '.join(map(str, grid.shape(layer)))} chunks, counted from 0.",
        )
    if mode is IngestMode.SETUP:
        raise ConfigError("the mode 'setup' builds no chunk.", remedy="Choose graph, voxels or both.")
    _refuse_edited(dataset)
    plan = _populate_plan(dataset, coordinate) if mode is not IngestMode.GRAPH else None
    of_voxels = plan is not None and plan.layer == layer
    if mode is IngestMode.VOXELS and plan is not None and not of_voxels:
        raise ConfigError(
            f"the voxels are populated by the chunks of layer {plan.layer}, not by those of layer {layer}.",
            remedy=f"Name a chunk of layer {plan.layer}.",
        )
    report = None
    if mode is not IngestMode.VOXELS:
        if not dataset.table.exists():
            raise NotReadyError(f"graph {dataset.graph_id!r} has no table yet.", remedy="Run 'sv-pipeline ingest'.")
        graph = dataset.graph
        progress.require_own_graph(graph)
        if layer == 2:
            (report,) = build_atomic_chunks(graph, [coordinate], dataset.config, again=True)
        else:
            memory = memory_budget(dataset.config.ingest.worker_memory_mb)
            (report,) = build_parent_chunks(graph, layer, [coordinate], again=True, budget=memory)
    shapes = None
    if plan is not None and of_voxels:
        require_watershed(dataset)
        written = repopulate_task(plan, coordinate, coordinator_address=coordinator)
        shapes = written.shapes
        if written.already_done and dataset.fork.exists():
            stages.make_fork(dataset, recreate=True)
    return RequeueReport(
        dataset.graph_id,
        layer,
        coordinate,
        nodes=None if report is None else report.nodes,
        supervoxels=None if report is None else report.supervoxels,
        edges=None if report is None else report.edges,
        voxels=shapes,
    )


def _refuse_edited(dataset: Dataset) -> None:
    table = dataset.existing_table
    if table is not None:
        refuse_if_edited(dataset.graph, "Writing a chunk again")
    if dataset.fork.exists() and dataset.fork.has_commits():
        raise ConflictError(
            f"the voxels of graph {dataset.graph_id!r} were edited. Writing a chunk again would lose the edits.",
            remedy="Build a graph under another graph_id instead.",
        )


def _populate_plan(dataset: Dataset, coordinate: Triple) -> populate.PopulatePlan:
    memory = memory_budget(dataset.config.ingest.worker_memory_mb)
    config = dataset.config.ocdbt_config
    return populate.populate_plan(dataset.base, dataset.grid, config, only=[coordinate], memory=memory)
