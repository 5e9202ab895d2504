"""Small graphs with voxels to edit: made once per recipe as a template, then copied row by row into any table.

Each copy has a fork of its own on the template's base, which costs one small file. Everything is in memory where the
system has a folder for that.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.edits import MergeRequest, Points, SplitRequest
from sv_pipeline.graph.chunked_graph import ChunkedGraph, open_chunked_graph
from sv_pipeline.graph.queries import roots
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.table import columns, meta
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.interface import RowKeyRange, RowMutation, SetCell, Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.verify.dataset_under_test import Subject
from sv_pipeline.verify.report import VerifyReport
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.reference_data import ReferenceDataset, build_dataset, random_labels

EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)
EVERYWHERE = (10_000, 10_000, 10_000)
"""A region that is the whole volume."""
MEMORY_FOLDER, MEMORY_NEEDED = Path("/dev/shm"), 1 << 30

Labels = npt.NDArray[np.uint64]
Triple = tuple[int, int, int]
Rows = dict[bytes, dict[object, list[object]]]


@dataclass(frozen=True)
class Recipe:
    """Voronoi cells as watershed labels, some of which are one object."""

    shape: Triple
    n_labels: int
    seed: int = 0
    labels_per_object: int = 2
    chunk_size: Triple = (8, 8, 8)
    voxel_offset: Triple = (0, 0, 0)


@dataclass(frozen=True, eq=False)
class Template:
    """A graph with voxels, and its rows."""

    data: ReferenceDataset
    rows: list[RowMutation]


def fast_folder() -> TemporaryDirectory[str]:
    """A folder in memory, where there is room; else wherever temporary files are."""
    in_memory = MEMORY_FOLDER.is_dir() and os.access(MEMORY_FOLDER, os.W_OK)
    if in_memory and shutil.disk_usage(MEMORY_FOLDER).free < MEMORY_NEEDED:
        in_memory = False
    return TemporaryDirectory(prefix="sv_pipeline_edits_", dir=MEMORY_FOLDER if in_memory else None)


@cache
def _folder() -> TemporaryDirectory[str]:
    """Of all templates of this process; gone with it."""
    return fast_folder()


def template_folder() -> Path:
    """A folder that lasts as long as this process."""
    folder = Path(_folder().name) / uuid.uuid4().hex
    folder.mkdir()
    return folder


@cache
def template_of(recipe: Recipe) -> Template:
    """Build a graph once."""
    labels = random_labels(recipe.shape, recipe.n_labels, recipe.seed)
    objects = {label: label // recipe.labels_per_object for label in range(1, recipe.n_labels + 1)}
    return template_of_labels(labels, objects, recipe.chunk_size, recipe.voxel_offset)


def template_of_labels(
    labels: npt.NDArray[np.int64],
    objects: dict[int, int],
    chunk_size: Triple = (8, 8, 8),
    voxel_offset: Triple = (0, 0, 0),
) -> Template:
    """A template of labels that were made by hand."""
    folder = template_folder()
    table = SqliteTable("template", folder / "table")
    table.create()
    data = build_dataset(
        folder / "ws", table, labels, objects, chunk_size=chunk_size, voxel_offset=voxel_offset, graph_id="template"
    )
    return Template(data, all_rows(table))


def all_rows(table: Table) -> list[RowMutation]:
    """What makes the same table of an empty one."""
    return [
        RowMutation(key, [SetCell(column, cell.value, cell.timestamp) for column in row for cell in row[column]])
        for key, row in table.scan([EVERYTHING])
    ]


def new_table(backend: str, folder: str | Path) -> Table:
    """A table that does not exist yet, under a name of its own."""
    name = f"t{uuid.uuid4().hex[:12]}"
    if backend == "sqlite":
        return SqliteTable(name, Path(folder))
    return BigtableTable(name, "project", "instance", patience=5.0)


@dataclass(frozen=True, eq=False)
class Tissue:
    """A graph with voxels, to be edited."""

    graph: ChunkedGraph
    volume: ts.TensorStore
    """The fork, as it is whenever it is read."""

    @property
    def offset(self) -> npt.NDArray[np.int64]:
        """First voxel of the volume."""
        return np.asarray(self.graph.grid.bounds.start)

    def voxels(self, generation: int | None = None) -> Labels:
        """All supervoxel ids (x, y, z), now or at a generation."""
        volume = self.volume
        if generation is not None:
            volume = self.graph.fork.open(version=generation)
        return np.asarray(volume[self.graph.grid.bounds.slices].read(order="F").result(), np.uint64)

    def voxels_at(self, time: int) -> Labels:
        """All supervoxel ids at a logical time."""
        return self.voxels(self.graph.fork.generation_at(time))

    def objects(self, voxels: Labels, at: int | None = None) -> Labels:
        """Root of each voxel; 0 = background."""
        ids, index = np.unique(voxels, return_inverse=True)
        found = np.zeros(len(ids), np.uint64)
        found[ids > 0] = roots(self.graph, ids[ids > 0], at=at)
        return found[index].reshape(voxels.shape)

    @property
    def generation(self) -> int:
        """Of the fork."""
        return self.graph.fork.generation()

    def points(self, *voxels: npt.ArrayLike) -> Points:
        """Points of a request, from places in the arrays here."""
        return Points.of([], (np.asarray(voxels).reshape(-1, 3) + self.offset).tolist())

    def split_request(self, sources: npt.ArrayLike, sinks: npt.ArrayLike, **options: object) -> SplitRequest:
        given = {"offset": EVERYWHERE, "disallow_isolating_cut": False, **options}
        return SplitRequest("tester", self.points(sources), self.points(sinks), **given)  # type: ignore[arg-type]

    def merge_request(self, sources: npt.ArrayLike, sinks: npt.ArrayLike, **options: object) -> MergeRequest:
        given = {"offset": EVERYWHERE, **options}
        return MergeRequest("tester", self.points(sources), self.points(sinks), **given)  # type: ignore[arg-type]

    def rows(self) -> Rows:
        """Every row of the table."""
        return {key: dict(row) for key, row in self.graph.table.scan([EVERYTHING])}  # type: ignore[misc]

    def report(self) -> VerifyReport:
        """What verify finds."""
        graph = self.graph
        return verify(SimpleNamespace(table=graph.table), watershed_url=graph.watershed_url, graph_id=graph.graph_id)

    def verify(self) -> VerifyReport:
        """Prove everything."""
        report = self.report()
        assert report.ok, report.summary()
        assert not report.findings, report.summary()
        return report


@contextmanager
def copy_of(template: Template, table: Table) -> Iterator[Tissue]:
    """A graph of its own in a table that does not exist yet; table and fork are gone afterwards."""
    table.create()
    table.mutate(template.rows)
    stored = meta.read_meta(table)
    meta.write_meta(table, replace(stored, graph_config=stored.graph_config._replace(ID=table.name)), overwrite=True)
    url = template.data.watershed_url
    Fork(url, table.name).create()
    try:
        graph = open_chunked_graph(table)
        yield Tissue(graph, Fork(url, graph.graph_id).open())
    finally:
        table.drop()
        table.close()
        shutil.rmtree(Path(url.removeprefix("file://")) / "ocdbt" / table.name)


def locks_and_scopes(rows: Rows) -> list[str]:
    """Whatever says that some operation is at work, in all rows of a table."""
    busy = {columns.LOCK.key, columns.INDEFINITE_LOCK.key, columns.CHUNK_LOCK_SCOPE.key}
    own = {b"scope", b"writes"}
    return [
        f"{key!r}: {column}"
        for key, row in rows.items()
        for column in row
        if column in busy or (key.startswith(b"sv_pipeline:op:") and column.qualifier in own)  # type: ignore[attr-defined]
    ]


def but_operations(rows: Rows) -> Rows:
    """Without the log of operations and their counter: what a refused edit must leave as it is."""
    return {
        key: row for key, row in rows.items() if key != b"ioperations" and not (key.isdigit() and int(key) < 1 << 56)
    }


@dataclass(frozen=True)
class Edge:
    """What the graph says of a pair of supervoxels today."""

    affinity: float
    active: bool


def edges_of(tissue: Tissue) -> dict[tuple[int, int], Edge]:
    """All atomic edges between supervoxels that are there; of the same pair, the largest affinity counts."""
    graph = tissue.graph
    subject = Subject(graph.table, graph.watershed_url, graph.graph_id)
    active, edges = subject.active, subject.edges
    ids = subject.nodes.ids
    joined = {
        (int(a), int(b)): bool(j)
        for a, b, j in zip(ids[active.first], ids[active.second], active.joined, strict=True)
        if a < b
    }
    found: dict[tuple[int, int], Edge] = {}
    for (a, b), affinity in zip(np.sort(edges.pairs, axis=1).tolist(), edges.affinities.tolist(), strict=True):
        if (a, b) in joined and (found.get((a, b)) is None or affinity > found[a, b].affinity):
            found[a, b] = Edge(affinity, joined[a, b])
    return found
