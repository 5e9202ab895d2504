"""The checks of rows and edges, on one part of a graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import SvPipelineError, UnavailableError
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table.interface import Table
from sv_pipeline.verify import atomic_edges, edge_checks, edge_file_checks, gather, ingest_checks, pieces, table_checks
from sv_pipeline.verify.atomic_edges import ActiveEdges, AtomicEdges
from sv_pipeline.verify.boundary import Boundary, Strays
from sv_pipeline.verify.gather import EdgeFolders
from sv_pipeline.verify.part import Division, Part
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.snapshot import NONE, Snapshot

BoolArray = npt.NDArray[np.bool_]

__all__ = ["COUNTERS", "EDGES", "EDGE_CHECKS", "NODES", "ROW_CHECKS", "PartResult", "PartTask", "check_part", "needs"]

EDGE_CHECKS: dict[str, Callable[[Outcome, Snapshot, ActiveEdges], None]] = {
    "skip_connections": edge_checks.check_skip_connections,
    "cross_edges": edge_checks.check_cross_edges,
    "atomic_cross_edges": edge_checks.check_atomic_cross_edges,
    "connectivity": edge_checks.check_connectivity,
    "inf_edges": edge_checks.check_inf_edges,
}
"""Checks that need a sound hierarchy and readable edge files."""
ROW_CHECKS = ("ids", "hierarchy", "edge_files", *EDGE_CHECKS)
OF_SUPERVOXELS = {"atomic_cross_edges", "inf_edges"}
"""Checks that look at edges of supervoxels only."""
NODES, COUNTERS, EDGES = "a node row", "an id counter", "an edge file"


def needs(name: str) -> tuple[str, ...]:
    """Return what a check of rows and edges needs to read, by the names of `PartResult.failures`."""
    return {"ids": (NODES, COUNTERS), "hierarchy": (NODES,)}.get(name, (NODES, EDGES))


@dataclass
class PartResult:
    """What the checks of one part found, and what the part hands to others."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, SvPipelineError] = field(default_factory=dict)
    """Errors of reading, by the name of what cannot be read."""
    boundary: Boundary = field(default_factory=Boundary)
    is_broken: bool = False
    """Whether an edge file or a component file of the part cannot be read."""
    strays: int = 0
    """Number of strays in the boundary."""
    suspects: int = 0
    """Number of suspects in the boundary."""
    seconds: float = 0.0
    pieces: tuple[UInt64Array, UInt64Array] | None = None
    """Links and pieces of `PartTask.roots`; see `pieces.pieces_of`."""

    @property
    def has_errors(self) -> bool:
        """Whether the part found an error, could not be read, or may belong to a root in pieces."""
        found = any(outcome.has_errors for outcome in self.outcomes.values())
        return found or bool(self.failures) or self.is_broken or bool(self.suspects)


@dataclass(frozen=True)
class PartTask:
    """A part to verify, and what it takes."""

    table: Table
    division: Division
    part: Part
    folders: Callable[[], EdgeFolders]
    """Returns where edge and component files are; may raise InputError."""
    names: Collection[str]
    """Names of checks, out of `ROW_CHECKS`."""
    below: Boundary
    """What concerns this part, out of what parts of earlier stages hand up."""
    strays: Strays
    """What leads into this part from others."""
    roots: UInt64Array | None = None
    """Roots whose pieces are returned as well."""

    def owns(self, ids: UInt64Array) -> BoolArray:
        """Whether each id, shape (n,), belongs to the part."""
        return self.division.owns(self.part, ids)

    def outcome(self, name: str) -> Outcome:
        """Return an empty outcome that reports only what belongs to the part."""
        return Outcome(name, owns=None if self.division.is_whole else self.owns)


def check_part(task: PartTask) -> PartResult:
    """Run checks on one part."""
    result = PartResult()
    edges: AtomicEdges | None = None
    below = task.below
    if set(task.names) - {"ids", "hierarchy"}:
        edges = atomic_edges.no_edges()
        if task.part.has_supervoxels:
            with _noted(result, EDGES):
                edges = gather.gather_edges(task.table, task.division, task.part, task.folders(), task.strays.edges)
    nodes: Snapshot | None = None
    with _noted(result, NODES):
        nodes = gather.gather_nodes(task.table, task.division, task.part, below, task.strays, edges)
    if nodes is None:
        return result
    if EDGES in result.failures:
        edges = None
    _check_rows(task, result, nodes, below)
    lifted, suspects = Boundary().edges, Boundary().suspects
    if edges is not None:
        active = _check_edges(task, result, nodes, edges, below)
        if active is not None and not task.division.is_whole:
            lifted = gather.lifted_edges(task.division, task.part, nodes, active)
            suspects = pieces.scattered_roots(nodes, active)
            if task.roots is not None and task.part.has_supervoxels:
                result.pieces = pieces.pieces_of(nodes, active, task.roots)
    if not task.division.is_whole:
        result.boundary = _boundary(task.division, task.part, nodes, edges, lifted, suspects)
        result.strays, result.suspects = len(result.boundary.strays), len(suspects)
    for one in result.outcomes.values():
        one.owns = None
    return result


@contextlib.contextmanager
def _noted(result: PartResult, name: str) -> Iterator[None]:
    """Note an error of reading, unless it only means that a store does not answer."""
    try:
        yield
    except UnavailableError:
        raise
    except SvPipelineError as error:
        result.failures[name] = error


def _check_rows(task: PartTask, result: PartResult, nodes: Snapshot, below: Boundary) -> None:
    division = task.division
    if "ids" in task.names:
        outcome = result.outcomes["ids"] = task.outcome("ids")
        with _noted(result, COUNTERS):
            ranges = division.counter_ranges(task.part)
            counters = ingest_checks.read_counters(task.table, division.layout, ranges)
            table_checks.check_ids(outcome, nodes, division.grid, *counters)
    hierarchy = result.outcomes["hierarchy"] = task.outcome("hierarchy")
    table_checks.check_hierarchy(hierarchy, nodes)
    _decide(hierarchy, nodes, below.undecided)


def _check_edges(
    task: PartTask, result: PartResult, nodes: Snapshot, edges: AtomicEdges, below: Boundary
) -> ActiveEdges | None:
    """Run the checks of edges; returns the active edges unless faults of the part make them uncertain."""
    of_supervoxels = task.part.has_supervoxels
    if "edge_files" in task.names and of_supervoxels:
        outcome = result.outcomes["edge_files"] = task.outcome("edge_files")
        edge_file_checks.check_edge_files(outcome, nodes, edges)
    result.is_broken = bool(task.owns(np.array([file.chunk for file in edges.broken], np.uint64)).any())
    if result.outcomes["hierarchy"].has_errors or edges.broken:
        return None
    active = atomic_edges.activate(nodes, edges) if of_supervoxels else gather.edges_of_boundary(nodes, below.edges)
    for name, check in EDGE_CHECKS.items():
        if name in task.names and (of_supervoxels or name not in OF_SUPERVOXELS):
            outcome = result.outcomes[name] = task.outcome(name)
            check(outcome, nodes, active)
    return active


def _decide(outcome: Outcome, nodes: Snapshot, undecided: UInt64Array) -> None:
    """Report nodes of other parts of which only the part of their root can tell whether they are in use."""
    root = nodes.find(undecided[:, 1])
    in_use = np.asarray((root != NONE) & np.append(nodes.is_reached, False)[root])
    empty = np.sort(undecided[in_use & (undecided[:, 2] == 1), 0])
    if len(empty):
        outcome.error(table_checks.WITHOUT_CHILDREN, int(empty[0]), len(empty), order=(int(empty[0]),))
    orphans = np.sort(undecided[~in_use, 0])
    if len(orphans):
        outcome.warning(table_checks.ORPHAN, int(orphans[0]), len(orphans), order=(int(orphans[0]),))


def _boundary(
    division: Division,
    part: Part,
    nodes: Snapshot,
    edges: AtomicEdges | None,
    lifted: UInt64Array,
    suspects: UInt64Array,
) -> Boundary:
    pointing = np.flatnonzero((nodes.is_leaf | nodes.is_reached) & nodes.is_own & (nodes.parent_index != NONE))
    pairs = np.stack([nodes.ids[pointing], nodes.parents[pointing]], axis=-1)
    pairs = pairs[~division.owns(part, pairs[:, 1])]
    above = division.is_above(part, pairs[:, 1])
    undecided = np.flatnonzero(nodes.is_undecided & nodes.is_own)
    no_children = np.diff(nodes.child_starts)[undecided] == 0
    lone = gather.lonely_edges(division, part, nodes, edges) if edges is not None else atomic_edges.no_edges()
    return Boundary(
        raised=pairs[above],
        edges=lifted,
        undecided=np.stack(
            [nodes.ids[undecided], nodes.ids[nodes.tops[undecided]], no_children.astype(np.uint64)], axis=-1
        ),
        suspects=suspects,
        strays=Strays(pairs[~above], lone),
    )
