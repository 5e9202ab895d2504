"""What of a graph is complete, by its done-markers alone, whoever built it: a terminal, Dagster or another machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sv_pipeline.config import IngestMode
from sv_pipeline.errors import NotFoundError, NotReadyError
from sv_pipeline.ingest import progress
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base import layout
from sv_pipeline.table import counters

__all__ = ["Built", "is_made", "is_whole", "what_is_built"]


@dataclass(frozen=True)
class Built:
    """The complete parts of a graph."""

    watershed: bool = False
    """Whether the watershed volume is complete. It counts as such when something was built from it."""
    base: bool = False
    """Whether the table and the base exist, as far as the graph's mode includes them."""
    layers: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The complete layers, each with numbers to show."""
    missing: dict[int, int] = field(default_factory=dict)
    """The number of chunks that are missing in each layer that is not complete."""
    graph: bool = False
    """Whether all layers are complete, and the voxels of the base."""
    fork: bool = False
    """Whether the graph's fork exists."""
    readable: bool = False
    """Whether readers can open the graph: it is complete, and its documents are published."""
    up_to_date: bool = False
    """Whether the graph is readable and its coarser mips show all edits."""
    whole: bool = False
    """Whether nothing is missing that the graph's mode includes."""


def what_is_built(dataset: Dataset) -> Built:
    """Determine what is complete. A graph of another software counts as complete, since it has no done-markers."""
    mode = dataset.config.ingest.mode
    grid = dataset.grid
    has_voxels = mode is not IngestMode.GRAPH
    voxels = not has_voxels or dataset.base.is_complete()
    layers: dict[int, dict[str, Any]] = {}
    missing: dict[int, int] = {}
    populate_layer = _populate_layer(dataset) if has_voxels else None
    try:
        statuses = {} if mode is IngestMode.VOXELS else progress.layer_status(dataset.graph)
        elsewhere = bool(statuses) and not any(s.done for s in statuses.values()) and _built_elsewhere(dataset)
        has_table = mode is not IngestMode.VOXELS
    except NotFoundError:
        statuses, elsewhere, has_table = {}, False, False
    for number, status in statuses.items():
        if elsewhere:
            layers[number] = {"chunks": status.chunks, "note": "made by other software"}
        elif not status.complete:
            missing[number] = status.chunks - status.done
        elif number != populate_layer or voxels:
            layers[number] = {
                "chunks": status.chunks,
                "nodes": status.nodes,
                "edges": status.edges,
                "work_seconds": status.seconds,
            }
    whole = voxels and (mode is IngestMode.VOXELS or len(layers) == grid.n_layers - 1)
    fork = has_voxels and dataset.fork.exists()
    return Built(
        watershed=2 in layers or (has_voxels and voxels),
        base=has_table or (mode is IngestMode.VOXELS and voxels),
        layers=layers,
        missing=missing,
        graph=whole,
        fork=fork,
        readable=whole and fork,
        up_to_date=whole and fork and not dataset.fork.lag().entries,
        whole=whole and (fork or not has_voxels),
    )


def is_whole(dataset: Dataset) -> bool:
    """Whether a graph that was complete is so still, by its top layer and its fork: a purge removes the top layer."""
    mode = dataset.config.ingest.mode
    if mode is not IngestMode.GRAPH and not dataset.fork.exists():
        return False
    if mode is IngestMode.VOXELS:
        return True
    return _top_layer_is_complete(dataset)


def is_made(dataset: Dataset) -> bool:
    """Whether a graph has been made: all its layers were complete, or it has edits. Otherwise it may be in the making.

    What was lost since then does not matter: a graph whose fork is gone, for example, has been made.
    """
    if dataset.config.ingest.mode is IngestMode.VOXELS:
        return dataset.base.is_complete()
    table = dataset.existing_table
    if table is None:
        return False
    if counters.last_operation_id(table):
        return True
    return _top_layer_is_complete(dataset)


def _top_layer_is_complete(dataset: Dataset) -> bool:
    try:
        progress.require_layer_complete(dataset.graph, dataset.grid.n_layers)
    except NotReadyError:
        return _built_elsewhere(dataset)
    except NotFoundError:
        return False
    return True


def _built_elsewhere(dataset: Dataset) -> bool:
    return progress.built_elsewhere(dataset.graph)


def _populate_layer(dataset: Dataset) -> int:
    division = dataset.base.division()
    if division is not None:
        return division.layer
    return layout.populate_layer(dataset.base.effective(dataset.config.ocdbt_config), dataset.grid)
