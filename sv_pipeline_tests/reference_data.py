"""A watershed volume with its files, made in the plainest way out of labels; and a whole graph on top of it, for tests.

Independent of the pipeline's own watershed and ingest code, so that both can be compared with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cc3d
import networkx
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.config import DatasetConfig, parse_config
from sv_pipeline.graph import edge_files as formats
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.populate import finish_populate, populate_plan, populate_task
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv
from sv_pipeline.storage.precomputed import create_volume, open_volume
from sv_pipeline.table import meta
from sv_pipeline.table.interface import Table
from sv_pipeline_tests.reference import ReferenceHierarchy, expected_hierarchy, write_reference_graph

__all__ = ["ReferenceDataset", "build_dataset", "contacts", "supervoxels_of"]

Labels = npt.NDArray[np.uint64]
Triple = tuple[int, int, int]


@dataclass
class ReferenceDataset:
    """A graph and its segmentation, complete and sound."""

    config: DatasetConfig
    table: Table
    grid: ChunkGrid
    layout: IdLayout
    voxels: Labels = field(repr=False)  # too much to print
    """Supervoxel ids, without the voxel offset."""
    active_edges: list[tuple[int, int]] = field(repr=False)
    hierarchy: ReferenceHierarchy = field(repr=False)

    @property
    def watershed_url(self) -> str:
        """Folder of the volume."""
        return self.config.data_source.watershed

    @property
    def graph_id(self) -> str:
        """Name of the graph."""
        return self.config.graph_id

    @property
    def fork(self) -> Fork:
        """The graph's own version of the voxels."""
        return Fork(self.watershed_url, self.graph_id)


def supervoxels_of(labels: npt.NDArray[np.int64], grid: ChunkGrid, layout: IdLayout) -> tuple[Labels, dict[int, int]]:
    """Labels cut at chunk borders into 26-connected pieces, with node ids; and the label of each supervoxel."""
    voxels = np.zeros(labels.shape, np.uint64)
    label_of: dict[int, int] = {}
    for coordinate in grid.coordinates(2):
        at = grid.box(2, coordinate).shifted(np.negative(grid.bounds.start)).slices
        pieces = cc3d.connected_components(np.ascontiguousarray(labels[at]), connectivity=26)
        chunk = int(layout.chunk_ids(1, coordinate))
        for piece in np.unique(pieces[pieces > 0]).tolist():
            mask = pieces == piece
            voxels[at][mask] = chunk | piece
            label_of[chunk | piece] = int(labels[at][mask][0])
    return voxels, label_of


def contacts(voxels: Labels) -> dict[tuple[int, int], int]:
    """Area in voxel faces of every pair of touching supervoxels, smaller id first."""
    areas: dict[tuple[int, int], int] = defaultdict(int)
    for axis in range(3):
        low = np.moveaxis(voxels, axis, 0)[:-1].ravel()
        high = np.moveaxis(voxels, axis, 0)[1:].ravel()
        touching = (low != high) & (low != 0) & (high != 0)
        pairs = np.sort(np.stack([low[touching], high[touching]], axis=-1), axis=-1)
        unique, counts = np.unique(pairs, axis=0, return_counts=True)
        for (a, b), count in zip(unique.tolist(), counts.tolist(), strict=True):
            areas[a, b] += count
    return dict(areas)


def build_dataset(
    folder: Path,
    table: Table,
    labels: npt.NDArray[np.int64],
    objects: Mapping[int, int],
    *,
    chunk_size: Triple,
    voxel_offset: Triple = (0, 0, 0),
    graph_id: str = "reference",
    spatial_bits: int = 10,
    with_fork: bool = True,
    ocdbt: dict[str, object] | None = None,
) -> ReferenceDataset:
    """Build everything: volume, edge and component files, base, fork, table.

    Parameters
    ----------
    folder
        Where the watershed goes.
    table
        An existing, empty table.
    labels
        Watershed labels (x, y, z); 0 = background.
    objects
        Object of each label that the agglomeration joins; labels of one object that touch become one root.
    """
    grid = ChunkGrid(Box.of(voxel_offset, np.add(voxel_offset, labels.shape)), chunk_size)
    layout = IdLayout(grid.n_layers, spatial_bits)
    voxels, label_of = supervoxels_of(labels, grid, layout)
    config = _config(folder, graph_id, chunk_size, spatial_bits, ocdbt or {})
    _write_volume(config, voxels, grid)
    active = _write_edges(config, grid, layout, contacts(voxels), label_of, objects)
    hierarchy = expected_hierarchy(active, label_of, layout)
    meta.write_version(table)
    meta.write_meta(table, meta.from_config(config))
    write_reference_graph(table, hierarchy, layout, grid)
    if with_fork:
        populate(config, grid)
        Fork(config.data_source.watershed, graph_id).create()
    return ReferenceDataset(config, table, grid, layout, voxels, active, hierarchy)


def populate(config: DatasetConfig, grid: ChunkGrid) -> None:
    """Make and fill the base."""
    url = config.data_source.watershed
    Base(url).create(config.ocdbt_config, grid=grid)
    plan = populate_plan(Base(url), grid, config.ocdbt_config)
    for coordinate in plan.missing:
        populate_task(plan, coordinate)
    finish_populate(populate_plan(Base(url), grid, config.ocdbt_config))


def _config(
    folder: Path, graph_id: str, chunk_size: Triple, spatial_bits: int, ocdbt: dict[str, object]
) -> DatasetConfig:
    return parse_config(
        {
            "graph_id": graph_id,
            "data_source": {"WATERSHED": kv.as_url(folder)},
            "graph_config": {"CHUNK_SIZE": list(chunk_size), "SPATIAL_BITS": spatial_bits},
            "ocdbt_config": {"populate_layer": 3, **ocdbt},
        }
    )


def _write_volume(config: DatasetConfig, voxels: Labels, grid: ChunkGrid) -> None:
    url = config.data_source.watershed
    create_volume(
        url,
        resolution=(8.0, 8.0, 40.0),
        voxel_offset=grid.bounds.start,
        size=grid.bounds.shape,
        chunk_size=grid.chunk_size,
    )
    open_volume(url, writable=True)[grid.bounds.slices].write(voxels).result()


def _write_edges(config, grid, layout, areas, label_of, objects):  # type: ignore[no-untyped-def]
    """Edge and component files of every chunk; returns the active edges."""
    rows = defaultdict(lambda: {"in_": [], "between": [], "cross": []})
    active = []
    agglomeration = networkx.Graph()
    for (a, b), area in sorted(areas.items()):
        chunk_a, chunk_b = (int(layout.chunks(np.uint64(sv))) for sv in (a, b))
        same_label = label_of[a] == label_of[b]
        same_object = same_label or objects.get(label_of[a], -1) == objects.get(label_of[b], -2)
        affinity = 0.1 + (area % 10) / 11
        if same_object:
            active.append((a, b))
            agglomeration.add_edge(a, b)
        if chunk_a == chunk_b:
            rows[chunk_a]["in_"].append((a, b, affinity, area))
        else:
            kind, values = ("cross", (np.inf, 1)) if same_label else ("between", (affinity, area))
            rows[chunk_a][kind].append((a, b, *values))
            rows[chunk_b][kind].append((b, a, *values))
    components = [sorted(component) for component in networkx.connected_components(agglomeration)]
    for coordinate in grid.coordinates(2):
        chunk = int(layout.chunk_ids(1, coordinate))
        parts = {kind: _edges(values) for kind, values in rows[chunk].items()}
        formats.write_edges(config.edges_url, coordinate, formats.ChunkEdges(**parts))
        named = {sv for values in rows[chunk].values() for row in values for sv in row[:2]}
        here = [[sv for sv in component if sv in named] for component in components]
        formats.write_components(config.components_url, coordinate, [part for part in here if len(part) > 1])
    return active


def _edges(rows):  # type: ignore[no-untyped-def]
    first, second, affinities, areas = zip(*rows, strict=True) if rows else ([], [], [], [])
    return Edges(
        np.array(first, np.uint64),
        np.array(second, np.uint64),
        np.array(affinities, np.float32),
        np.array(areas, np.uint64),
    )
