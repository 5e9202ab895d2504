"""Checks that edge and component files can be read, belong to this graph, and are symmetric.

This module does not look at the cross edges of nodes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms import edge_rules
from sv_pipeline.verify.atomic_edges import CROSS, EDITED, IN, AtomicEdges
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.snapshot import NONE, Snapshot

__all__ = ["UNSYMMETRIC", "check_edge_files"]

BoolArray = npt.NDArray[np.bool_]

UNSYMMETRIC = (
    "the neighbour chunk's file does not hold the reverse of this edge with the same affinity and area: "
    "write both files again."
)
"""Not reported while any file is broken."""


def check_edge_files(outcome: Outcome, nodes: Snapshot, edges: AtomicEdges) -> None:
    """Check that edge files can be read, name supervoxels of the graph, and agree with those of neighbour chunks."""
    outcome.checked = int((outcome.mine(edges.files) & (edges.kinds != EDITED)).sum())
    for file in edges.broken:
        if outcome.mine(np.array([file.chunk], np.uint64)).all():
            outcome.error(file.message, file.name, order=(0, file.chunk))
    ends = nodes.find(edges.pairs)
    unknown = (ends == NONE).any(axis=-1) | (nodes.layout.layers(edges.pairs) != 1).any(axis=-1)
    _report_edges(
        outcome,
        edges,
        unknown,
        "an edge names a supervoxel that the graph does not have: the files belong to another watershed, "
        "or the chunk was not ingested to the end.",
    )
    stored = edges.kinds != EDITED
    first_here, second_here = (nodes.layout.chunks(edges.pairs) == edges.files[:, None]).T
    misplaced = stored & ~(first_here & (second_here == (edges.kinds == IN)))
    _report_edges(
        outcome,
        edges,
        misplaced,
        "an edge is in the file of the wrong chunk, or listed as the wrong kind "
        "(in: both ends in the chunk; between, cross: the first only): write the file again.",
    )
    # Only merges make edit edges of affinity inf; such an edge needs no area.
    may_be_inf = (edges.kinds == CROSS) | ((edges.kinds == EDITED) & (edges.affinities == np.inf))
    for fault in edge_rules.edge_faults(edges.pairs, edges.affinities, edges.areas, may_be_inf):
        _report_edges(outcome, edges, fault.edges, f"{fault.text}: write the file again.")
    _check_repeats(outcome, edges)
    _check_symmetry(outcome, edges, broken={file.name for file in edges.broken})


def _report_edges(outcome: Outcome, edges: AtomicEdges, faulty: BoolArray, message: str) -> None:
    at = np.flatnonzero(faulty & outcome.mine(edges.files))
    if len(at):
        at = at[np.lexsort((edges.files[at], edges.kinds[at] == EDITED))]
        a, b = (int(v) for v in edges.pairs[at[0]])
        order = (int(edges.kinds[at[0]] == EDITED), int(edges.files[at[0]]))
        outcome.error(message, f"edge {a} - {b}", len(at), order=order)


def _check_repeats(outcome: Outcome, edges: AtomicEdges) -> None:
    at = np.flatnonzero(edges.kinds != EDITED)
    again = np.zeros(len(edges), np.bool_)
    again[at] = edge_rules.repeated(edges.pairs[at], edges.files[at])
    _report_edges(outcome, edges, again, "an edge is listed more than once in one file: write the file again.")


def _check_symmetry(outcome: Outcome, edges: AtomicEdges, broken: set[str]) -> None:
    """Check that each between and cross edge is in both chunks' files, with the same affinity and area."""
    if broken:
        return
    at = np.flatnonzero((edges.kinds != IN) & (edges.kinds != EDITED))
    there, back = edges.pairs[at], edges.pairs[at][:, ::-1]
    values = (edges.kinds[at], edges.affinities[at], edges.areas[at])
    forward = _records(there, *values)
    lonely = np.zeros(len(edges), np.bool_)
    lonely[at] = ~np.isin(_records(back, *values), forward)
    _report_edges(
        outcome,
        edges,
        lonely,
        UNSYMMETRIC,
    )


def _records(pairs: npt.NDArray[np.uint64], *values: npt.NDArray[np.generic]) -> npt.NDArray[np.void]:
    """One comparable value for each edge together with its attributes, shape (n,)."""
    columns = [pairs[:, 0], pairs[:, 1], *values]
    raw = [np.ascontiguousarray(column).view(np.uint8).reshape(len(pairs), column.itemsize) for column in columns]
    rows = np.ascontiguousarray(np.concatenate(raw, axis=-1))
    return rows.view(np.dtype((np.void, rows.shape[1]))).ravel()
