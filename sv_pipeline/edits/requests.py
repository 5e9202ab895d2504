"""Requests to merge or split, and the checks that need no root: types, counts, layers and distances of the points."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import unique_rows
from sv_pipeline.arguments import parse_count, parse_flag, parse_ids, parse_user, parse_voxels, shown
from sv_pipeline.errors import InputError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.refusal import EditRefused, Reason, bad_request
from sv_pipeline.table import columns
from sv_pipeline.table.interface import SetCell
from sv_pipeline.table.meta import SPLIT_BOUNDING_OFFSET

__all__ = [
    "DEFAULT_REGION_MEMORY",
    "MAX_POINTS",
    "MergeRequest",
    "Points",
    "SplitRequest",
    "check_count",
    "check_distance",
    "check_options",
    "check_points",
    "chunks_of_points",
    "log_cells",
    "offset_of",
    "options_of",
    "region_of",
    "user_or_default",
]

IntArray = npt.NDArray[np.int64]

MAX_POINTS = 1000
"""Largest number of points on one side of a request."""
MAX_CHUNKS_APART = 3
"""Largest distance, in layer 2 chunks along each axis, between the two ends of a merge."""
DEFAULT_MEMORY = 4 << 30
"""Default of :attr:`SplitRequest.memory`, in bytes."""
DEFAULT_REGION_MEMORY = 1 << 30
"""Default of :attr:`SplitRequest.region_memory`, in bytes."""


@dataclass(frozen=True, eq=False)
class Points:
    """The points of one side of a request: supervoxels, voxels, or both. If both are given, row i is one point."""

    ids: UInt64Array
    """Supervoxel ids, shape (n,). If empty, they are looked up at ``coordinates``. Where coordinates are given, an id
    may also be a root, or 0 for none; see :mod:`sv_pipeline.edits.pointing`."""
    coordinates: npt.NDArray[np.int64] | None = None
    """Voxel coordinates (x, y, z) in the base mip, not relative to any chunk; shape (n, 3)."""
    asked: npt.NDArray[np.int64] | None = None
    """The voxels where the user pointed, shape (n, 3), if points were moved to the nearest supervoxel. Points with
    this field set are not looked up again."""

    @property
    def pointed(self) -> npt.NDArray[np.int64]:
        """The voxels where the user pointed, shape (n, 3); n is 0 if the request names only ids."""
        where = self.coordinates if self.asked is None else self.asked
        return np.zeros((0, 3), np.int64) if where is None else where

    def at(self, index: int) -> Points:
        """Return the point at an index as a side of its own."""
        part = slice(index, index + 1)
        return Points(self.ids[part], None if self.coordinates is None else self.coordinates[part])

    @classmethod
    def of(cls, ids: npt.ArrayLike = (), coordinates: npt.ArrayLike | None = None) -> Points:
        """Make points from anything array-like; fractional coordinates are rounded down to their voxel.

        Raises
        ------
        EditRefused
            If the values are not ids and voxels.
        """
        with bad_request():
            where = None if coordinates is None else parse_voxels(coordinates, floor=True)
            return cls(parse_ids(ids, "points"), where)


@dataclass(frozen=True, eq=False)
class MergeRequest:
    """Merge two objects: the one at ``sources`` and the one at ``sinks``."""

    user: str
    sources: Points
    sinks: Points
    offset: tuple[int, int, int] | None = None
    """Margin around the points, in voxels (x, y, z), within which inactive edges become active. None means the
    graph's own setting."""

    @property
    def supervoxels(self) -> UInt64Array:
        """Supervoxels of both sides."""
        return np.concatenate([self.sources.ids, self.sinks.ids])


@dataclass(frozen=True, eq=False)
class SplitRequest:
    """Split one object between ``sources`` and ``sinks``, along the minimum cut."""

    user: str
    sources: Points
    sinks: Points
    offset: tuple[int, int, int] | None = None
    """Margin around the points, in voxels (x, y, z), within which edges may be cut. None means the graph's own
    setting."""
    path_augmentation: bool = True
    """Whether the points of each side are joined by their best paths before the cut."""
    disallow_isolating_cut: bool | None = None
    """Refuse a cut that cuts off nothing but the points (and paths) of one side. A split of supervoxels is exempt. None
    refuses it only if that side has several points on different supervoxels, which is PyChunkedGraph's default."""
    memory: int = DEFAULT_MEMORY
    """Memory available to the voxels of a supervoxel split, in bytes."""
    region_memory: int = DEFAULT_REGION_MEMORY
    """Memory available to a region, in bytes, when it is enlarged because the cut in a smaller one does not separate
    the points."""
    allow_partial: bool = False
    """Cut in the first region even if a path outside of it still connects the two sides. So an object that several
    bridges hold together can be split one bridge at a time."""

    @property
    def supervoxels(self) -> UInt64Array:
        """Supervoxels of both sides."""
        return np.concatenate([self.sources.ids, self.sinks.ids])


def options_of(request: Any) -> dict[str, Any]:
    """Return the options of a request that the operation log has no columns for, as a value for JSON.

    The log and these options together are enough to repeat the request.
    """
    if not isinstance(request, MergeRequest | SplitRequest):
        return {"allow_partial": bool(getattr(request, "allow_partial", False))}
    options: dict[str, Any] = {
        "by_id": [bool(len(points.ids)) for points in (request.sources, request.sinks)],
        "offset": None if request.offset is None else [int(o) for o in request.offset],
    }
    if any(len(points.ids) and points.coordinates is not None for points in (request.sources, request.sinks)):
        # The ids that the user named with voxels. The log's columns hold the supervoxels that were found there.
        options["named"] = [points.ids[:MAX_POINTS].tolist() for points in (request.sources, request.sinks)]
    if isinstance(request, SplitRequest):
        options["path_augmentation"] = request.path_augmentation
        options["disallow_isolating_cut"] = request.disallow_isolating_cut
        options["memory"] = request.memory
        options["region_memory"] = request.region_memory
        options["allow_partial"] = request.allow_partial
    return options


def user_or_default(user: str | None) -> str:
    """Return the name of the user who edits, by default the user of this machine.

    Raises
    ------
    EditRefused
        If the name is not valid, or this machine has no name for its user.
    """
    try:
        with bad_request():
            return parse_user(getpass.getuser() if user is None else user)
    except (KeyError, OSError, ImportError) as error:
        raise EditRefused(
            Reason.BAD_REQUEST, "the user of this machine has no name.", remedy="Name the user who edits."
        ) from error


def check_options(request: Any) -> None:
    """Refuse a request whose user has no valid name, or whose options have wrong types: the log cannot hold these."""
    with bad_request():
        parse_user(request.user)
        parse_flag(getattr(request, "allow_partial", False), "allow_partial")
        if isinstance(request, SplitRequest):
            parse_flag(request.path_augmentation, "path_augmentation")
            if request.disallow_isolating_cut is not None:
                parse_flag(request.disallow_isolating_cut, "disallow_isolating_cut")
            parse_count(request.memory, "number of bytes for voxels")
            parse_count(request.region_memory, "number of bytes for the region")
    if isinstance(request, MergeRequest | SplitRequest) and request.offset is not None:
        _parse_offset(request.offset)


def _parse_offset(offset: Any) -> tuple[int, int, int]:
    if type(offset) is tuple and [type(n) for n in offset] == [int] * 3 and 0 <= min(offset) <= max(offset) < 1 << 31:
        x, y, z = offset  # an edit asks for it several times
        return x, y, z
    try:
        ((x, y, z),) = parse_voxels(offset, "offset").tolist()
    except (InputError, ValueError):  # these are not three numbers
        x = y = z = -1
    if min(x, y, z) < 0:
        raise EditRefused(
            Reason.BAD_REQUEST,
            f"an offset is three numbers of voxels, 0 or more, not {shown(offset)}.",
            remedy="Correct it, or leave it out to use the graph's own setting.",
        )
    return x, y, z


def check_count(name: str, count: int) -> None:
    """Refuse more than :data:`MAX_POINTS` points on one side."""
    if count > MAX_POINTS:
        raise EditRefused(
            Reason.TOO_MANY_POINTS,
            f"there are {count:,} {name} points; {MAX_POINTS:,} are possible.",
            remedy="Place fewer points. A few are enough, since the cut has to respect each of them.",
        )


def check_points(graph: ChunkedGraph, request: MergeRequest | SplitRequest) -> None:
    """Refuse points that cannot be edited whatever their roots are: none, too many, not supervoxels, on both sides."""
    for name, points in (("source", request.sources), ("sink", request.sinks)):
        _check_side(graph, name, points)
    both = np.intersect1d(request.sources.ids, request.sinks.ids)
    where = request.sources.coordinates, request.sinks.coordinates
    if len(both) and isinstance(request, MergeRequest):
        raise EditRefused(
            Reason.SAME_POINT,
            f"a source and a sink are both on supervoxel {int(both[0])}, so there is nothing to merge.",
            remedy="Place the sources on one object, and the sinks on another.",
        )
    if len(both) and (where[0] is None or where[1] is None):
        raise EditRefused(
            Reason.SAME_POINT,
            f"supervoxel {int(both[0])} is named as source and as sink.",
            remedy="Place the points on different supervoxels, or give voxels, so that the supervoxel can be split.",
        )
    if len(both) and where[0] is not None and where[1] is not None:
        shared = np.isin(_packed(where[0]), _packed(where[1]))
        if shared.any():
            raise EditRefused(
                Reason.SAME_POINT,
                f"voxel {tuple(where[0][shared][0].tolist())} is named as source and as sink.",
                remedy="Place the points of the two sides on different voxels.",
            )


def _packed(voxels: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    """Pack each voxel of shape (n, 3) into one value, so that voxels can be compared."""
    return np.ascontiguousarray(voxels, "<i8").view("V24").ravel()


def _check_side(graph: ChunkedGraph, name: str, points: Points) -> None:
    ids = points.ids
    if not len(ids):
        raise EditRefused(Reason.NO_POINTS, f"there is no {name} point.", remedy="Place at least one on each side.")
    check_count(name, len(ids))
    if points.coordinates is not None and len(points.coordinates) != len(ids):
        raise EditRefused(
            Reason.BAD_REQUEST,
            f"the number of {name} supervoxels is {len(ids)}, that of their voxels {len(points.coordinates)}.",
            remedy="Name one supervoxel for each voxel, or none at all.",
        )
    if (ids == 0).any():
        first = int(np.flatnonzero(ids == 0)[0])
        at = "" if points.coordinates is None else f" {tuple(points.coordinates[first].tolist())}"
        raise EditRefused(
            Reason.BACKGROUND,
            f"{name} point {first + 1} of {len(ids)}{at} is on background: it names the id 0.",
            remedy="Place it on an object.",
        )
    layers = graph.layout.layers(ids)
    if (layers != 1).any():
        wrong = int(ids[layers != 1][0])
        raise EditRefused(
            Reason.NOT_A_SUPERVOXEL,
            f"{name} {wrong} is not a supervoxel but an id of layer {int(layers[layers != 1][0])}.",
            remedy="Name supervoxels or voxels.",
        )
    outside = (graph.layout.coordinates(ids) >= np.asarray(graph.grid.shape(2))).any(axis=1)
    if outside.any():
        raise EditRefused(
            Reason.NOT_FOUND,
            f"{name} {int(ids[outside][0])} is not in graph {graph.graph_id!r}.",
            remedy="Check that the id is of this graph.",
        )


def check_distance(graph: ChunkedGraph, request: MergeRequest) -> None:
    """Refuse a merge of distant points: a new edge between distant chunks is most likely a slip of the mouse."""
    one, other = (graph.layout.coordinates(points.ids[:1]) for points in (request.sources, request.sinks))
    if np.abs(one - other).max() > MAX_CHUNKS_APART:
        raise EditRefused(
            Reason.TOO_FAR,
            f"the ends of the merge are {int(np.abs(one - other).max())} chunks apart; "
            f"{MAX_CHUNKS_APART} are possible.",
            remedy="Place the points where the objects meet.",
        )


def offset_of(graph: ChunkedGraph, request: MergeRequest | SplitRequest) -> tuple[int, int, int]:
    """Return the margin around the points of a request, in voxels (x, y, z)."""
    offset = request.offset
    return _parse_offset(
        graph.meta.custom_data.get("split_bounding_offset", SPLIT_BOUNDING_OFFSET) if offset is None else offset
    )


def chunks_of_points(graph: ChunkedGraph, request: MergeRequest | SplitRequest) -> IntArray:
    """Return the distinct layer 2 chunks of the points that lie in the graph; coordinates of shape (n, 3)."""
    found = [np.zeros((0, 3), np.int64)]
    for points in (request.sources, request.sinks):
        if points.coordinates is not None:
            found.append(graph.grid.chunk_of(points.coordinates))
        else:
            found.append(graph.layout.coordinates(points.ids[graph.layout.layers(points.ids) == 1]))
    chunks = np.concatenate(found)
    chunks = chunks[unique_rows(*chunks.T)]
    return chunks[((chunks >= 0) & (chunks < np.asarray(graph.grid.shape(2)))).all(axis=1)]


def region_of(graph: ChunkedGraph, request: MergeRequest | SplitRequest, margin: npt.ArrayLike | None = None) -> Box:
    """Return the box of voxels within which an edit looks at edges.

    It holds the points, or the chunks of the supervoxels where only these are named, and a margin around them.

    Parameters
    ----------
    margin
        Number of voxels around the points along each axis (x, y, z). The default is the margin of the request.
    """
    starts, stops = [], []
    for points in (request.sources, request.sinks):
        if points.coordinates is not None:
            starts.append(points.coordinates)
            stops.append(points.coordinates + 1)
        corners = graph.layout.coordinates(points.ids) * np.asarray(graph.grid.chunk_size)
        corners = corners + np.asarray(graph.grid.bounds.start)
        if points.coordinates is None:
            starts.append(corners)
            stops.append(corners + np.asarray(graph.grid.chunk_size))
    offset = np.asarray(offset_of(graph, request) if margin is None else margin)
    start, stop = np.concatenate(starts).min(axis=0), np.concatenate(stops).max(axis=0)
    return Box.of(start - offset, stop + offset).clip(graph.grid.bounds)


def _supervoxels(graph: ChunkedGraph, points: Points) -> UInt64Array:
    """Return the ids for the log, or none if some are not supervoxels: other software reads all as supervoxels."""
    ids = points.ids[:MAX_POINTS]
    all_are = points.coordinates is None or (graph.layout.layers(ids) == 1).all()
    return ids if all_are else np.zeros(0, np.uint64)


def log_cells(graph: ChunkedGraph, request: MergeRequest | SplitRequest) -> list[SetCell]:
    """Return a request as cells of the operation log. PyChunkedGraph tells merges from splits by these cells."""
    sources, sinks = request.sources, request.sinks
    cells = [
        columns.USER.set(request.user),
        columns.SOURCE_IDS.set(_supervoxels(graph, sources)),
        columns.SINK_IDS.set(_supervoxels(graph, sinks)),
    ]
    for points, column in ((sources, columns.SOURCE_COORDINATES), (sinks, columns.SINK_COORDINATES)):
        if points.coordinates is not None:
            cells.append(column.set(points.pointed[:MAX_POINTS]))
    if isinstance(request, MergeRequest):
        cells.append(
            columns.ADDED_EDGES.set(
                np.stack([_supervoxels(graph, sources)[:1], _supervoxels(graph, sinks)[:1]], axis=-1)
                if len(_supervoxels(graph, sources)) and len(_supervoxels(graph, sinks))
                else np.zeros((0, 2), np.uint64)
            )
        )
        return cells
    try:
        cells.append(columns.BOUNDING_BOX_OFFSET.set(np.array(offset_of(graph, request), np.int64)))
    except EditRefused:  # `check_options` refuses the request later
        cells.append(columns.BOUNDING_BOX_OFFSET.set(np.zeros(3, np.int64)))
    return cells
