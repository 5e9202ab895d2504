"""Pass B: edge and component file of each chunk, out of the supervoxels of pass A. Owns what an edge is.

A chunk is read with a margin of one voxel. Both files that see a contact between two chunks look at the very same
voxel faces, so they hold the same area and affinity.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import fastremap
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.contacts import affinity_of_area, diagonal_pairs, face_contacts
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest import formats
from sv_pipeline.ingest.formats import ChunkEdges, Edges
from sv_pipeline.ingest.watershed.labels import read_tables
from sv_pipeline.ingest.watershed.plan import Stage, WatershedPlan
from sv_pipeline.segmentation import kv
from sv_pipeline.segmentation.precomputed import open_volume

__all__ = ["edges_of_chunk", "run_edge_batch"]


@dataclass(frozen=True, eq=False)
class _Neighbourhood:
    """A chunk and one voxel around it, its supervoxels numbered 1 .. n."""

    voxels: npt.NDArray[np.integer]
    """Number of the supervoxel of each voxel."""
    ids: UInt64Array
    """Id of supervoxel i, shape (n + 1,); index 0 is background."""
    labels: UInt64Array
    """Source label of supervoxel i."""
    objects: npt.NDArray[np.int64]
    """Number of the object of supervoxel i; 0 is background."""
    inside: npt.NDArray[np.bool_]
    """Whether supervoxel i is in the chunk itself."""
    chunk_box: Box
    """The chunk, relative to ``voxels``."""


def run_edge_batch(plan: WatershedPlan, coordinates: npt.ArrayLike) -> None:
    """Pass B for some chunks, coordinates of shape (n, 3); each may be run again at any time."""
    for coordinate in np.asarray(coordinates, np.int64).reshape(-1, 3):
        edges_of_chunk(plan, coordinate)


def edges_of_chunk(plan: WatershedPlan, coordinate: npt.ArrayLike) -> ChunkEdges:
    """Write the edge and the component file of one chunk, then its done-marker."""
    around = _read_neighbourhood(plan, coordinate)
    edges = _edges(around)
    components = _components(around, edges)
    formats.write_edges(plan.edges_url, coordinate, edges)
    formats.write_components(plan.components_url, coordinate, components)
    counts = {
        "supervoxels": int(np.count_nonzero(around.inside)),
        "in": len(edges.in_),
        "between": len(edges.between),
        "cross": len(edges.cross),
    }
    kv.write_bytes(plan.target, plan.marker(Stage.EDGES, coordinate), json.dumps(counts).encode())
    return edges


def _read_neighbourhood(plan: WatershedPlan, coordinate: npt.ArrayLike) -> _Neighbourhood:
    coord = np.asarray(coordinate, np.int64)
    chunk = plan.grid.box(2, coord)
    box = chunk.grow(1).clip(plan.bounds)
    stored = open_volume(plan.target)[box.slices].read(order="F").result()
    ids, voxels = fastremap.unique(stored, return_inverse=True)
    voxels = voxels.reshape(stored.shape).astype(np.int32)
    if ids[0] != 0:
        ids, voxels = np.concatenate([np.zeros(1, np.uint64), ids]), voxels + 1

    shifts = np.stack(np.unravel_index(np.arange(27), (3, 3, 3)), axis=-1) - 1
    neighbours = coord + shifts
    neighbours = neighbours[((neighbours >= 0) & (neighbours < plan.grid.shape(2))).all(axis=1)]
    labels = np.zeros(len(ids), np.uint64)
    chunk_ids, segments = plan.layout.chunks(ids), plan.layout.segments(ids)
    for neighbour, table in zip(neighbours, read_tables(plan, neighbours), strict=True):
        here = chunk_ids == plan.layout.chunk_ids(1, neighbour)
        labels[here] = table.labels[segments[here] - np.uint64(1)]
    objects = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    inside = chunk_ids == plan.layout.chunk_ids(1, coord)
    return _Neighbourhood(voxels, ids, labels, objects, inside, chunk.shifted(-np.asarray(box.start)))


def _edges(around: _Neighbourhood) -> ChunkEdges:
    contacts = face_contacts(around.voxels)
    diagonal = diagonal_pairs(around.voxels, around.objects)
    known = np.isin(_packed(diagonal, around), _packed(contacts.pairs, around))
    pairs = np.concatenate([contacts.pairs, diagonal[~known]])
    areas = np.concatenate([contacts.areas, np.ones(np.count_nonzero(~known), np.int64)])
    affinities = affinity_of_area(areas)

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


def _packed(pairs: npt.NDArray[np.int64], around: _Neighbourhood) -> npt.NDArray[np.int64]:
    return np.asarray(pairs[:, 0] * len(around.ids) + pairs[:, 1], np.int64)


def _components(around: _Neighbourhood, edges: ChunkEdges) -> list[UInt64Array]:
    """Supervoxels of the chunk and those its edges name, grouped by object."""
    partners = np.concatenate([edges.between.node_ids2, edges.cross.node_ids2])
    named = around.inside | np.isin(around.ids, partners)
    members = np.flatnonzero(named)
    members = members[np.argsort(around.objects[members], kind="stable")]
    starts = np.flatnonzero(np.diff(around.objects[members])) + 1
    return [around.ids[group] for group in np.split(members, starts)] if len(members) else []
