"""Moments and operations of a graph as views: what was where, before and after. Reads only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sv_pipeline.edits.as_of import milliseconds_of
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.grid import Box
from sv_pipeline.moments import Moment
from sv_pipeline.operations.log import asked_for
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.table.columns import SINK_COORDINATES, SOURCE_COORDINATES
from sv_pipeline.viewer.labels import View

__all__ = ["PlaceOfOperation", "place_of", "view_at"]

Voxel = tuple[int, int, int]

MARGIN = 256
"""Voxels around the points of an operation in which the voxels before and after it are exact."""


@dataclass(frozen=True, eq=False)
class PlaceOfOperation:
    """Where an operation was made, and the graph before and after it."""

    title: str
    before: View
    after: View
    old_roots: list[int]
    """The objects that it replaced."""
    new_roots: list[int]
    sources: list[Voxel]
    sinks: list[Voxel]
    centre: Voxel
    """Voxel in the middle of its points; the middle of the volume if the log has no points of it."""


def view_at(graph: ChunkedGraph, moment: Moment) -> View:
    """Return the view of a moment; NotFoundError if it is an operation that does not exist or did not succeed."""
    return View.at(graph, milliseconds_of(graph, moment))


def place_of(graph: OpenGraph, operation_id: int) -> PlaceOfOperation:
    """Return the place of an operation that was made, of any age.

    Raises
    ------
    NotFoundError
        If there is no such operation, or the fork does not keep the generations of its time any more.
    InputError
        If it was refused, or has not ended.
    """
    edit = graph.find_edit(operation=operation_id)
    assert edit is not None
    chunked = graph.graph
    request = asked_for(chunked, operation_id)
    sources, sinks = (_voxels(column.newest(request.row)) for column in (SOURCE_COORDINATES, SINK_COORDINATES))
    bounds = chunked.grid.bounds
    points = np.asarray([*sources, *sinks] or [bounds.start, bounds.stop])
    within = Box.of(points.min(axis=0), points.max(axis=0) + 1).grow(MARGIN).clip(bounds) if sources or sinks else None
    x, y, z = (points.min(axis=0) + points.max(axis=0)) // 2
    return PlaceOfOperation(
        title=f"Operation {operation_id}: {edit.kind} by {edit.user}. Left: before it; right: after it.",
        before=View.at(chunked, edit.logical_time - 1, within=within),
        after=View.at(chunked, edit.logical_time, within=within),
        old_roots=edit.old_roots.tolist(),
        new_roots=edit.roots.tolist(),
        sources=sources,
        sinks=sinks,
        centre=(int(x), int(y), int(z)),
    )


def _voxels(coordinates: object) -> list[Voxel]:
    if coordinates is None:
        return []
    return [(int(x), int(y), int(z)) for x, y, z in np.asarray(coordinates).reshape(-1, 3)]
