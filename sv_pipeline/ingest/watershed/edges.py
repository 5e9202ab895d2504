"""Pass B: the edge and component file of each chunk, made from the supervoxels of pass A. Defines what an edge is.

A chunk is read with a margin of one voxel. For a contact between two chunks, both chunks' files are computed from the
same voxel faces, so they hold the same area and affinity.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import fastremap
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.contacts import affinity_of_contact, diagonal_pairs, face_contacts
from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.graph import edge_files as formats
from sv_pipeline.graph.edge_files import ChunkEdges
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.watershed.companions import read_affinities
from sv_pipeline.ingest.watershed.edge_counts import read_counts, write_range_counts
from sv_pipeline.ingest.watershed.labels import read_tables
from sv_pipeline.ingest.watershed.objects import objects_of
from sv_pipeline.ingest.watershed.plan import WatershedPass, WatershedPlan, chunk_details
from sv_pipeline.storage import kv
from sv_pipeline.storage.error_dump import dump_errors
from sv_pipeline.storage.precomputed import open_volume
from sv_pipeline.storage.retry import retry_transport

__all__ = ["edges_of_chunk", "run_edge_batch"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Neighbourhood:
    """A chunk with a margin of one voxel, its supervoxels numbered 1 .. n."""

    box: Box
    voxels: npt.NDArray[np.integer]
    """Number of the supervoxel of each voxel, axes (x, y, z)."""
    ids: UInt64Array
    """Id of supervoxel i, shape (n + 1,); index 0 is background."""
    labels: UInt64Array
    """Source label of supervoxel i, shape (n + 1,)."""
    surfaces: UInt64Array
    """Number of voxel faces of the surface of supervoxel i, shape (n + 1,)."""
    objects: IntArray
    """Number of the object of supervoxel i, shape (n + 1,); 0 is background."""
    inside: npt.NDArray[np.bool_]
    """Whether supervoxel i is in the chunk itself, shape (n + 1,)."""
    chunk_box: Box
    """Box of the chunk, relative to ``voxels``."""


def run_edge_batch(
    plan: WatershedPlan, coordinates: npt.ArrayLike, advance: Callable[[int], None] = lambda _: None
) -> None:
    """Run pass B for some chunks, coordinates of shape (n, 3), that are not done. It may be repeated at any time.

    ``advance`` is called with 1 whenever a chunk is done.
    """
    chunks = np.asarray(coordinates, np.int64).reshape(-1, 3)
    total: Counter[str] = Counter()
    for coordinate in chunks:
        # A batch that is repeated after a crash goes on with the chunk at which it was killed.
        counts = read_counts(plan, coordinate)
        if counts is None:
            with dump_errors("edges_" + "_".join(map(str, coordinate)), partial(chunk_details, plan, coordinate)):
                counts = _run_chunk(plan, coordinate)[1]
        total.update(counts)
        advance(1)
    write_range_counts(plan, chunks, dict(total))


def edges_of_chunk(plan: WatershedPlan, coordinate: npt.ArrayLike) -> ChunkEdges:
    """Write the edge and the component file of one chunk, then its done-marker."""
    return _run_chunk(plan, coordinate)[0]


def _run_chunk(plan: WatershedPlan, coordinate: npt.ArrayLike) -> tuple[ChunkEdges, dict[str, int]]:
    around = _read_neighbourhood(plan, coordinate)
    edges = _edges(plan, around)
    components = _components(around, edges)
    formats.write_edges(plan.edges_url, coordinate, edges)
    formats.write_components(plan.components_url, coordinate, components)
    counts = {
        "supervoxels": int(np.count_nonzero(around.inside)),
        "in": len(edges.in_),
        "between": len(edges.between),
        "cross": len(edges.cross),
    }
    kv.write_bytes(plan.target, plan.marker(WatershedPass.EDGES, coordinate), json.dumps(counts).encode())
    return edges, counts


def _read_neighbourhood(plan: WatershedPlan, coordinate: npt.ArrayLike) -> _Neighbourhood:
    coord = np.asarray(coordinate, np.int64)
    chunk = plan.grid.box(2, coord)
    box = chunk.grow(1).clip(plan.bounds)
    view = open_volume(plan.target)[box.slices]
    stored = retry_transport(lambda: view.read().result(), what=f"reading {box} of {plan.target}")
    ids, voxels = fastremap.unique(stored, return_inverse=True)
    voxels = voxels.reshape(stored.shape).astype(np.int32)
    if ids[0] != 0:
        ids, voxels = np.concatenate([np.zeros(1, np.uint64), ids]), voxels + 1

    shifts = np.stack(np.unravel_index(np.arange(27), (3, 3, 3)), axis=-1) - 1
    neighbours = coord + shifts
    neighbours = neighbours[((neighbours >= 0) & (neighbours < plan.grid.shape(2))).all(axis=1)]
    labels, surfaces = np.zeros((2, len(ids)), np.uint64)
    chunk_ids, segments = plan.layout.chunks(ids), plan.layout.segments(ids)
    for neighbour, table in zip(neighbours, read_tables(plan, neighbours), strict=True):
        here = chunk_ids == plan.layout.chunk_ids(1, neighbour)
        labels[here] = table.labels[segments[here] - np.uint64(1)]
        surfaces[here] = table.surfaces[segments[here] - np.uint64(1)]
    inside = chunk_ids == plan.layout.chunk_ids(1, coord)
    objects = _number_objects(labels, objects_of(plan, labels))
    chunk_box = chunk.shifted(-np.asarray(box.start))
    return _Neighbourhood(box, voxels, ids, labels, surfaces, objects, inside, chunk_box)


def _number_objects(labels: UInt64Array, objects: UInt64Array) -> IntArray:
    """Number objects 0 .. n. A label without an object becomes one of its own, even if an object has its number."""
    alone = objects == 0
    _, named = np.unique(np.where(alone, np.uint64(0), objects), return_inverse=True)
    _, single = np.unique(np.where(alone, labels, np.uint64(0)), return_inverse=True)
    numbers = np.where(alone, single, named + len(labels))
    return np.where(labels == 0, 0, np.unique(numbers, return_inverse=True)[1] + 1)


def _edges(plan: WatershedPlan, around: _Neighbourhood) -> ChunkEdges:
    volume = plan.companions.affinity_volume
    contacts = face_contacts(around.voxels, None if volume is None else read_affinities(volume, around.box))
    diagonal = _diagonal_only(around, contacts.pairs)
    pairs = np.concatenate([contacts.pairs, diagonal])
    areas = np.concatenate([contacts.areas, np.ones(len(diagonal), np.int64)])
    affinities = _affinities(plan, around, pairs, areas, contacts.affinities)

    own = around.inside[pairs]
    pairs = np.where((own[:, 1] & ~own[:, 0])[:, None], pairs[:, ::-1], pairs)
    one_label = around.labels[pairs[:, 0]] == around.labels[pairs[:, 1]]
    is_in, is_outgoing = own.all(axis=1), own.any(axis=1) & ~own.all(axis=1)

    def select(mask: npt.NDArray[np.bool_], *, cross: bool = False) -> Edges:
        ids = around.ids[pairs[mask]]
        order = np.lexsort((ids[:, 1], ids[:, 0]))
        ids = ids[order]
        if cross:
            weights, faces = np.full(len(ids), np.inf, np.float32), np.ones(len(ids), np.uint64)
        else:
            weights, faces = affinities[mask][order], areas[mask][order].astype(np.uint64)
        return Edges(ids[:, 0].copy(), ids[:, 1].copy(), weights, faces)

    return ChunkEdges(
        in_=select(is_in), between=select(is_outgoing & ~one_label), cross=select(is_outgoing & one_label, cross=True)
    )


def _affinities(
    plan: WatershedPlan,
    around: _Neighbourhood,
    pairs: IntArray,
    areas: IntArray,
    measured: npt.NDArray[np.float32] | None,
) -> npt.NDArray[np.float32]:
    """Affinity of each pair: from the table, else measured (the first pairs, which share faces), else by contact."""
    first, second = pairs.T
    table = plan.companions.edge_table
    if table is not None:
        return table.of(around.labels[first], around.labels[second])
    affinities = affinity_of_contact(areas, around.surfaces[first], around.surfaces[second])
    if measured is not None:
        affinities[: len(measured)] = measured
    return affinities


def _diagonal_only(around: _Neighbourhood, face_pairs: IntArray) -> IntArray:
    """Pairs of supervoxels of one object that touch, but share no face."""
    shape = around.voxels.shape
    if len(np.unique(around.objects)) == len(np.unique(around.labels)):
        # Every object is one label, and pieces of one label do not touch inside a chunk, so only the borders matter.
        views = []
        for axis, (start, stop) in enumerate(zip(around.chunk_box.start, around.chunk_box.stop, strict=True)):
            borders = [(start - 1, start + 1)] * (start > 0) + [(stop - 1, stop + 1)] * (stop < shape[axis])
            views += [tuple(slice(*b) if i == axis else slice(None) for i in range(3)) for b in borders]
    else:
        views = [(slice(None),) * 3]
    n = len(around.ids)
    found = [diagonal_pairs(around.voxels[view], around.objects) @ [n, 1] for view in views]
    packed = np.unique(np.concatenate([*found, np.empty(0, np.int64)]))
    return np.stack(np.divmod(np.setdiff1d(packed, face_pairs @ [n, 1], assume_unique=True), n), axis=-1)


def _components(around: _Neighbourhood, edges: ChunkEdges) -> list[UInt64Array]:
    """The supervoxels of the chunk and those that its edges name, grouped by object."""
    partners = np.concatenate([edges.between.node_ids2, edges.cross.node_ids2])
    named = around.inside | np.isin(around.ids, partners)
    members = np.flatnonzero(named)
    members = members[np.argsort(around.objects[members], kind="stable")]
    starts = np.flatnonzero(np.diff(around.objects[members])) + 1
    return [around.ids[group] for group in np.split(members, starts)] if len(members) else []
