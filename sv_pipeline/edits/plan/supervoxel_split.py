"""Plans the split of supervoxels that have points of both sides: their voxels are cut as part of an edit. Reads only.

::

    shared supervoxels --box, chunk locks--> voxels --cut_voxels--> sides --> fragments --> edges of fragments
                                                                                               |
             edges to remove  <--minimum cut on the region with the fragments------------------+

Everything is planned in memory, from voxels of one generation of the fork, under locks of the chunks around. So a cut
that is refused at the very end leaves nothing behind, not even the id of a new supervoxel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import component_labels, find
from sv_pipeline.algorithms.edge_routing import RoutedEdges, route_edges
from sv_pipeline.algorithms.fragments import FragmentPlan, member_mask, plan_fragments
from sv_pipeline.algorithms.local_edges import LocalEdges
from sv_pipeline.algorithms.multicut.cut import SupervoxelSplitRequired
from sv_pipeline.algorithms.routing_checks import require_sound_routing
from sv_pipeline.algorithms.split_geometry import SplitGeometry
from sv_pipeline.algorithms.voxel_blocks import Labels, VoxelBlocks
from sv_pipeline.algorithms.voxel_cut import Doubt, VoxelCut, cut_voxels, find_doubt
from sv_pipeline.edits.plan.hierarchy import provisional_ids
from sv_pipeline.edits.plan.node_cache import NodeCache
from sv_pipeline.edits.plan.planned_region import PlannedRegion, local_edges_of, replace_supervoxels
from sv_pipeline.edits.plan.region import Region, read_region, reread_edges
from sv_pipeline.edits.plan.split_box import SplitBox, split_box
from sv_pipeline.edits.plan.supervoxel_change import SupervoxelChange
from sv_pipeline.edits.requests import Points, SplitRequest
from sv_pipeline.errors import InputError, NotFoundError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edges import replaced
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.helper_threads import Helpers
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.operations.settled import SettledGraph
from sv_pipeline.segmentation.fork.pinned import PinnedVolume
from sv_pipeline.storage.context import give_back_memory, uncached_context
from sv_pipeline.storage.precomputed import Scale
from sv_pipeline.storage.reading import read_box

__all__ = [
    "CutSides",
    "LockChunks",
    "SupervoxelSplit",
    "lock_around",
    "plan_supervoxel_split",
    "without_voxels",
]

IntArray = npt.NDArray[np.int64]
LockChunks = Callable[[UInt64Array, list[str]], None]

LARGE_VOXELS = 1 << 22
"""In boxes of this size and above, freed memory is given back to the system between the steps, which takes some
milliseconds."""


@dataclass(frozen=True, eq=False)
class CutSides:
    """The side of each voxel of a box after a cut."""

    box: Box
    sides: npt.NDArray[np.uint8]
    """1 = source side, 2 = sink side, 0 = neither; shape (x, y, z) of the box."""


@dataclass(frozen=True, eq=False)
class SupervoxelSplit:
    """A planned cut of voxels, and the region as it will be."""

    cut: CutSides
    change: SupervoxelChange | None
    """The replacement of supervoxels; None if the cut runs along supervoxel boundaries and replaces none."""
    planned: PlannedRegion
    """The region with the new supervoxels."""
    sources: UInt64Array
    """Supervoxel of each source point after the split, shape (n,)."""
    sinks: UInt64Array
    """Supervoxel of each sink point after the split, shape (m,)."""
    doubt: Doubt | None = None
    """What is most doubtful about the cut, its place in absolute voxels; None if nothing is known against it."""

    @property
    def voxel_counts(self) -> tuple[int, int]:
        """Number of voxels on the source side and on the sink side."""
        counts = np.bincount(self.cut.sides.ravel(), minlength=3)
        return int(counts[1]), int(counts[2])


def plan_supervoxel_split(
    graph: ChunkedGraph,
    cache: NodeCache,
    lock_chunks: LockChunks,
    request: SplitRequest,
    region: Region,
    required: SupervoxelSplitRequired,
) -> SupervoxelSplit:
    """Plan to split the supervoxels that have points of both sides.

    Parameters
    ----------
    lock_chunks
        Locks layer 2 chunks, given their ids and a name for each. Data that other operations could change are read, or
        confirmed, after it was called.
    region
        The current region around the points.
    required
        The supervoxels that the minimum cut found on both sides.

    Raises
    ------
    EditRefused
        If the split cannot be made; the error carries the reason.
    """
    if refusal := without_voxels(request, required):
        raise refusal
    _require_fork(graph)
    pieces = np.unique(np.concatenate([shared.members for shared in required.shared]))
    where = _split_box(graph, request, pieces)
    if where.box.clip(region.box) != where.box and not region.whole:
        # The supervoxels extend beyond the region: enlarge it so that it holds them.
        region = read_region(graph, cache, np.unique(region.ancestors[:, -1]), _envelope(region.box, where.box))
        pieces = _joined_by_inf(region, pieces)
        where = _split_box(graph, request, pieces)
    with _reading_voxels(graph, where.box) as read:
        chunks = lock_around(graph, lock_chunks, where.chunks)
        region = _reread(graph, cache, region, pieces)
    generation, segmentation = read()
    scale = graph.fork.base.info().volume.scales[0]
    sides = np.zeros(where.box.shape, np.uint8, order="F")
    with Helpers() as pool:  # what is doubtful is found while the consequences are planned
        doubts: list[Future[Doubt | None]] = []
        for shared in required.shared:
            wait(doubts)  # the next cut needs the memory
            own = np.intersect1d(_joined_by_inf(region, shared.members), where.members)
            cut, source, sink = _cut(request, segmentation, where.box, own, scale.resolution)
            sides |= cut.sides
            doubts.append(pool.submit(find_doubt, cut, source, sink, scale.resolution))
            del cut
        if where.box.volume >= LARGE_VOXELS:
            give_back_memory()  # what the cut has needed
        split = _split(graph, cache, request, region, where, chunks, generation, segmentation, sides, scale)
        found = [doubt.shifted(where.box.start) for each in doubts if (doubt := each.result()) is not None]
    return replace(split, doubt=max(found, key=lambda doubt: doubt.stake, default=None))


def _split(
    graph: ChunkedGraph,
    cache: NodeCache,
    request: SplitRequest,
    region: Region,
    where: SplitBox,
    chunks: UInt64Array,
    generation: int,
    segmentation: Labels,
    sides: npt.NDArray[np.uint8],
    scale: Scale,
) -> SupervoxelSplit:
    """Plan what follows from the sides of voxels: the fragments, their edges, and the region with them."""
    edges = local_edges_of(region)
    plan = plan_fragments(segmentation, where.box, where.members, sides, graph.grid)
    plan, geometry, routed = _routed(graph, plan, segmentation, edges, scale.resolution)
    require_sound_routing(plan, edges, routed)
    fragments = provisional_ids(graph.layout, graph.layout.chunk_ids(1, plan.chunks), {})
    new = LocalEdges(
        plan.resolve(routed.edges.pairs, fragments), routed.edges.affinities, routed.edges.areas, routed.edges.active
    )
    links = np.stack([plan.old_ids, fragments], axis=-1)
    planned = replace_supervoxels(graph.layout, region, links, new, routed.retired)
    cache.substitute(links)
    storage = ChunkGrid(scale.bounds, scale.chunk_size)

    def blocks(ids: UInt64Array) -> VoxelBlocks:
        return plan.changed_chunks(segmentation, ids, storage)

    change = SupervoxelChange(fragments, links, plan.sides, new, chunks, generation, blocks) if len(plan) else None
    sources, sinks = (
        _points_after(plan, geometry, points, side, fragments)
        for side, points in ((1, request.sources), (2, request.sinks))
    )
    return SupervoxelSplit(CutSides(where.box, sides), change, planned, sources, sinks)


@contextmanager
def _reading_voxels(graph: ChunkedGraph, box: Box) -> Iterator[Callable[[], tuple[int, Labels]]]:
    """Read voxels while the chunks around them are being locked; provide a function that returns them afterwards.

    They are read from the latest generation of the fork. If another one was committed before the locks were taken, they
    are read again. So they are what they would be if they had been read under the locks.
    """
    if isinstance(graph, SettledGraph):
        yield partial(graph.read_voxels, box)
        return
    with Helpers() as pool:
        reading = [pool.submit(_pinned, graph, box)]
        yield lambda: _confirmed(graph, box, reading)


def _confirmed(graph: ChunkedGraph, box: Box, reading: list[Future[tuple[PinnedVolume, Labels]]]) -> tuple[int, Labels]:
    volume, voxels = reading.pop().result()  # nothing else refers to the voxels then
    if not volume.is_latest():
        del voxels
        volume, voxels = _pinned(graph, box)
    if box.volume >= LARGE_VOXELS:
        give_back_memory()  # of the decoded chunks, before the split needs its own
    return volume.generation, voxels


def _pinned(graph: ChunkedGraph, box: Box) -> tuple[PinnedVolume, Labels]:
    """Return the latest generation of the graph's fork, and its supervoxels in a box, shape (x, y, z)."""
    # Each chunk is read only once, so a cache would only hold all of them a second time.
    volume = PinnedVolume.open(graph.fork, uncached_context())
    return volume, np.asarray(read_box(volume.voxels[box.slices]), np.uint64)


def lock_around(graph: ChunkedGraph, lock_chunks: LockChunks, chunks: IntArray) -> UInt64Array:
    """Lock layer 2 chunks, coordinates of shape (n, 3), and all chunks that touch them; return their ids, ascending."""
    offsets = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    around = np.unique((chunks[:, None] + offsets).reshape(-1, 3), axis=0)
    around = around[((around >= 0) & (around < np.asarray(graph.grid.shape(2)))).all(axis=1)]
    ids = graph.layout.chunk_ids(2, around)
    lock_chunks(ids, [f"chunk {tuple(chunk)}" for chunk in around.tolist()])
    return np.sort(ids)


def without_voxels(request: SplitRequest, required: SupervoxelSplitRequired) -> EditRefused | None:
    """Return the refusal of a request whose points are given without voxels; None if all have voxels."""
    for name, points in (("source", request.sources), ("sink", request.sinks)):
        if points.coordinates is None:
            return EditRefused(
                Reason.SUPERVOXEL_SPLIT_REQUIRED,
                f"{required.message} The {name} points name no voxels between which it could be split.",
                remedy="Give voxels, or move the points of one side to other supervoxels.",
            )
    return None


# -- steps ------------------------------------------------------------------------------------------------------------


def _split_box(graph: ChunkedGraph, request: SplitRequest, pieces: UInt64Array) -> SplitBox:
    points = np.concatenate([_voxels_on(points, pieces) for points in (request.sources, request.sinks)])
    return split_box(graph.grid, graph.layout, pieces, points, request.memory)


def _voxels_on(points: Points, supervoxels: UInt64Array) -> IntArray:
    assert points.coordinates is not None
    return points.coordinates[np.isin(points.ids, supervoxels)]


def _envelope(one: Box, other: Box) -> Box:
    return Box.of(np.minimum(one.start, other.start), np.maximum(one.stop, other.stop))


def _joined_by_inf(region: Region, supervoxels: UInt64Array) -> UInt64Array:
    """Return all supervoxels of a region that edges of affinity inf connect with the given ones."""
    inf = np.isinf(region.edges.affinities) & region.inside
    labels = component_labels(region.supervoxels, region.edges.pairs[inf])
    wanted = labels[find(region.supervoxels, supervoxels)]
    return region.supervoxels[np.isin(labels, wanted)]


def _reread(graph: ChunkedGraph, cache: NodeCache, region: Region, pieces: UInt64Array) -> Region:
    """Return the region with its edges read again, without edges between pieces and replaced supervoxels.

    Edge files still hold edges of replaced supervoxels. Which partners were replaced is read meanwhile; the edges read
    again rarely lead to others.
    """
    expected = _partners(region, pieces)
    with Helpers() as pool:
        looking = pool.submit(replaced, graph, expected)
        region = reread_edges(graph, cache, region)
        gone = expected[looking.result()]
    more = np.setdiff1d(_partners(region, pieces), expected)
    gone = np.concatenate([gone, more[replaced(graph, more)]])
    keep = ~np.isin(region.edges.pairs, gone).any(axis=1)
    edges = region.edges.take(keep)
    return replace(region, edges=edges, layers=region.layers[keep])


def _partners(region: Region, pieces: UInt64Array) -> UInt64Array:
    """Return the supervoxels outside the region to which edges of pieces lead, ascending."""
    pairs = region.edges.pairs
    return np.setdiff1d(pairs[np.isin(pairs, pieces).any(axis=1)], region.supervoxels)


def _cut(
    request: SplitRequest, segmentation: Labels, box: Box, members: UInt64Array, resolution: Sequence[float]
) -> tuple[VoxelCut, IntArray, IntArray]:
    """Cut the voxels of supervoxels that belong together; return the cut, and the points of both sides in the box."""
    source, sink = (_voxels_on(points, members) - box.start for points in (request.sources, request.sinks))
    try:
        cut = cut_voxels(member_mask(segmentation, members), source, sink, resolution)
    except InputError as error:
        # With a volume, points were checked and moved before; without one, ids and voxels may not belong together.
        every = np.concatenate([source, sink])
        inside = ((every >= 0) & (every < segmentation.shape)).all(axis=1)
        there = segmentation[tuple(every[inside].T)]
        if not inside.all() or not np.isin(there, [0, *members.tolist()]).all():
            raise EditRefused(
                Reason.BAD_REQUEST,
                f"a point does not lie on the supervoxel that the request names for it: {error.message}",
                remedy="Name the supervoxels that are at the voxels, or pass the graph's segmentation as the volume.",
            ) from error
        raise EditRefused(Reason.VOXEL_CUT, error.message, remedy=error.remedy) from error
    return cut, source, sink


def _routed(
    graph: ChunkedGraph,
    plan: FragmentPlan,
    segmentation: Labels,
    edges: LocalEdges,
    resolution: Sequence[float],
) -> tuple[FragmentPlan, SplitGeometry, RoutedEdges]:
    """Determine the edges of fragments.

    Where the cut lies on a chunk face, a piece is not divided but gets a new id all the same, because edge files never
    change and its edge of affinity inf across the face can end only with its old id.
    """
    geometry = SplitGeometry(plan, segmentation, resolution, graph.grid, graph.layout)
    routed = route_edges(geometry, edges)
    while len(routed.overridden):  # one pass is enough unless the new ids change the sides of pieces outside the box
        plan = plan.renewing(routed.to_renew(plan), graph.grid)
        geometry = SplitGeometry(plan, segmentation, resolution, graph.grid, graph.layout)
        routed = route_edges(geometry, edges)
    return plan, geometry, routed


def _points_after(
    plan: FragmentPlan, geometry: SplitGeometry, points: Points, side: int, fragments: UInt64Array
) -> UInt64Array:
    """Return the supervoxel of each point after the members are split, shape (n,)."""
    assert points.coordinates is not None
    ids = points.ids.copy()
    on_members = np.isin(ids, plan.members)
    ids[on_members] = plan.resolve(geometry.nodes_near(points.coordinates[on_members], side), fragments)
    return ids


def _require_fork(graph: ChunkedGraph) -> None:
    """Refuse to split supervoxels of a graph that has no fork."""
    try:
        graph.fork.require()
    except NotFoundError as error:
        raise EditRefused(
            Reason.SUPERVOXEL_SPLIT_REQUIRED,
            f"both sides are on one supervoxel, whose voxels cannot be changed: {error.message}",
            remedy="Make the graph's fork first, or move the points of one side to other supervoxels.",
        ) from error
