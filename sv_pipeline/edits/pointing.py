"""What a person points at: the supervoxel at a voxel or, where there is none, the nearest of the object meant. Reads.

=====================  ================================================================================================
named with the point   what counts
=====================  ================================================================================================
nothing                the supervoxel at the voxel; on background the nearest one, of the object that the other points
                       are on, if they are on one
a root                 the supervoxel at the voxel, if it is of that object; else the nearest one of it; of a root that
                       was replaced, those that it became
a supervoxel           that one, if it is at the voxel, or near it and the voxel is background; another one there is an
                       error
a replaced supervoxel  as if nothing were named
=====================  ================================================================================================

The nearest is meant in nm. Nothing is near beyond :func:`~sv_pipeline.algorithms.voxel_cut.snap_distance`, or 96 voxels
of the finest axis where that is less.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.voxel_cut import snap_distance
from sv_pipeline.edits.requests import MergeRequest, Points, SplitRequest, check_count
from sv_pipeline.errors import InputError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edges import replaced
from sv_pipeline.graph.lineage import latest_roots
from sv_pipeline.graph.queries import node_timestamps, roots, supervoxels_at
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.operations.settled import SettledGraph
from sv_pipeline.storage.precomputed import read_info

__all__ = ["Near", "nearest", "resolved", "supervoxels_or_nearest", "what_is_near"]

log = logging.getLogger(__name__)
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
IsMeant = Callable[[UInt64Array], BoolArray]
Request = TypeVar("Request", MergeRequest, SplitRequest)

MAX_REACH = 96
"""Voxels of the finest axis: what is read around a point takes 60 MB at most."""
FRACTIONS = (0.125, 0.5, 1.0)
"""Of the limit: most points miss by little, and little is read for these."""
ON_THE_OBJECT = "Place it on the object; points are x, y, z in voxels of mip 0."


@dataclass(frozen=True)
class Near:
    """A supervoxel near a point."""

    supervoxel: int
    voxel: tuple[int, int, int]
    """Its voxel that is nearest."""
    distance: float
    """Nanometres."""


def resolved(graph: ChunkedGraph, request: Request, volume: Any) -> Request:
    """A request whose points are voxels on supervoxels, which it names.

    Parameters
    ----------
    volume
        The segmentation, a TensorStore; None where points name supervoxels only.

    Raises
    ------
    EditRefused
        If a point is on nothing, or on something else than it names; says what is near.
    """
    if isinstance(request, SplitRequest):
        joined = _resolve(graph, {"source": request.sources, "sink": request.sinks}, volume)
        return replace(request, sources=joined["source"], sinks=joined["sink"])
    sources = _resolve(graph, {"source": request.sources}, volume)
    sinks = _resolve(graph, {"sink": request.sinks}, volume)
    return replace(request, sources=sources["source"], sinks=sinks["sink"])


def supervoxels_or_nearest(graph: ChunkedGraph, points: Points, volume: Any) -> Points:
    """Points as a request would take them; those that it would refuse stay where they are, with the id 0."""
    try:
        return _resolve(graph, {"": points}, volume)[""]
    except EditRefused as refusal:
        if refusal.reason not in (Reason.BACKGROUND, Reason.BAD_REQUEST) or points.coordinates is None:
            raise
    if len(points.coordinates) == 1:
        return Points(np.zeros(1, np.uint64), points.coordinates)
    each = [supervoxels_or_nearest(graph, points.at(i), volume) for i in range(len(points.coordinates))]
    where = [one.coordinates for one in each if one.coordinates is not None]
    return Points(np.concatenate([one.ids for one in each]), np.concatenate(where), points.coordinates)


def _resolve(graph: ChunkedGraph, sides: dict[str, Points], volume: Any) -> dict[str, Points]:
    """Sides of a request whose points are meant to be on one object."""
    open_sides = {name: points for name, points in sides.items() if _is_open(name, points, volume)}
    if not open_sides:
        return sides
    where = np.concatenate([points.pointed for points in open_sides.values()])
    named = np.concatenate([_named(points) for points in open_sides.values()])
    names = [name for name, points in open_sides.items() for _ in points.pointed]
    here = _look(graph, volume, where)
    _check_named(graph, names, named)
    stale = (named != 0) & (graph.layout.layers(named) == 1) & (here != named)
    stale[stale] = replaced(graph, named[stale])
    meant = np.where(stale, np.uint64(0), named)
    ids, places = _Search(graph, volume, names, where, here, meant).found()
    result, start = dict(sides), 0
    for name, points in open_sides.items():
        part = slice(start, start := start + len(points.pointed))
        moved = (places[part] != where[part]).any()
        result[name] = Points(ids[part], places[part], points.pointed if moved else None)
    return result


def _is_open(name: str, points: Points, volume: Any) -> bool:
    """Whether points are still to be looked up."""
    if points.coordinates is None or not len(points.coordinates) or points.asked is not None:
        return False
    check_count(name, max(len(points.ids), len(points.coordinates)))
    if len(points.ids) not in (0, len(points.coordinates)):
        raise EditRefused(
            Reason.BAD_REQUEST,
            f"there are {len(points.ids)} {name} supervoxels, but {len(points.coordinates)} voxels for them.",
            remedy="Name one for each voxel, or none.",
        )
    if volume is None and not len(points.ids):
        raise EditRefused(
            Reason.BAD_REQUEST,
            "the request names voxels, but there is no volume to look up their supervoxels in.",
            remedy="Pass the graph's segmentation, or name supervoxels.",
        )
    return volume is not None


def _named(points: Points) -> UInt64Array:
    return points.ids if len(points.ids) else np.zeros(len(points.pointed), np.uint64)


def _look(graph: ChunkedGraph, volume: Any, where: IntArray) -> UInt64Array:
    look = graph.supervoxels_at if isinstance(graph, SettledGraph) else partial(supervoxels_at, graph)
    try:
        return look(volume, where)
    except InputError as error:
        raise EditRefused(Reason.OUTSIDE, error.message, remedy="Points are x, y, z in voxels of mip 0.") from error


def _check_named(graph: ChunkedGraph, names: Sequence[str], named: UInt64Array) -> None:
    """Refuse ids that are neither supervoxels nor roots in use."""
    layers = graph.layout.layers(named)
    wrong = np.flatnonzero((named != 0) & (layers != 1) & (layers != graph.n_layers))
    if len(wrong):
        i = wrong[0]
        raise EditRefused(
            Reason.NOT_A_SUPERVOXEL,
            f"{names[i]} {int(named[i])} is neither a supervoxel nor a root, but an id of layer {int(layers[i])}.",
            remedy="Name supervoxels or roots with voxels, or voxels alone.",
        )
    objects = np.unique(named[layers == graph.n_layers])
    if len(objects) and (unknown := node_timestamps(graph, objects, missing_ok=True) < 0).any():
        raise EditRefused(
            Reason.NOT_FOUND,
            f"root {int(objects[unknown][0])} is not in the graph.",
            remedy="Look the object up as it is now.",
        )


@dataclass(frozen=True, eq=False)
class _Search:
    """Points of one object, what is at their voxels, and what they name."""

    graph: ChunkedGraph
    volume: Any
    names: Sequence[str]
    """Side of each point."""
    where: IntArray
    here: UInt64Array
    """Supervoxels at the voxels; 0 = background."""
    meant: UInt64Array
    """Supervoxel or root that a point names; 0 = none."""

    def found(self) -> tuple[UInt64Array, IntArray]:
        """Supervoxel of each point, and a voxel of it."""
        ids, places = self.here.copy(), self.where.copy()
        layers = self.graph.layout.layers(self.meant)
        of_root = (self.meant != 0) & (layers == self.graph.n_layers)
        of_supervoxel = (self.meant != 0) & ~of_root
        root_here = self._roots(self.here) if of_root.any() or (self.here == 0).any() else np.zeros_like(self.here)
        self._refuse_others(of_supervoxel & (self.here != 0) & (self.here != self.meant))
        current = {root: latest_roots(self.graph, [root]) for root in np.unique(self.meant[of_root]).tolist()}
        off = self.here == 0
        for i in np.flatnonzero(of_root).tolist():
            off[i] |= root_here[i] not in current[int(self.meant[i])]
        on_objects = np.unique(np.concatenate([root_here[~off & (root_here != 0)], *current.values()]))
        for i in np.flatnonzero(off).tolist():
            wanted: int | None = int(self.meant[i])
            if of_supervoxel[i]:
                is_meant: IsMeant = partial(np.equal, self.meant[i])
            elif of_root[i]:
                is_meant = partial(self._is_of, current[int(self.meant[i])])
            elif len(on_objects) == 1:
                wanted, is_meant = int(on_objects[0]), partial(self._is_of, on_objects)
            else:
                wanted, is_meant = None, partial(np.ones_like, dtype=np.bool_)
            near = nearest(self.graph, self.volume, self.where[i], is_meant)
            if near is None:
                raise self._refusal(i, wanted)
            ids[i], places[i] = near.supervoxel, near.voxel
            log.info(
                "the %s point %s is moved by %.0f nm, to %s on supervoxel %d",
                self.names[i], tuple(self.where[i].tolist()), near.distance, near.voxel, near.supervoxel,
            )  # fmt: skip
        return ids, places

    def _roots(self, supervoxels: UInt64Array) -> UInt64Array:
        found = np.zeros_like(supervoxels)
        there = supervoxels != 0
        found[there] = roots(self.graph, supervoxels[there], missing_ok=True)
        return found

    def _is_of(self, objects: UInt64Array, supervoxels: UInt64Array) -> BoolArray:
        return np.isin(self._roots(supervoxels), objects)

    def _refuse_others(self, wrong: BoolArray) -> None:
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise EditRefused(
                Reason.BAD_REQUEST,
                f"the {self.names[i]} point {tuple(self.where[i].tolist())} lies on supervoxel {int(self.here[i])}, "
                f"not on {int(self.meant[i])}, which the request names for it.",
                remedy="Name the voxel alone, or the supervoxel that is there.",
            )

    def _refusal(self, i: int, wanted: int | None) -> EditRefused:
        place, here = tuple(self.where[i].tolist()), int(self.here[i])
        limit = search_limit(self.graph)
        lies = "background" if here == 0 else f"supervoxel {here} of another object"
        of = "no supervoxel" if wanted is None else f"nothing of {wanted}"
        return EditRefused(
            Reason.BACKGROUND if here == 0 and self.meant[i] == 0 else Reason.BAD_REQUEST,
            f"the {self.names[i]} point {place} lies on {lies}, and {of} is within {limit:.0f} nm of it "
            f"(near it: {what_is_near(self.graph, self.volume, self.where[i])}).",
            remedy=ON_THE_OBJECT,
        )


# -- near a point -----------------------------------------------------------------------------------------------------


def search_limit(graph: ChunkedGraph) -> float:
    """How far from a point, in nm, is looked for what it means."""
    resolution = _resolution(graph)
    return min(snap_distance(resolution), MAX_REACH * min(resolution))


def nearest(graph: ChunkedGraph, volume: Any, point: IntArray, is_meant: IsMeant) -> Near | None:
    """The nearest voxel of a supervoxel that is meant (of equals the first in x, y, z order); None beyond the limit."""
    limit = search_limit(graph)
    for fraction in FRACTIONS:
        found = _around(graph, volume, point, fraction * limit)
        ids = np.unique(found.ids)
        if len(ids):
            meant = np.isin(found.ids, ids[is_meant(ids)])
            if meant.any():
                return found.at(int(np.flatnonzero(meant)[found.distances[meant].argmin()]))
    return None


def what_is_near(graph: ChunkedGraph, volume: Any, point: IntArray, count: int = 3) -> str:
    """The supervoxels nearest to a point, their roots and distances, in words."""
    found = _around(graph, volume, point, search_limit(graph))
    if not len(found.ids):
        return "nothing"
    order = np.argsort(found.distances, kind="stable")
    _, first = np.unique(found.ids[order], return_index=True)
    near = [found.at(int(order[i])) for i in np.sort(first)[:count]]
    objects = roots(graph, [one.supervoxel for one in near], missing_ok=True).tolist()
    return ", ".join(
        f"supervoxel {one.supervoxel} of root {root}, {one.distance:.0f} nm away"
        for one, root in zip(near, objects, strict=True)
    )


@dataclass(frozen=True, eq=False)
class _Around:
    """Voxels of supervoxels around a point."""

    ids: UInt64Array
    voxels: IntArray
    distances: npt.NDArray[np.float64]
    """Nanometres."""

    def at(self, i: int) -> Near:
        x, y, z = self.voxels[i].tolist()
        return Near(int(self.ids[i]), (x, y, z), float(self.distances[i]))


def _around(graph: ChunkedGraph, volume: Any, point: IntArray, radius: float) -> _Around:
    resolution = np.asarray(_resolution(graph))
    reach = np.floor(radius / resolution).astype(np.int64)
    box = Box.of(point - reach, point + reach + 1).clip(graph.grid.bounds)
    if isinstance(graph, SettledGraph):
        voxels = graph.read_voxels(box)[1]
    else:
        voxels = np.asarray(volume[box.slices].read().result(), np.uint64)
    places = np.argwhere(voxels)
    ids = voxels[tuple(places.T)]
    places = places + box.start
    distances = np.sqrt((((places - point) * resolution) ** 2).sum(axis=1))
    inside = distances <= radius
    return _Around(ids[inside], places[inside], distances[inside])


def _resolution(graph: ChunkedGraph) -> tuple[float, float, float]:
    x, y, z = read_info(graph.watershed_url).scales[0].resolution
    return float(x), float(y), float(z)
