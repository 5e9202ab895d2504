"""Ingests single chunks in a scratch place and measures what they take. Extrapolates nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import numpy.typing as npt

from sv_pipeline.config import OcdbtConfig, PopulateMethod
from sv_pipeline.graph.chunked_graph import ChunkedGraph, create_chunked_graph
from sv_pipeline.graph.edge_files import components_key, edges_key
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ingest import watershed
from sv_pipeline.ingest.atomic import build_atomic_chunks
from sv_pipeline.ingest.reservations import read_task_rows
from sv_pipeline.ingest.workload import Workload
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base import layout, populate
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.markers import task_name
from sv_pipeline.segmentation.base.parts import is_kept
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.precomputed import create_volume, open_volume, read_info, stored_scale
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.table import keys
from sv_pipeline.table.interface import RowView

__all__ = ["MARGIN", "SAMPLED_MIPS", "Sampler"]

MARGIN = 16
"""Thickness in voxels of the part of a neighbour that is labelled, so that the edges to it can be found."""
SAMPLED_MIPS = 4
"""Largest number of mips of the scratch base."""
CELL_BYTES = 16
"""Bytes of a cell besides its value and its qualifier, about: time, family and lengths."""

IntArray = npt.NDArray[np.int64]
Triple = tuple[int, int, int]


@dataclass
class Sampler:
    """Measures chunks in a scratch dataset.

    Parameters
    ----------
    dataset
        The scratch dataset.
    folder
        Folder of its base, and of its watershed if it makes one.
    workload
        The size of the whole ingest.
    """

    dataset: Dataset
    folder: str
    workload: Workload
    measured: dict[Triple, dict[str, float]] = field(default_factory=dict)
    """What each chunk took and holds, by names."""
    _plan: watershed.WatershedPlan | None = None
    _graph: ChunkedGraph | None = None
    _base: Base | None = None

    @property
    def grid(self) -> ChunkGrid:
        """The chunks of the volume."""
        return self.dataset.grid

    @property
    def referred(self) -> tuple[int, ...]:
        """Mips of the scratch base that refer to the watershed."""
        return () if self._base is None else self._base.info().referred

    @property
    def n_mips(self) -> int:
        """Number of mips of the scratch base."""
        return 0 if self._base is None else self._base.info().n_mips

    def prepare(self, chosen: IntArray) -> None:
        """Create everything, and label the chunks, coordinates of shape (n, 3), if a watershed is made."""
        dataset, workload = self.dataset, self.workload
        if workload.makes_watershed:
            self._plan = watershed.prepare_watershed(dataset.config)
            self._label(self._plan, chosen)
        elif workload.mips:
            finest = read_info(dataset.watershed_url).scales[0]
            create_volume(
                self.folder,
                resolution=finest.resolution,
                voxel_offset=finest.voxel_offset,
                size=finest.size,
                chunk_size=finest.chunk_size,
            )
        if workload.builds_graph:
            self._graph = create_chunked_graph(dataset.table, dataset.config)
        if workload.mips:
            self._base = Base(self.folder)

    def measure(self, coordinate: IntArray) -> None:
        """Run the stages of one chunk, one after the other."""
        found = self._of(coordinate)
        found["voxels"] = self.grid.box(2, coordinate).volume
        if self._plan is not None:
            with self._timed("edges", coordinate):
                watershed.edges_of_chunk(self._plan, coordinate)
            files = [
                (self._plan.edges_url, edges_key(coordinate)),
                (self._plan.components_url, components_key(coordinate)),
            ]
            files += [(self._plan.target, self._plan.marker(stage, coordinate)) for stage in watershed.WatershedPass]
            found["file bytes"] = sum(len(kv.read_bytes(url, key) or b"") for url, key in files)
            found["watershed bytes"] = self._volume_bytes(coordinate)
        if self._graph is not None:
            with self._timed("layer 2", coordinate):
                (report,) = build_atomic_chunks(self._graph, [coordinate], self.dataset.config)
            found |= {"supervoxels": report.supervoxels, "edges": report.edges, "layer 2 nodes": report.nodes}
            found["layer 2 bytes"] = self._row_bytes(self._graph, coordinate)
        if self._base is not None:
            self._populate(self._base, coordinate)

    def measure_together(self, chosen: IntArray) -> float | None:
        """Write the layer 2 chunks again in one call; return the time in seconds, None without a graph."""
        if self._graph is None:
            return None
        started = time.perf_counter()
        build_atomic_chunks(self._graph, chosen, self.dataset.config, again=True)
        return time.perf_counter() - started

    # -- stages -------------------------------------------------------------------------------------------------------

    def _label(self, plan: watershed.WatershedPlan, chosen: IntArray) -> None:
        """Label chosen chunks, and the parts of their neighbours that touch them; make the table of their objects."""
        mine = [_triple(coordinate) for coordinate in chosen]
        parts: dict[Triple, Box | None] = {}
        for coordinate in chosen:
            near = plan.grid.box(2, coordinate).grow(MARGIN)
            for step in product((-1, 0, 1), repeat=3):
                neighbour = _triple(coordinate + step)
                inside = all(0 <= c < n for c, n in zip(neighbour, plan.grid.shape(2), strict=True))
                if inside and neighbour not in mine:
                    # A chunk that touches several chosen ones is labelled as a whole.
                    touching = plan.grid.box(2, neighbour).clip(near)
                    parts[neighbour] = None if neighbour in parts else touching
        for neighbour, part in parts.items():
            watershed.label_chunk(plan, neighbour, part)
        for coordinate in chosen:
            with self._timed("labels", coordinate):
                watershed.label_chunk(plan, coordinate)
        watershed.make_object_table(plan, only=[*mine, *parts])

    def _populate(self, base: Base, coordinate: IntArray) -> None:
        if not self.workload.makes_watershed:
            box = self.grid.box(2, coordinate)
            source, target = open_volume(self.dataset.watershed_url), open_volume(self.folder, writable=True)
            voxels = retry_transport(lambda: source[box.slices].read().result(), what=f"reading {box} of the watershed")
            retry_transport(lambda: target[box.slices].write(voxels).result(), what=f"writing {box} to {self.folder}")
        # The base is made when there are voxels to look at: how they are stored decides if it can refer to them.
        config = self._base_config()
        base.create(config, grid=self.grid)
        plan = populate.populate_plan(base, self.grid, config, only=[coordinate])
        with self._timed("voxels", coordinate):
            populate.populate_task(plan, _triple(coordinate))
        parts = kv.join_url(ocdbt.base_folder(self.folder), "parts", task_name(_triple(coordinate)))
        kept = [key for key in kv.list_keys(parts) if is_kept(key.split("/", 1)[1])]
        self._of(coordinate)["base bytes"] = sum(len(data or b"") for data in kv.read_many(parts, kept))

    def _base_config(self) -> OcdbtConfig:
        """The configuration of the scratch base: its tasks are single chunks, and it has mips that divide them."""
        given = self.dataset.config.ocdbt_config
        refers = any(mip.referred for mip in self.workload.mips)
        method = PopulateMethod.AUTO if refers else PopulateMethod.PARTS
        config = given.model_copy(update={"populate_layer": 2, "populate_method": method, "mips": None})
        most = len(layout.plan_scales(read_info(self.folder), config, self.grid))
        return config.model_copy(update={"mips": min(most, SAMPLED_MIPS, len(self.workload.mips))})

    # -- sizes --------------------------------------------------------------------------------------------------------

    def _volume_bytes(self, coordinate: IntArray) -> int:
        stored = stored_scale(self.folder)
        box = self.grid.box(2, coordinate).shifted(-np.asarray(stored.scale.voxel_offset))
        first = np.asarray(box.start) // stored.scale.chunk_size
        shape = -(-np.asarray(box.stop) // np.asarray(stored.scale.chunk_size)) - first
        cells = np.stack(np.unravel_index(np.arange(int(shape.prod())), tuple(shape)), axis=-1) + first
        names = stored.names(cells.astype(np.int64))
        return sum(len(data or b"") for data in kv.read_many(stored.folder, names))

    def _row_bytes(self, graph: ChunkedGraph, coordinate: IntArray) -> int:
        """Bytes of the rows that a chunk's task has written: its supervoxels and its nodes, at any layer."""
        layout_, table = graph.layout, graph.table
        chunk_id = int(layout_.chunk_ids(2, coordinate))
        (row,) = read_task_rows(graph, 2, np.array([chunk_id], np.uint64))
        supervoxels = keys.chunk_range(layout_, int(layout_.chunk_ids(1, coordinate)))
        total = sum(_bytes_of(key, cells) for key, cells in table.scan([supervoxels]))
        if row.reservation is not None:
            nodes = keys.node_keys(row.reservation.node_ids(graph))
            total += sum(_bytes_of(key, cells) for key, cells in table.read_rows(nodes).items())
        return total

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _of(self, coordinate: npt.ArrayLike) -> dict[str, float]:
        return self.measured.setdefault(_triple(coordinate), {})

    @contextmanager
    def _timed(self, stage: str, coordinate: npt.ArrayLike) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._of(coordinate)[f"seconds: {stage}"] = time.perf_counter() - started


def _bytes_of(key: bytes, row: RowView) -> int:
    cells = [(column, cell) for column, versions in row.items() for cell in versions]
    return sum(len(key) + len(column.qualifier) + len(cell.value) + CELL_BYTES for column, cell in cells)


def _triple(coordinate: npt.ArrayLike) -> Triple:
    x, y, z = (int(c) for c in np.asarray(coordinate))
    return (x, y, z)
