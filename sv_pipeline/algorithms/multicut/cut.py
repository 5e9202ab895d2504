"""The minimum cut between the points of a split request, on the local graph of supervoxels. Knows no table, no voxels.

::

    local graph --(contract edges of affinity inf)--> representatives
      both sides on one representative?              -> SupervoxelSplitRequired
      no points, not in the region, not connected?   -> Refused
      path augmentation, minimum cut, checks         -> Cut, or Refused

Outcomes and the order of the checks follow PyChunkedGraph, with two exceptions. The shared representative is checked
first, so that an object made of a single supervoxel can be split. And :class:`SupervoxelSplitRequired` always names
representatives with points of both sides, so that there is something to split. Of several minimum cuts, the one with
the fewest supervoxels on the source side is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import components, unique_rows
from sv_pipeline.algorithms.multicut.flow import minimum_cut
from sv_pipeline.algorithms.multicut.graph import (
    BoolArray,
    ContractedGraph,
    IndexArray,
    LocalGraph,
    contract,
)
from sv_pipeline.algorithms.multicut.outcomes import (
    Cut,
    Preview,
    Refusal,
    Refused,
    SharedRepresentative,
    SupervoxelSplitRequired,
)
from sv_pipeline.algorithms.multicut.paths import CrossingPaths, JoinedSides, SeparatedSide, join_sides
from sv_pipeline.ids import UInt64Array

__all__ = [
    "Cut",
    "LocalGraph",
    "Preview",
    "Refusal",
    "Refused",
    "SharedRepresentative",
    "SupervoxelSplitRequired",
    "multicut",
    "preview",
]


def multicut(
    graph: LocalGraph,
    sources: npt.ArrayLike,
    sinks: npt.ArrayLike,
    *,
    path_augmentation: bool = True,
    disallow_isolating_cut: bool | None = True,
    supervoxel_split_allowed: bool = True,
) -> Cut | SupervoxelSplitRequired | Refused:
    """Cut ``sources`` from ``sinks`` at the lowest sum of affinities.

    Parameters
    ----------
    graph
        All active edges of the object inside the region.
    sources, sinks
        Supervoxel ids, in any order, possibly repeated.
    path_augmentation
        Join the points of each side by their shortest paths before cutting. Without it, the minimum cut may separate
        points of one side from each other; such a cut is refused.
    disallow_isolating_cut
        Refuse a cut that separates only the points (and paths) of one side, although more could go with them.
        None refuses it only for a side of several supervoxels, as PyChunkedGraph does: one has no path.
    supervoxel_split_allowed
        Whether a supervoxel with points of both sides may be split; otherwise the request is refused.

    Raises
    ------
    InputError
        If the graph is malformed (see :class:`LocalGraph`); the points never cause it.
    """
    solution = preview(
        graph,
        sources,
        sinks,
        path_augmentation=path_augmentation,
        disallow_isolating_cut=disallow_isolating_cut,
        supervoxel_split_allowed=supervoxel_split_allowed,
    )
    if isinstance(solution, Preview):
        return solution.refused or solution.cut
    return solution


def preview(
    graph: LocalGraph,
    sources: npt.ArrayLike,
    sinks: npt.ArrayLike,
    *,
    path_augmentation: bool = True,
    disallow_isolating_cut: bool | None = True,
    supervoxel_split_allowed: bool = True,
) -> Preview | SupervoxelSplitRequired | Refused:
    """Return the cut that :func:`multicut` would make, and the components that it leaves, even if it is refused.

    The parameters are those of :func:`multicut`. The result is :class:`Refused` only if there is no cut to show.
    """
    source_ids, sink_ids = _ids(sources), _ids(sinks)
    if refused := _check_points(source_ids, sink_ids):
        return refused
    contracted = contract(graph, np.concatenate([source_ids, sink_ids]))
    shared = _shared(contracted, source_ids, sink_ids)
    if shared is not None:
        return shared if supervoxel_split_allowed else _refuse_shared(shared)
    source_vertices = np.unique(contracted.vertices(source_ids))
    sink_vertices = np.unique(contracted.vertices(sink_ids))
    if refused := _check_connections(contracted, source_vertices, sink_vertices):
        return refused
    sides = _join(contracted, source_vertices, sink_vertices, path_augmentation)
    if isinstance(sides, Refused):
        return sides
    return _cut(graph, contracted, sides, disallow_isolating_cut)


@dataclass(frozen=True, eq=False)
class _Sides:
    """What the cut must not separate: helper edges, and the vertices that they and the points cover."""

    sources: IndexArray
    sinks: IndexArray
    helper_edges: IndexArray
    source_labelled: IndexArray
    sink_labelled: IndexArray


# -- before the cut ---------------------------------------------------------------------------------------------------


def _ids(points: npt.ArrayLike) -> UInt64Array:
    return np.unique(np.asarray(points, np.uint64))


def _check_points(sources: UInt64Array, sinks: UInt64Array) -> Refused | None:
    for name, ids in (("source", sources), ("sink", sinks)):
        if len(ids) == 0:
            return _refused(Refusal.NO_POINTS, f"there is no {name} point.", "Place at least one point on each side.")
        if ids[0] == 0:
            said = f"a {name} point is on background: its id is 0."
            return _refused(Refusal.BACKGROUND, said, "Place it on the object.", ids[:1])
    return None


def _shared(graph: ContractedGraph, sources: UInt64Array, sinks: UInt64Array) -> SupervoxelSplitRequired | None:
    source_vertices, sink_vertices = graph.vertices(sources), graph.vertices(sinks)
    shared = np.intersect1d(source_vertices, sink_vertices)
    if len(shared) == 0:
        return None
    return SupervoxelSplitRequired(
        tuple(
            SharedRepresentative(
                int(graph.representatives[vertex]),
                graph.members(vertex),
                sources[source_vertices == vertex],
                sinks[sink_vertices == vertex],
            )
            for vertex in shared
        )
    )


def _refuse_shared(required: SupervoxelSplitRequired) -> Refused:
    ids = np.array([shared.representative for shared in required.shared], np.uint64)
    return _refused(
        Refusal.SHARED_SUPERVOXEL,
        f"source and sink points are on the same supervoxels: {_names(ids)}; this graph cannot split supervoxels.",
        "Move the points of one side to other supervoxels.",
        ids,
    )


def _check_connections(graph: ContractedGraph, sources: IndexArray, sinks: IndexArray) -> Refused | None:
    for name, vertices in (("source", sources), ("sink", sinks)):
        alone = graph.representatives[vertices[~np.isin(vertices, graph.ends)]]
        if len(alone):
            return _refused(
                Refusal.NOT_IN_REGION,
                f"supervoxels of {name} points have no edge in the region that could be cut: {_names(alone)}.",
                "Place the points closer together, or enlarge the region.",
                alone,
            )
    component = graph.component_of_vertex
    for name, vertices in (("source", sources), ("sink", sinks)):
        away = graph.representatives[vertices[component[vertices] != component[vertices[0]]]]
        if len(away):
            return _refused(
                Refusal.SIDE_NOT_CONNECTED,
                f"{name} points are not connected inside the region: {_names(away)} and "
                f"{graph.representatives[vertices[0]]}.",
                "Place them closer together, enlarge the region, or leave some out.",
                away,
            )
    if component[sources[0]] != component[sinks[0]]:
        return _refused(
            Refusal.NOT_CONNECTED,
            "sources and sinks are not connected inside the region: there is nothing to cut.",
            "Place the points nearer to where the two parts meet, or enlarge the region.",
            graph.representatives[np.concatenate([sources, sinks])],
        )
    return None


def _join(graph: ContractedGraph, sources: IndexArray, sinks: IndexArray, augment: bool) -> _Sides | Refused:
    """Connect each side by its shortest paths, or directly if paths are not wanted."""
    if not augment:
        stars = [np.stack([np.full_like(side, side[0]), side], axis=1) for side in (sources, sinks)]
        return _Sides(sources, sinks, np.concatenate(stars), sources, sinks)
    joined = join_sides(graph, sources, sinks)
    if isinstance(joined, JoinedSides):
        return _Sides(
            sources,
            sinks,
            np.concatenate([joined.source_edges, joined.sink_edges]),
            np.union1d(sources, joined.source_edges),
            np.union1d(sinks, joined.sink_edges),
        )
    ids = graph.representatives[joined.vertices]
    if isinstance(joined, SeparatedSide):
        other = "sink" if joined.side == "source" else "source"
        return _refused(
            Refusal.SIDE_NOT_CONNECTED,
            f"{joined.side} points are connected to each other only through supervoxels of {other} points: "
            f"{_names(ids)}.",
            f"Leave out points, or put {joined.side} points on the {other}'s supervoxel as well, so that it is split.",
            ids,
        )
    assert isinstance(joined, CrossingPaths)
    return _refused(
        Refusal.PATHS_CROSS,
        f"the paths that join the sources and those that join the sinks run through the same supervoxels: "
        f"{_names(ids)}.",
        "Place points of both sides on these supervoxels, so that they are split; or fewer points, closer to the cut.",
        ids,
    )


# -- the cut ----------------------------------------------------------------------------------------------------------


def _cut(graph: LocalGraph, contracted: ContractedGraph, sides: _Sides, disallow_isolating_cut: bool | None) -> Preview:
    crossing = _crossing(contracted, sides)
    component = components(contracted.n_vertices, contracted.ends[~crossing])
    # A cut through an edge of affinity 0 costs nothing, but a part without points should stay attached.
    with_points = np.isin(component, component[np.concatenate([sides.sources, sides.sinks])])
    removed = crossing & with_points[contracted.ends].all(axis=1)
    component = components(contracted.n_vertices, contracted.ends[~removed])

    refused = _check_sides(contracted, component, sides)
    if refused is None and disallow_isolating_cut is not False:
        smallest = 1 if disallow_isolating_cut else 2
        refused = _check_isolation(contracted, component, removed, sides, smallest)
    rows = contracted.rows[removed]
    on_source_side = np.isin(component, component[sides.sources])
    on_sink_side = np.isin(component, component[sides.sinks])
    cut = Cut(
        removed_edges=graph.edges[rows][unique_rows(*graph.edges[rows].T)],
        source_side=contracted.supervoxels[on_source_side[contracted.vertex_of_supervoxel]],
        sink_side=contracted.supervoxels[on_sink_side[contracted.vertex_of_supervoxel]],
        rest=_rest(contracted, component, on_source_side | on_sink_side),
        weight=float(graph.affinities[rows].sum(dtype=np.float64)),
    )
    return Preview(cut, refused)


def _crossing(graph: ContractedGraph, sides: _Sides) -> BoolArray:
    """Return which edges belong to the minimum cut, shape (number of edges,)."""
    group = components(graph.n_vertices, sides.helper_edges)
    component = graph.component_of_vertex
    inside = component[graph.ends[:, 0]] == component[sides.sources[0]]
    cut = minimum_cut(
        int(group.max()) + 1,
        group[graph.ends[inside]],
        graph.capacities[inside],
        int(group[sides.sources[0]]),
        int(group[sides.sinks[0]]),
    )
    on_source_side = cut.on_source_side[group]
    return np.asarray(on_source_side[graph.ends[:, 0]] != on_source_side[graph.ends[:, 1]])


def _rest(graph: ContractedGraph, component: IndexArray, has_side: BoolArray) -> tuple[UInt64Array, ...]:
    others = np.flatnonzero(~has_side[graph.vertex_of_supervoxel])
    if len(others) == 0:
        return ()
    label = component[graph.vertex_of_supervoxel[others]]
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order])) + 1
    return tuple(np.split(graph.supervoxels[others[order]], starts))


# -- after the cut ----------------------------------------------------------------------------------------------------


def _check_sides(graph: ContractedGraph, component: IndexArray, sides: _Sides) -> Refused | None:
    for name, vertices in (("source", sides.sources), ("sink", sides.sinks)):
        away = graph.representatives[vertices[component[vertices] != component[vertices[0]]]]
        if len(away):
            return _refused(
                Refusal.SIDE_FALLS_APART,
                f"the cheapest cut would separate {name} points from each other: {_names(away)} from "
                f"{graph.representatives[vertices[0]]}.",
                f"Place more {name} points between them, or fewer points.",
                away,
            )
    return None


def _check_isolation(
    graph: ContractedGraph, component: IndexArray, removed: BoolArray, sides: _Sides, smallest: int
) -> Refused | None:
    """Refuse a cut around the points of a side; sides of fewer than ``smallest`` vertices are not looked at."""
    labelled = np.zeros(graph.n_vertices, bool)
    labelled[sides.source_labelled] = labelled[sides.sink_labelled] = True
    for name, vertices, own in (
        ("source", sides.sources, sides.source_labelled),
        ("sink", sides.sinks, sides.sink_labelled),
    ):
        side = component == component[vertices[0]]
        only_labelled = not np.setdiff1d(np.flatnonzero(side), own).size
        # Both ends of a removed edge belong to components with points; the end off this side is the neighbour.
        neighbours = graph.ends[removed][~side[graph.ends[removed]]]
        if len(own) >= smallest and only_labelled and not labelled[neighbours].all():
            return _refused(
                Refusal.ISOLATING_CUT,
                f"the cheapest cut would separate only the supervoxels of the {name} points: "
                f"{_names(graph.representatives[vertices])}.",
                f"Place {name} points further into their part, or allow isolating cuts "
                "(--allow-isolating-cut; allow_isolating_cut).",
                graph.representatives[side],
            )
    return None


def _refused(reason: Refusal, message: str, remedy: str, supervoxels: UInt64Array | None = None) -> Refused:
    ids = np.empty(0, np.uint64) if supervoxels is None else supervoxels
    return Refused(reason, f"{message} {remedy}", ids)


def _names(ids: UInt64Array, limit: int = 5) -> str:
    names = ", ".join(str(i) for i in ids[:limit].tolist())
    return names if len(ids) <= limit else f"{names} and {len(ids) - limit} more"
