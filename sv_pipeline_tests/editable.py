"""A small graph to edit as a proofreader does, with a fork; and points on it for each kind of edit."""

from __future__ import annotations

import contextlib
from itertools import combinations
from pathlib import Path

import numpy as np

import sv_pipeline
from sv_pipeline.algorithms.multicut.cut import Preview
from sv_pipeline.config import parse_config
from sv_pipeline.demo.synthetic import synthetic_neuropil
from sv_pipeline.edits import EditRefused
from sv_pipeline.graph import queries
from sv_pipeline.ingest import run, stages
from sv_pipeline.proofreading import OpenGraph

Point = tuple[int, int, int]

SHAPE: Point = (64, 64, 32)
BACKGROUND: Point = (0, 0, 0)
"""Farther than 300 nm from anything: a point that misses by less is moved."""


def editable_graph(folder: Path, home: Path, graph_id: str = "small") -> OpenGraph:
    """Ingest a synthetic neuropil in chunks of 32 x 32 x 16, SQLite and local files."""
    volume = synthetic_neuropil(SHAPE, seed=5)
    segmentation = volume.segmentation.copy()
    segmentation[:21, :21, :9] = 0
    return ingested(folder, home, graph_id, segmentation, volume.bodies, volume.resolution)


RING_POINTS: tuple[Point, Point] = (4, 1, 68), (4, 1, 76)
"""In one bar of a ring, in one chunk, so far from its ends that the first region does not reach them."""


def ring_graph(folder: Path, home: Path, graph_id: str = "ring") -> OpenGraph:
    """One object that is a ring along z: two bars of many supervoxels, joined at both ends only; one has a neck."""
    shape = (8, 8, 160)
    segmentation = np.zeros(shape, np.uint32)
    slabs = np.arange(shape[2]) // 8 + 1
    segmentation[:, :3], segmentation[:, 5:] = slabs, slabs + 100
    segmentation[1:, 5:, 100:104] = 0
    segmentation[:, :, :2], segmentation[:, :, -2:] = 201, 202
    return ingested(folder, home, graph_id, segmentation, (segmentation > 0).astype(np.uint32), (8.0, 8.0, 8.0))


def ingested(
    folder: Path,
    home: Path,
    graph_id: str,
    segmentation: np.ndarray,
    bodies: np.ndarray,
    resolution: tuple[float, ...],
) -> OpenGraph:
    """Ingest a segmentation and its bodies in chunks of 32 x 32 x 16, SQLite and local files."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "small.npz"
    np.savez(source, segmentation=segmentation, bodies=bodies, resolution=np.asarray(resolution))
    raw = {
        "graph_id": graph_id,
        "data_source": {"WATERSHED": str(folder / "watershed")},
        "source": {"segmentation": f"{source}#segmentation", "agglomeration": f"{source}#bodies"},
        "graph_config": {"CHUNK_SIZE": [32, 32, 16]},
    }
    dataset = stages.register(parse_config(raw), str(home))
    run.ingest(dataset, workers=1)
    return sv_pipeline.open_graph(graph_id, str(home))


def neighbours_of_two_objects(graph: OpenGraph) -> tuple[Point, Point]:
    """Two voxels side by side in the middle plane that belong to two objects."""
    points = [(x, 20, 16) for x in range(SHAPE[0])]
    roots = graph.roots(points)
    here = int(np.flatnonzero(roots[1:] != roots[:-1])[0])
    return points[here], points[here + 1]


def two_parts_of_an_object(graph: OpenGraph, *, of_a_supervoxel: bool = False) -> tuple[Point, Point]:
    """Two voxels of one object between which a cut is legal; one that cuts voxels, or one that does not."""
    points = [(x, y, z) for x in range(2, 64, 6) for y in range(2, 64, 6) for z in (8, 24)]
    points = [p for p, sv in zip(points, _supervoxels(graph, points), strict=True) if sv]
    roots = graph.roots(points)
    for root in np.unique(roots).tolist():
        for one, other in combinations([p for p, r in zip(points, roots.tolist(), strict=True) if r == root], 2):
            with contextlib.suppress(EditRefused):
                preview = graph.preview_split([one], [other])
                legal = isinstance(preview.outcome, Preview) and preview.legal
                if legal and (preview.supervoxels is not None) is of_a_supervoxel:
                    return one, other
    raise AssertionError("no object can be split so")


def _supervoxels(graph: OpenGraph, points: list[Point]) -> list[int]:
    return [int(sv) for sv in queries.supervoxels_at(graph.dataset.graph, graph.segmentation, points)]
