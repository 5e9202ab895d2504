"""The parts of a supervoxel split, one after the other: time, memory, and bytes written.

    python benchmarks/supervoxel_split_parts.py [--voxels N] [--chunk X Y Z] [--storage-chunk X Y Z] [--plane]

A network of tubes of that many voxels, all one object, in a volume of 512 x 512 x 64 whose other voxels are real
labels, where there are any. It is read from a fork, cut between two ends of the network, planned, tried in memory by a
minimum cut, and committed. The steps run in a process of their own; its peak memory is that of all steps, with
imports. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent))

from volumes import tile

from sv_pipeline.algorithms.contacts import diagonal_pairs, face_contacts
from sv_pipeline.algorithms.edge_routing import planned_edges, route_edges
from sv_pipeline.algorithms.fragments import member_mask, plan_fragments
from sv_pipeline.algorithms.local_edges import LocalEdges, edit_edge_rows
from sv_pipeline.algorithms.multicut.cut import LocalGraph, multicut
from sv_pipeline.algorithms.routing_checks import require_sound_routing
from sv_pipeline.algorithms.split_geometry import SplitGeometry
from sv_pipeline.algorithms.supervoxels import label_pieces
from sv_pipeline.algorithms.voxel_cut import cut_mask
from sv_pipeline.config import OcdbtConfig, PopulateMethod
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.populate import finish_populate, populate_plan, populate_task
from sv_pipeline.segmentation.fork.commit import EditCommit
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.context import uncached_context
from sv_pipeline.storage.precomputed import create_volume, open_volume
from sv_pipeline.storage.reading import read_box

SHAPE = (512, 512, 64)
OFFSET = (1000, 2000, 300)
RESOLUTION = (8.0, 8.0, 40.0)
Triple = tuple[int, int, int]


def tubes(n_voxels: int, seed: int = 3) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """A connected network of tubes, and the two places on it that are farthest apart in x."""
    rng = np.random.default_rng(seed)
    radius = np.array([9, 9, 3])
    grids = np.ogrid[tuple(slice(-r, r + 1) for r in radius)]
    ball = sum((g / r) ** 2 for g, r in zip(grids, radius, strict=True)) <= 1
    mask = np.zeros(SHAPE, bool)
    places = [np.array(SHAPE) / 2]
    n = 0
    while n < n_voxels:
        place, heading = places[rng.integers(len(places))].copy(), rng.normal(size=3)
        for _ in range(200):
            heading = 0.95 * heading + 0.3 * rng.normal(size=3)
            place = np.clip(place + 3 * heading / np.linalg.norm(heading) * (1, 1, 0.3), radius + 1, SHAPE - radius - 2)
            places.append(place)
            at = tuple(slice(int(c) - r, int(c) + r + 1) for c, r in zip(place, radius, strict=True))
            n += int(np.count_nonzero(ball & ~mask[at]))
            mask[at] |= ball
            if n >= n_voxels:
                break
    on = np.array(places).astype(np.int64)
    return mask, on[[np.argmin(on[:, 0]), np.argmax(on[:, 0])]]


def prepare(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Volume, base and fork; the object's members, its local edges, and a point at either end."""
    mask, points = tubes(options.voxels)
    block = tile()[:, :, 64:128]
    source = np.tile(block, (2, 2, 1))
    source[mask] = 1
    grid = ChunkGrid(Box.of(OFFSET, np.add(OFFSET, SHAPE)), tuple(options.chunk))
    layout = IdLayout(max(3, grid.n_layers))
    labels = np.zeros(SHAPE, np.uint64)
    for coordinate in grid.coordinates(2):
        at = grid.box(2, coordinate).shifted(np.negative(OFFSET)).slices
        segments = label_pieces(source[at]).segments
        labels[at] = np.where(segments > 0, layout.node_ids(layout.chunk_ids(1, coordinate), segments), 0)
    create_volume(
        folder, resolution=RESOLUTION, voxel_offset=OFFSET, size=SHAPE, chunk_size=tuple(options.storage_chunk)
    )
    open_volume(folder, writable=True).write(labels).result()
    config = OcdbtConfig(populate_layer=3, populate_method=PopulateMethod.DIRECT)
    Base(folder).create(config, grid)
    plan = populate_plan(Base(folder), grid, config)
    for task in plan.missing:
        populate_task(plan, task)
    finish_populate(plan)
    Fork(folder, "g").create()
    members = np.unique(labels[mask])
    return {"members": members, "edges": local_edges(labels, members, layout), "points": points + OFFSET, "grid": grid}


def local_edges(labels: npt.NDArray[np.uint64], members: npt.NDArray[np.uint64], layout: IdLayout) -> LocalEdges:
    """Edges of everything that touches; inf between members."""
    ids, compact = np.unique(labels, return_inverse=True)
    compact = compact.reshape(labels.shape).astype(np.int32)
    faces = face_contacts(compact)
    groups = np.isin(ids, members).astype(np.int64)
    diagonal = diagonal_pairs(compact, groups)
    pairs = ids[np.concatenate([faces.pairs, diagonal])]
    of_members = np.isin(pairs, members)
    different = (layout.chunks(pairs[:, 0]) != layout.chunks(pairs[:, 1])) & of_members.all(axis=1)
    affinities = np.where(different, np.inf, 0.3)
    areas = np.concatenate([faces.areas, np.ones(len(diagonal), np.int64)])
    keep = of_members.any(axis=1)
    return LocalEdges.of(pairs[keep], affinities[keep], areas[keep], of_members[keep].all(axis=1))


def peak_megabytes() -> float:
    """Highest resident memory of this process so far. (That of getrusage is inherited from the parent process.)"""
    status = Path("/proc/self/status").read_text()
    return round(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def split(folder: str, options: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    """All steps; what they took."""
    seconds: dict[str, float] = {}
    cpu_seconds: dict[str, float] = {}
    peaks: dict[str, float] = {"imports": peak_megabytes()}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        started, started_cpu = time.perf_counter(), time.process_time()
        yield
        seconds[name] = round(time.perf_counter() - started, 3)
        cpu_seconds[name] = round(time.process_time() - started_cpu, 3)
        peaks[name] = peak_megabytes()

    members, edges, points, grid = (given[key] for key in ("members", "edges", "points", "grid"))
    layout, box = IdLayout(max(3, grid.n_layers)), grid.bounds
    before = stored(folder)
    with step("read"):
        generation = Fork(folder, "g").generation()
        segmentation = read_box(Fork(folder, "g").open(version=generation, context=uncached_context())[box.slices])
    with step("mask"):
        mask = member_mask(segmentation, members)
    with step("voxel_cut"):
        if options.plane:
            labels = np.where(np.arange(SHAPE[0])[:, None, None] < 250, mask, 2 * mask).astype(np.uint8)
        else:
            labels = cut_mask(mask, points[:1] - OFFSET, points[1:] - OFFSET, RESOLUTION)
    del mask
    with step("fragments"):
        plan = plan_fragments(segmentation, box, members, labels, grid)
    del labels
    geometry = SplitGeometry(plan, segmentation, RESOLUTION, grid, layout)
    with step("contacts"):
        _ = geometry.contacts
    with step("routing"):
        routed = route_edges(geometry, edges)
        require_sound_routing(plan, edges, routed)
    with step("minimum_cut"):
        planned = planned_edges(edges, routed)
        ends = [geometry.nodes_near(points[i : i + 1], i + 1) for i in range(2)]
        outcome = multicut(LocalGraph(planned.pairs, planned.affinities), *ends, disallow_isolating_cut=False)
    with step("rows"):
        new_ids = layout.node_ids(layout.chunk_ids(1, plan.chunks), (1 << 20) + np.arange(len(plan), dtype=np.uint64))
        final = LocalEdges(
            plan.resolve(routed.edges.pairs, new_ids), routed.edges.affinities, routed.edges.areas, routed.edges.active
        )
        rows = edit_edge_rows(final, layout)
    with step("commit"):
        storage = ChunkGrid(box, tuple(options.storage_chunk))
        chunks = plan.changed_chunks(segmentation, new_ids, storage)
        result = Fork(folder, "g").commit(EditCommit(1, chunks, generation, 0, "benchmark", chunks.boxes))
    written = stored(folder) - before
    return {
        "object_voxels": len(plan.voxels),
        "members": len(members),
        "fragments": len(plan),
        "old_edges": len(edges),
        "new_edges": len(routed.edges),
        "rows": len(rows),
        "outcome": type(outcome).__name__,
        "generations": result.generation - generation,
        "seconds": seconds,
        "total_s": round(sum(seconds.values()), 2),
        "cpu_seconds": cpu_seconds,
        "total_cpu_s": round(sum(cpu_seconds.values()), 2),
        "peak_mb": peaks,
        "storage_chunks": len(chunks),
        "written_over_changed": round(written / chunk_bytes(folder, chunks.boxes), 3),
    }


def stored(folder: str) -> int:
    """Bytes in the fork's folder."""
    return sum(path.stat().st_size for path in Path(folder, "ocdbt/g").rglob("*") if path.is_file())


def chunk_bytes(folder: str, boxes: tuple[Box, ...], graph_id: str = "g") -> int:
    """Stored size of some storage chunks."""
    store = ocdbt.OcdbtStore(ocdbt.fork_spec(folder, graph_id)).kv
    name = "_".join(f"{r:g}" for r in RESOLUTION)
    keys = ["_".join(f"{a}-{b}" for a, b in zip(box.start, box.stop, strict=True)) for box in boxes]
    return sum(len(store[f"{name}/{key}"]) for key in keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=int, default=1_000_000)
    parser.add_argument("--chunk", type=int, nargs=3, default=(256, 256, 512))
    parser.add_argument("--storage-chunk", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--plane", action="store_true", help="cut across x at 250, instead of by the voxel cut")
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for _ in range(options.repeat):
        folder = tempfile.mkdtemp(prefix="split-")
        try:
            given = prepare(folder, options)
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                print(json.dumps(pool.submit(split, folder, options, given).result()), flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
