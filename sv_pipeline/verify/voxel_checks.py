"""Checks of the voxels of mip 0 against the leaves of the graph, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import cc3d
import fastremap
import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import UInt64Array
from sv_pipeline.verify.blocks import ALL, Share, chunk_groups, in_order, read_box
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.snapshot import NONE, Snapshot

__all__ = ["check_groups", "check_voxels"]

IntArray = npt.NDArray[np.int64]


WITHOUT_NODE = (
    "a supervoxel of the watershed has no node, since other software makes none for supervoxels without an edge: "
    "'sv-pipeline mend' makes it."
)


@dataclass
class _Faults:
    """Faults of one group of chunks: message -> (first place, count)."""

    chunks: int = 0
    damaged: int = 0
    """Number of chunks with a fault that is an error."""
    errors: int = 0
    found: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, message: str, place: str, count: int) -> None:
        first, known = self.found.get(message, (place, 0))
        self.found[message] = (first, known + count)
        self.errors += message != WITHOUT_NODE


def check_voxels(
    outcome: Outcome,
    nodes_of: Callable[[IntArray], Snapshot],
    grid: ChunkGrid,
    volume: ts.TensorStore,
    *,
    sample: int | None = None,
    seed: int = 0,
    workers: int = 1,
    advance: Callable[[int, int], None] | None = None,
    source: ts.TensorStore | None = None,
    share: Share = ALL,
) -> None:
    """Check that the ids in the voxels are the live leaves, each one 26-connected piece inside its own chunk.

    Parameters
    ----------
    outcome
        Receives the findings.
    nodes_of
        Returns node rows for chunk coordinates of shape (n, 3): at least those of all supervoxels in these chunks.
    grid
        The graph's chunk grid.
    volume
        Voxels of mip 0, axes (x, y, z), absolute coordinates.
    sample, seed
        The same as for :func:`~sv_pipeline.verify.blocks.chunk_groups`.
    workers
        Number of threads that read and check voxels.
    advance
        Called with (chunks done, all chunks).
    source
        The watershed's voxels, if other software has built the graph. It makes no nodes for supervoxels without an
        edge, which are recognised because the watershed has them at the same voxels.
    share
        The share of the chunks that is checked.
    """
    outcome.population = grid.count(2)
    total = min(grid.count(2), sample or grid.count(2))
    groups = chunk_groups(grid, sample, seed, share)
    check_groups(outcome, nodes_of, grid, volume, groups, workers=workers, total=total, advance=advance, source=source)


def check_groups(
    outcome: Outcome,
    nodes_of: Callable[[IntArray], Snapshot],
    grid: ChunkGrid,
    volume: ts.TensorStore,
    groups: Iterable[IntArray],
    *,
    workers: int = 1,
    total: int = 0,
    advance: Callable[[int, int], None] | None = None,
    source: ts.TensorStore | None = None,
) -> None:
    """Do the same as `check_voxels` for given groups of neighbouring chunks: chunk coordinates of shape (n, 3)."""
    for faults in in_order(lambda group: _check_group(nodes_of(group), grid, volume, group, source), groups, workers):
        outcome.checked += faults.chunks
        outcome.damaged += faults.damaged
        for message, (place, count) in faults.found.items():
            (outcome.foreign if message == WITHOUT_NODE else outcome.error)(message, place, count)
        if advance is not None:
            advance(outcome.checked, total)


def _check_group(
    nodes: Snapshot, grid: ChunkGrid, volume: ts.TensorStore, group: IntArray, source: ts.TensorStore | None
) -> _Faults:
    boxes = [grid.box(2, coordinate) for coordinate in group]
    around = Box.of(
        np.min([box.start for box in boxes], axis=0),
        np.max([box.stop for box in boxes], axis=0),
    )
    block = read_box(volume, around, "mip 0")
    # Whether each leaf is under a current root is left to the hierarchy check.
    leaves = nodes.leaf_ids
    faults = _Faults()
    for coordinate, box in zip(group, boxes, strict=True):
        labels = block[box.shifted(np.negative(around.start)).slices]
        chunk = int(nodes.layout.chunk_ids(1, coordinate))
        first = np.searchsorted(leaves, np.uint64(chunk), "left")
        stop = np.searchsorted(leaves, np.uint64(chunk | nodes.layout.max_segment(1)), "right")
        before = faults.errors
        _check_chunk(faults, nodes, leaves[first:stop], np.asfortranarray(labels), box, coordinate, source)
        faults.chunks += 1
        faults.damaged += faults.errors > before
    return faults


def _check_chunk(
    faults: _Faults,
    nodes: Snapshot,
    leaves: UInt64Array,
    labels: UInt64Array,
    box: Box,
    coordinate: IntArray,
    source: ts.TensorStore | None,
) -> None:
    present = fastremap.unique(labels)
    present = present[present != 0]
    missing = np.setdiff1d(leaves, present, assume_unique=True)
    if len(missing):
        where = f"supervoxel {int(missing[0])} (chunk {_text(coordinate)})"
        faults.add("a leaf of the graph has no voxel in its chunk.", where, len(missing))
    strange = np.setdiff1d(present, leaves, assume_unique=True)
    if len(strange):
        chunk = nodes.layout.chunk_ids(1, coordinate)
        strange = _without_given(faults, nodes, strange, labels, box, chunk, source)
        _name_strange(faults, nodes, strange, labels, box, coordinate)
    pieces, n_pieces = cc3d.connected_components(labels, connectivity=26, return_N=True)
    if n_pieces != len(present):
        _name_pieces(faults, labels, pieces, box)


def _without_given(
    faults: _Faults,
    nodes: Snapshot,
    strange: UInt64Array,
    labels: UInt64Array,
    box: Box,
    chunk: UInt64Array,
    source: ts.TensorStore | None,
) -> UInt64Array:
    """Report supervoxels of the watershed for which other software made no node, and return the other ids."""
    unknown = strange[(nodes.find(strange) == NONE) & (nodes.layout.chunks(strange) == chunk)]
    if source is None or not len(unknown):
        return strange
    distinct, first = np.unique(labels, return_index=True)
    places = np.stack(np.unravel_index(first[np.searchsorted(distinct, unknown)], labels.shape), axis=-1) + box.start
    x, y, z = places.T
    given = unknown[np.asarray(source.vindex[x, y, z].read().result(), np.uint64) == unknown]
    if len(given):
        at = places[unknown == given[0]][0]
        faults.add(WITHOUT_NODE, f"voxel {_text(at)} (id {int(given[0])})", len(given))
    return np.setdiff1d(strange, given, assume_unique=True)


def _name_strange(
    faults: _Faults, nodes: Snapshot, strange: UInt64Array, labels: UInt64Array, box: Box, coordinate: IntArray
) -> None:
    foreign = nodes.layout.chunks(strange) != nodes.layout.chunk_ids(1, coordinate)
    at = nodes.find(strange)
    known = ~foreign & (at != NONE)
    retired = known.copy()
    retired[known] = nodes.retired[at[known]]  # indexed by mask, since a table may have no rows at all
    kinds = [
        (retired, "a voxel has the id of a supervoxel that was split (`new_ids`); its split did not reach the voxels."),
        (foreign, "a voxel has an id that is not of its chunk; only supervoxels of the chunk may be in it."),
        (
            ~foreign & ~known,
            "a voxel has an id that the graph does not have; its chunk was not ingested to the end (or without edges).",
        ),
        (known & ~retired, "a voxel has the id of a supervoxel without a parent: recover the edit that made it."),
    ]
    for which, message in kinds:
        if which.any():
            voxel = np.argwhere(labels == strange[which][0])[0] + box.start
            faults.add(message, f"voxel {_text(voxel)} (id {int(strange[which][0])})", int(which.sum()))


def _name_pieces(faults: _Faults, labels: UInt64Array, pieces: npt.NDArray[Any], box: Box) -> None:
    """Report the first supervoxel that has several pieces, at the first voxel of its second piece."""
    flat_pieces, flat_labels = pieces.ravel(order="F"), labels.ravel(order="F")
    number, first = np.unique(flat_pieces, return_index=True)
    first = np.sort(first[number != 0])
    ids = flat_labels[first]
    order = np.argsort(ids, kind="stable")
    again = order[1:][np.diff(ids[order]) == 0]
    if len(again):
        voxel = np.array(np.unravel_index(first[again.min()], labels.shape, order="F")) + box.start
        faults.add(
            "a supervoxel has several pieces inside its chunk; it must be one 26-connected piece.",
            f"voxel {_text(voxel)} (id {int(ids[again.min()])})",
            len(np.unique(ids[again])),
        )


def _text(coordinate: npt.ArrayLike) -> str:
    return ",".join(str(int(c)) for c in np.asarray(coordinate))
