"""Random chunked graphs for tests: supervoxels and edges on a grid of chunks, as files that an ingest reads."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import networkx
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.config import DatasetConfig, parse_config
from sv_pipeline.graph.chunked_graph import ChunkedGraph, create_chunked_graph
from sv_pipeline.graph.edge_files import ChunkEdges, write_components, write_edges
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline.ingest.atomic import build_atomic_chunks
from sv_pipeline.ingest.parents import build_parent_chunks
from sv_pipeline.storage.precomputed import create_volume
from sv_pipeline.table.interface import Table

CHUNK_SIZE = (8, 8, 8)
VOXEL_OFFSET = (16, 8, 24)


@dataclass(frozen=True)
class World:
    """Supervoxels and atomic edges, and which of them are active."""

    layout: IdLayout
    grid: ChunkGrid
    supervoxels: npt.NDArray[np.uint64]
    edges: list[tuple[int, int, str]]
    """(a, b, kind): 'in', 'between' or 'cross'; each pair once."""
    objects: dict[int, int]
    """Supervoxel -> object; those that are missing are in no component."""

    @property
    def active(self) -> list[tuple[int, int]]:
        """Edges that join supervoxels of one object, and all pieces of one label."""
        return [
            (a, b)
            for a, b, kind in self.edges
            if kind == "cross" or (a in self.objects and self.objects.get(a) == self.objects.get(b))
        ]


def random_world(
    shape: tuple[int, int, int],
    seed: int,
    *,
    per_chunk: float = 3,
    edges_per_supervoxel: float = 2,
    objects: float = 0.3,
    cross: float = 0.3,
) -> World:
    """Supervoxels strewn over chunks, joined inside their chunk and with the chunks that touch it.

    Parameters
    ----------
    per_chunk
        Mean number of supervoxels of a chunk; some chunks have none.
    objects
        Number of objects per supervoxel: the lower, the larger the components.
    cross
        Which part of the edges between chunks joins pieces of one label.
    """
    rng = np.random.default_rng(seed)
    bounds = Box.of(VOXEL_OFFSET, np.asarray(VOXEL_OFFSET) + np.asarray(shape) * CHUNK_SIZE - 3)
    grid = ChunkGrid(bounds, CHUNK_SIZE)
    assert grid.shape(2) == shape
    layout = IdLayout(grid.n_layers)
    coordinates = grid.coordinates(2)
    counts = rng.poisson(per_chunk, len(coordinates))
    homes = np.repeat(np.arange(len(coordinates)), counts)
    segments = np.concatenate([np.sort(rng.choice(200 + 4 * n, n, replace=False)) + 1 for n in counts])
    supervoxels = layout.node_ids(layout.chunk_ids(1, coordinates[homes]), segments.astype(np.uint64))
    n = len(supervoxels)
    if n < 2:
        return World(layout, grid, supervoxels, [], {})
    oversampling = 12 * max(1, len(coordinates) // 27)
    pairs = rng.integers(0, n, (int(n * edges_per_supervoxel * oversampling), 2))
    near = np.abs(coordinates[homes[pairs[:, 0]]] - coordinates[homes[pairs[:, 1]]]).max(axis=1) <= 1
    pairs = np.unique(np.sort(pairs[near & (pairs[:, 0] != pairs[:, 1])], axis=1), axis=0)
    pairs = pairs[rng.permutation(len(pairs))][: int(n * edges_per_supervoxel)]
    labels = rng.integers(0, max(1, int(n * objects)), n)
    joined = networkx.Graph()
    edges = []
    for i, j in pairs.tolist():
        a, b = int(supervoxels[i]), int(supervoxels[j])
        kind = "in" if homes[i] == homes[j] else ("cross" if rng.random() < cross else "between")
        edges.append((a, b, kind))
        if kind == "cross":
            joined.add_edge(int(labels[i]), int(labels[j]))
    merged = {label: min(piece) for piece in networkx.connected_components(joined) for label in piece}
    named = rng.random(n) < 0.9
    in_cross = {end for a, b, kind in edges if kind == "cross" for end in (a, b)}
    objects_of = {
        int(sv): merged.get(int(label), int(label))
        for sv, label, is_named in zip(supervoxels, labels, named, strict=True)
        if is_named or int(sv) in in_cross
    }
    return World(layout, grid, supervoxels, edges, objects_of)


def write_world(world: World, folder: Path) -> DatasetConfig:
    """Write the info, edge and component files; the configuration that names them. The voxels are all background."""
    ws = folder / "ws"
    create_volume(
        str(ws),
        data_type="uint64",
        resolution=(4, 4, 40),
        voxel_offset=world.grid.bounds.start,
        size=world.grid.bounds.shape,
        chunk_size=CHUNK_SIZE,
        encoding="raw",
        block_size=(8, 8, 8),
    )
    parts: dict[tuple[int, ...], dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    members: dict[tuple[int, ...], set[int]] = defaultdict(set)
    coordinates = map(tuple, world.layout.coordinates(world.supervoxels).tolist())
    home = dict(zip(world.supervoxels.tolist(), coordinates, strict=True))
    for sv, coordinate in home.items():
        members[coordinate].add(sv)
    for a, b, kind in world.edges:
        parts[home[a]][kind].append((a, b))
        if kind != "in":
            parts[home[b]][kind].append((b, a))
            members[home[a]].add(b)
            members[home[b]].add(a)
    for coordinate, kinds in parts.items():
        chunk_edges = ChunkEdges(*(_edges(kinds[kind], kind) for kind in ("in", "between", "cross")))
        write_edges(f"{ws}/edges", coordinate, chunk_edges)
    for coordinate, inside in members.items():
        groups = defaultdict(list)
        for sv in sorted(inside):
            # A supervoxel that no edge and no component names would be found in the voxels only.
            groups[world.objects.get(sv, -sv)].append(sv)
        named = [ids for label, ids in groups.items() if label >= 0 or len(ids) == 1]
        write_components(f"{ws}/components", coordinate, named)
    return parse_config(
        {
            "graph_id": "world",
            "data_source": {"WATERSHED": str(ws)},
            "graph_config": {"CHUNK_SIZE": CHUNK_SIZE},
            "ingest": {"read_isolated_supervoxels": False},
        }
    )


def _edges(pairs: list[tuple[int, int]], kind: str) -> Edges:
    array = np.array(pairs, np.uint64).reshape(-1, 2)
    affinity = np.inf if kind == "cross" else 0.5
    n = len(array)
    return Edges(array[:, 0], array[:, 1], np.full(n, affinity, np.float32), np.ones(n, np.uint64))


def build_all(graph: ChunkedGraph, config: DatasetConfig, *, batch: int = 1000) -> None:
    """All layers, in batches of so many chunks."""
    for layer in range(2, graph.n_layers + 1):
        coordinates = graph.grid.coordinates(layer)
        for first in range(0, len(coordinates), batch):
            build(graph, config, layer, coordinates[first : first + batch])


def build(graph: ChunkedGraph, config: DatasetConfig, layer: int, coordinates: npt.ArrayLike, **options: bool):  # type: ignore[no-untyped-def]
    """One batch of any layer."""
    if layer == 2:
        return build_atomic_chunks(graph, coordinates, config, **options)
    return build_parent_chunks(graph, layer, coordinates, **options)


def ingest(world: World, table: Table, folder: Path, *, batch: int = 1000) -> tuple[ChunkedGraph, DatasetConfig]:
    """A complete graph of a world."""
    config = write_world(world, folder)
    graph = create_chunked_graph(table, config)
    build_all(graph, config, batch=batch)
    return graph, config
