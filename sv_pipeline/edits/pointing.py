"""Finds the supervoxel that a point means: the one at its voxel, or else the nearest one of its object. Reads only.

=====================  ================================================================================================
named with the point   supervoxel that is used
=====================  ================================================================================================
nothing                The supervoxel at the voxel. If the voxel is background, the nearest supervoxel is used; if the
                       other points are all on one object, only supervoxels of that object are considered.
a root                 The supervoxel at the voxel if it belongs to that root, else the nearest one that does. If the
                       root was replaced, its latest successors take its place.
a supervoxel           That supervoxel, if it is at the voxel, or if the voxel is background and the supervoxel is
                       near. If another supervoxel is at the voxel, the request is refused.
a replaced supervoxel  As if nothing were named.
=====================  ================================================================================================

Distances are in nm. The search ends at :func:`~sv_pipeline.algorithms.voxel_cut.snap_distance`, or at 96 voxels of the
finest axis if that is less.
"""

from __future__ import annotations

import logging
import math
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
"""Largest search distance, in voxels of the finest axis. It limits the voxels read around a point to 60 MB."""
FRACTIONS = (0.125, 0.5, 1.0)
"""Search distances that are tried in turn, as fractions of the limit. Most points miss their object by little, so the
first one usually suffices and little is read."""
VOXELS_FOR_MESSAGES = 4_000_000
"""Number of voxels around a point that are read to say what is near it: about 130 MB at the peak."""
ON_THE_OBJECT = "Place it on the object; points are x, y, z in voxels of mip 0."


@dataclass(frozen=True)
class Near:
    """A supervoxel near a point."""

    supervoxel: int
    voxel: tuple[int, int, int]
    """The voxel (x, y, z) of the supervoxel that is nearest to the point."""
    distance: float
    """Distance from the point, in nm."""


def resolved(graph: ChunkedGraph, request: Request, volume: Any) -> Request:
    """Return a request with a supervoxel for each point, and with each voxel on its supervoxel.

    Parameters
    ----------
    volume
        The segmentation at mip 0, a TensorStore; None if the points name only supervoxels.

    Raises
    ------
    EditRefused
        If no supervoxel is near a point, or the point lies on another object than it names. The message lists what
        is near.
    """
    if isinstance(request, SplitRequest):
        joined = _resolve(graph, {"source": request.sources, "sink": request.sinks}, volume)
        return replace(request, sources=joined["source"], sinks=joined["sink"])
    sources = _resolve(graph, {"source": request.sources}, volume)
    sinks = _resolve(graph, {"sink": request.sinks}, volume)
    return replace(request, sources=sources["source"], sinks=sinks["sink"])


def supervoxels_or_nearest(graph: ChunkedGraph, points: Points, volume: Any) -> Points:
    """Resolve points as :func:`resolved` does; points that it would refuse keep their voxel and get the id 0."""
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
    """Resolve sides of a request whose points should all be on one object."""
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
    """Return whether points have to be looked up; raise EditRefused if their ids and voxels do not correspond."""
    if points.coordinates is None or not len(points.coordinates) or points.asked is not None:
        return False
    check_count(name, max(len(points.ids), len(points.coordinates)))
    if len(points.ids) not in (0, len(points.coordinates)):
        raise EditRefused(
            Reason.BAD_REQUEST,
            f"the number of {name} supervoxels is {len(points.ids)}, that of their voxels {len(points.coordinates)}.",
            remedy="Name one supervoxel for each voxel, or none at all.",
        )
    if volume is None and not len(points.ids):
        raise EditRefused(
            Reason.BAD_REQUEST,
            "the request names voxels, but there is no volume to look up their supervoxels in.",
            remedy="Pass the graph's segmentation as the volume, or name supervoxels.",
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
    """Refuse ids that are neither supervoxels nor roots of this graph."""
    layers = graph.layout.layers(named)
    wrong = np.flatnonzero((named != 0) & (layers != 1) & (layers != graph.n_layers))
    if len(wrong):
        i = wrong[0]
        raise EditRefused(
            Reason.NOT_A_SUPERVOXEL,
            f"{names[i]} {int(named[i])} is neither a supervoxel nor a root, but an id of layer {int(layers[i])}.",
            remedy="Name a supervoxel or a root with each voxel, or give voxels alone.",
        )
    objects = np.unique(named[layers == graph.n_layers])
    if len(objects) and (unknown := node_timestamps(graph, objects, missing_ok=True) < 0).any():
        raise EditRefused(
            Reason.NOT_FOUND,
            f"root {int(objects[unknown][0])} is not in the graph.",
            remedy="Look up the current root of the object.",
        )


@dataclass(frozen=True, eq=False)
class _Search:
    """A search for the supervoxels of points that should be on one object."""

    graph: ChunkedGraph
    volume: Any
    names: Sequence[str]
    """Side of each point, ``source`` or ``sink``."""
    where: IntArray
    """Voxel (x, y, z) of each point, shape (n, 3)."""
    here: UInt64Array
    """Supervoxel at each voxel, shape (n,); 0 is background."""
    meant: UInt64Array
    """Supervoxel or root that each point names, shape (n,); 0 means none."""

    def found(self) -> tuple[UInt64Array, IntArray]:
        """Return the supervoxel of each point, shape (n,), and one of its voxels, shape (n, 3)."""
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
                raise self._refusal(i, wanted, None if wanted is None else is_meant)
            ids[i], places[i] = near.supervoxel, near.voxel
            lies = "on background" if self.here[i] == 0 else f"on supervoxel {int(self.here[i])} of another object"
            log.info(
                "the %s point %s lies %s: it is moved by %.0f nm, to %s on supervoxel %d",
                self.names[i], tuple(self.where[i].tolist()), lies, near.distance, near.voxel, near.supervoxel,
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
                remedy="Give the voxel alone, or name the supervoxel that is there.",
            )

    def _refusal(self, i: int, wanted: int | None, is_meant: IsMeant | None) -> EditRefused:
        place, here = tuple(self.where[i].tolist()), int(self.here[i])
        limit = search_limit(self.graph)
        lies = "background" if here == 0 else f"supervoxel {here} of another object"
        of = "no supervoxel" if wanted is None else f"nothing of {wanted}"
        return EditRefused(
            Reason.BACKGROUND if here == 0 and self.meant[i] == 0 else Reason.BAD_REQUEST,
            f"the {self.names[i]} point {place} lies on {lies}, and {of} is within {limit:.0f} nm of it "
            f"(near it: {what_is_near(self.graph, self.volume, self.where[i], is_meant)}).",
            remedy=ON_THE_OBJECT,
        )


# -- near a point -----------------------------------------------------------------------------------------------------


def search_limit(graph: ChunkedGraph) -> float:
    """Return the largest distance from a point, in nm, at which its supervoxel is searched for."""
    resolution = _resolution(graph)
    return min(snap_distance(resolution), MAX_REACH * min(resolution))


def nearest(graph: ChunkedGraph, volume: Any, point: IntArray, is_meant: IsMeant) -> Near | None:
    """Return the nearest voxel of a supervoxel that `is_meant` accepts; None if there is none within the limit.

    Among voxels at the same distance, the first in x, y, z order is returned.
    """
    limit = search_limit(graph)
    for fraction in FRACTIONS:
        found = _around(graph, volume, point, fraction * limit)
        ids = np.unique(found.ids)
        if len(ids):
            meant = np.isin(found.ids, ids[is_meant(ids)])
            if meant.any():
                return found.at(int(np.flatnonzero(meant)[found.distances[meant].argmin()]))
    return None


def what_is_near(graph: ChunkedGraph, volume: Any, point: IntArray, is_meant: IsMeant | None = None) -> str:
    """Describe, for a message, the nearest supervoxels of the two nearest objects, with their distances.

    It looks further than a point is ever moved, as far as that takes no more memory than one edit. The second object
    is that of the nearest supervoxel that ``is_meant`` accepts, if there is one.
    """
    radius = max(search_limit(graph), (VOXELS_FOR_MESSAGES * math.prod(_resolution(graph))) ** (1 / 3) / 2)
    found = _around(graph, volume, point, radius)
    if not len(found.ids):
        return f"nothing within {radius:,.0f} nm"
    order = np.argsort(found.distances, kind="stable")
    ids, first = np.unique(found.ids[order], return_index=True)
    ids, first = ids[np.argsort(first)], np.sort(first)
    objects = roots(graph, ids, missing_ok=True)
    others = is_meant(ids) if is_meant is not None and is_meant(ids).any() else objects != objects[0]
    shown = np.unique(np.r_[0, np.flatnonzero(others)[:1]])
    return ", ".join(
        f"supervoxel {one.supervoxel} of root {root}, {one.distance:.0f} nm away at {one.voxel}"
        for one, root in ((found.at(int(order[first[i]])), int(objects[i])) for i in shown)
    )


@dataclass(frozen=True, eq=False)
class _Around:
    """The voxels around a point that are not background."""

    ids: UInt64Array
    """Supervoxel at each voxel, shape (n,)."""
    places: IntArray
    """Position of each voxel in the box, in x, y, z order, shape (n,)."""
    distances: npt.NDArray[np.float64]
    """Distance of each voxel from the point, in nm, shape (n,)."""
    box: Box

    def at(self, i: int) -> Near:
        place = np.unravel_index(int(self.places[i]), self.box.shape)
        x, y, z = (int(start) + int(p) for start, p in zip(self.box.start, place, strict=True))
        return Near(int(self.ids[i]), (x, y, z), float(self.distances[i]))


def _around(graph: ChunkedGraph, volume: Any, point: IntArray, radius: float) -> _Around:
    resolution = np.asarray(_resolution(graph))
    reach = np.floor(radius / resolution).astype(np.int64)
    box = Box.of(point - reach, point + reach + 1).clip(graph.grid.bounds)
    if isinstance(graph, SettledGraph):
        voxels = graph.read_voxels(box)[1]
    else:
        voxels = np.asarray(volume[box.slices].read().result(), np.uint64)
    steps = [
        ((np.arange(start, stop) - at) * size) ** 2
        for start, stop, at, size in zip(box.start, box.stop, point.tolist(), resolution, strict=True)
    ]
    distances = np.sqrt(steps[0][:, None, None] + steps[1][:, None] + steps[2])
    places = np.flatnonzero((voxels != 0) & (distances <= radius))
    return _Around(voxels.reshape(-1)[places], places, distances.reshape(-1)[places], box)


def _resolution(graph: ChunkedGraph) -> tuple[float, float, float]:
    x, y, z = read_info(graph.watershed_url).scales[0].resolution
    return float(x), float(y), float(z)
