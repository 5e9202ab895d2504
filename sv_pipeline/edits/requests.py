"""What a user asks for, and whether it makes sense by itself. Reads points in the volume; knows no root."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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
    "log_cells",
    "offset_of",
    "options_of",
    "region_of",
    "user_or_default",
]

MAX_POINTS = 1000
"""Of one side."""
MAX_CHUNKS_APART = 3
"""How far, per axis, the layer 2 chunks of the two ends of a merge may be from each other."""
DEFAULT_MEMORY = 4 << 30
DEFAULT_REGION_MEMORY = 1 << 30


@dataclass(frozen=True, eq=False)
class Points:
    """One side of a request: supervoxels, or voxels to look them up at, or both (then they correspond)."""

    ids: UInt64Array
    """Shape (n,); empty = look them up. Beside voxels also roots, or 0: see :mod:`sv_pipeline.edits.pointing`."""
    coordinates: npt.NDArray[np.int64] | None = None
    """Absolute voxels of the base mip (x, y, z), shape (n, 3)."""
    asked: npt.NDArray[np.int64] | None = None
    """Where the user pointed, if points were moved to the nearest supervoxel; such points are taken as they are."""

    @property
    def pointed(self) -> npt.NDArray[np.int64]:
        """Where the user pointed, shape (n, 3); no voxel at all if only ids are named."""
        where = self.coordinates if self.asked is None else self.asked
        return np.zeros((0, 3), np.int64) if where is None else where

    def at(self, index: int) -> Points:
        """One of the points."""
        part = slice(index, index + 1)
        return Points(self.ids[part], None if self.coordinates is None else self.coordinates[part])

    @classmethod
    def of(cls, ids: npt.ArrayLike = (), coordinates: npt.ArrayLike | None = None) -> Points:
        """From anything array-like; EditRefused if it cannot be ids and voxels. A fraction lies in its voxel."""
        with bad_request():
            where = None if coordinates is None else parse_voxels(coordinates, floor=True)
            return cls(parse_ids(ids, "points"), where)


@dataclass(frozen=True, eq=False)
class MergeRequest:
    """Make one object of two: the one at ``sources`` and the one at ``sinks``."""

    user: str
    sources: Points
    sinks: Points
    offset: tuple[int, int, int] | None = None
    """Voxels around the points within which inactive edges are activated; None = the graph's own setting."""

    @property
    def supervoxels(self) -> UInt64Array:
        """Of both sides."""
        return np.concatenate([self.sources.ids, self.sinks.ids])


@dataclass(frozen=True, eq=False)
class SplitRequest:
    """Cut the object at ``sources`` from what is at ``sinks``, where that is cheapest."""

    user: str
    sources: Points
    sinks: Points
    offset: tuple[int, int, int] | None = None
    """Voxels around the points within which edges may be cut; None = the graph's own setting."""
    path_augmentation: bool = True
    disallow_isolating_cut: bool | None = None
    """Refuse a cut that cuts off nothing but the points of one side; not where supervoxels are split for it. None
    refuses it only where the side has several points on different supervoxels, which is PyChunkedGraph's default."""
    memory: int = DEFAULT_MEMORY
    """Bytes that the voxels of a supervoxel split may take."""
    region_memory: int = DEFAULT_REGION_MEMORY
    """Bytes that a region may take that is enlarged because the cut in a smaller one does not part the points."""
    allow_partial: bool = False
    """Cut in the first region, even where both sides stay one object by a way around it: one bridge at a time."""

    @property
    def supervoxels(self) -> UInt64Array:
        """Of both sides."""
        return np.concatenate([self.sources.ids, self.sinks.ids])


def options_of(request: Any) -> dict[str, Any]:
    """What the log has no columns for, as JSON: with it and the log, a request can be made again."""
    if not isinstance(request, MergeRequest | SplitRequest):
        return {"allow_partial": bool(getattr(request, "allow_partial", False))}
    options: dict[str, Any] = {
        "by_id": [bool(len(points.ids)) for points in (request.sources, request.sinks)],
        "offset": None if request.offset is None else [int(o) for o in request.offset],
    }
    if any(len(points.ids) and points.coordinates is not None for points in (request.sources, request.sinks)):
        # What was named beside voxels; the log's columns hold what was found there.
        options["named"] = [points.ids[:MAX_POINTS].tolist() for points in (request.sources, request.sinks)]
    if isinstance(request, SplitRequest):
        options["path_augmentation"] = request.path_augmentation
        options["disallow_isolating_cut"] = request.disallow_isolating_cut
        options["memory"] = request.memory
        options["region_memory"] = request.region_memory
        options["allow_partial"] = request.allow_partial
    return options


def user_or_default(user: str | None) -> str:
    """The user who edits: by default that of this machine; EditRefused if it is no name."""
    try:
        with bad_request():
            return parse_user(getpass.getuser() if user is None else user)
    except (KeyError, OSError, ImportError) as error:
        raise EditRefused(
            Reason.BAD_REQUEST, "the user of this machine has no name.", remedy="Name the user who edits."
        ) from error


def check_options(request: Any) -> None:
    """Refuse what no log could hold: an author without a name, and options of other types."""
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
    try:
        ((x, y, z),) = parse_voxels(offset, "offset").tolist()
    except (InputError, ValueError):  # no numbers, or not those of one voxel
        x = y = z = -1
    if min(x, y, z) < 0:
        raise EditRefused(
            Reason.BAD_REQUEST,
            f"an offset is three numbers of voxels, 0 or more, not {shown(offset)}.",
            remedy="Leave it out: the graph has one.",
        )
    return x, y, z


def check_count(name: str, count: int) -> None:
    """Refuse more points on one side than an edit of a person has."""
    if count > MAX_POINTS:
        raise EditRefused(
            Reason.TOO_MANY_POINTS,
            f"there are {count:,} {name} points; {MAX_POINTS:,} are possible.",
            remedy="Place fewer; every one must be reached by the cut, so few do.",
        )


def check_points(graph: ChunkedGraph, request: MergeRequest | SplitRequest) -> None:
    """Refuse what no graph could do."""
    for name, points in (("source", request.sources), ("sink", request.sinks)):
        _check_side(graph, name, points)
    both = np.intersect1d(request.sources.ids, request.sinks.ids)
    where = request.sources.coordinates, request.sinks.coordinates
    if len(both) and (isinstance(request, MergeRequest) or where[0] is None or where[1] is None):
        raise EditRefused(
            Reason.SAME_POINT,
            f"supervoxel {int(both[0])} is named as source and as sink.",
            remedy="Place the points on different supervoxels; or name voxels, between which it can be split.",
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
    """Voxels (n, 3) as one value each, to be compared."""
    return np.ascontiguousarray(voxels, "<i8").view("V24").ravel()


def _check_side(graph: ChunkedGraph, name: str, points: Points) -> None:
    ids = points.ids
    if not len(ids):
        raise EditRefused(Reason.NO_POINTS, f"there is no {name} point.", remedy="Place at least one on each side.")
    check_count(name, len(ids))
    if points.coordinates is not None and len(points.coordinates) != len(ids):
        raise EditRefused(
            Reason.BAD_REQUEST,
            f"there are {len(ids)} {name} supervoxels, but {len(points.coordinates)} voxels for them.",
            remedy="Name one for each voxel, or none.",
        )
    if (ids == 0).any():
        raise EditRefused(Reason.BACKGROUND, f"a {name} point is on background.", remedy="Place it on an object.")
    layers = graph.layout.layers(ids)
    if (layers != 1).any():
        wrong = int(ids[layers != 1][0])
        raise EditRefused(
            Reason.NOT_A_SUPERVOXEL,
            f"{name} {wrong} is not a supervoxel but an id of layer {int(layers[layers != 1][0])}.",
            remedy="Edits take supervoxels, or voxels.",
        )
    outside = (graph.layout.coordinates(ids) >= np.asarray(graph.grid.shape(2))).any(axis=1)
    if outside.any():
        raise EditRefused(
            Reason.NOT_FOUND,
            f"{name} {int(ids[outside][0])} is not in graph {graph.graph_id!r}.",
            remedy="Check that the id is of this graph.",
        )


def check_distance(graph: ChunkedGraph, request: MergeRequest) -> None:
    """Refuse to merge what is far apart: a fake edge between far chunks is a slip of the mouse."""
    one, other = (graph.layout.coordinates(points.ids[:1]) for points in (request.sources, request.sinks))
    if np.abs(one - other).max() > MAX_CHUNKS_APART:
        raise EditRefused(
            Reason.TOO_FAR,
            f"the ends of the merge are {int(np.abs(one - other).max())} chunks apart; "
            f"{MAX_CHUNKS_APART} are possible.",
            remedy="Place the points where the objects meet.",
        )


def offset_of(graph: ChunkedGraph, request: MergeRequest | SplitRequest) -> tuple[int, int, int]:
    """The margin around the points, in voxels."""
    offset = request.offset
    return _parse_offset(
        graph.meta.custom_data.get("split_bounding_offset", SPLIT_BOUNDING_OFFSET) if offset is None else offset
    )


def region_of(graph: ChunkedGraph, request: MergeRequest | SplitRequest, margin: npt.ArrayLike | None = None) -> Box:
    """The box within which edges count: around the points, or the chunks of the supervoxels, with the margin.

    Parameters
    ----------
    margin
        Voxels of each axis around the points; default: that of the request.
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
    """What the log names: other software takes all of it for supervoxels."""
    ids = points.ids[:MAX_POINTS]
    all_are = points.coordinates is None or (graph.layout.layers(ids) == 1).all()
    return ids if all_are else np.zeros(0, np.uint64)


def log_cells(graph: ChunkedGraph, request: MergeRequest | SplitRequest) -> list[SetCell]:
    """The request as cells of the operation log; PyChunkedGraph tells merges from splits by them."""
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
    except EditRefused:  # the refusal itself comes later
        cells.append(columns.BOUNDING_BOX_OFFSET.set(np.zeros(3, np.int64)))
    return cells
