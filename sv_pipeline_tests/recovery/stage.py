"""A small graph with voxels that is copied for every try, the edits that are made on it, and what it looks like."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sv_pipeline import edits
from sv_pipeline.edits import Points
from sv_pipeline.graph.chunked_graph import ChunkedGraph, open_chunked_graph
from sv_pipeline.graph.queries import roots
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.ownership import OPEN_ROWS
from sv_pipeline.registry import Registry
from sv_pipeline.storage import kv
from sv_pipeline.table import columns, meta
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.interface import RowKeyRange, RowMutation, SetCell, Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.recovery.actors import OFFSET
from sv_pipeline_tests.reference_data import ReferenceDataset, build_dataset, contacts, random_labels

EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)
SHAPE, CHUNK, ORIGIN = (144, 32, 16), (16, 16, 16), (16, 8, 4)
KINDS = ("merge", "merge by hand", "split", "supervoxel split", "undo of a merge", "undo of a supervoxel split")


@dataclass
class Scene:
    """One copy of the graph."""

    table: Table
    folder: Path
    place: list[str]

    @property
    def graph(self) -> ChunkedGraph:
        return open_chunked_graph(self.table)

    def objects(self) -> tuple[bytes, bytes]:
        """What the graph and its voxels are, ids aside: of each voxel, the number of its supervoxel and of its root."""
        graph = self.graph
        voxels = np.asarray(graph.fork.open().read().result(), np.uint64)
        supervoxels, inverse = np.unique(voxels, return_inverse=True)
        found = np.zeros(len(supervoxels), np.uint64)
        found[supervoxels > 0] = roots(graph, supervoxels[supervoxels > 0])
        return _numbered(inverse.ravel()), _numbered(found[inverse.ravel()])

    def rows(self) -> dict[bytes, Any]:
        """All rows but those of our own bookkeeping."""
        return {k: row for k, row in self.table.scan([EVERYTHING]) if not k.startswith(b"sv_pipeline:")}

    def indefinite_locks(self) -> list[bytes]:
        return [k for k, _ in self.table.scan([EVERYTHING], [columns.INDEFINITE_LOCK.key])]

    def open_rows(self) -> list[bytes]:
        return [key for key, _ in self.table.scan([OPEN_ROWS])]

    def prove(self) -> None:
        """Every check of verify, and nothing open or locked."""
        graph = self.graph
        report = verify(SimpleNamespace(table=graph.table), watershed_url=graph.watershed_url, graph_id=graph.graph_id)
        # Coarser mips of edited boxes may be behind, and are listed.
        assert report.ok, report.summary()
        assert not self.open_rows()
        assert not self.indefinite_locks()

    def remove(self) -> None:
        self.table.drop()
        self.table.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _numbered(values: UInt64Array) -> bytes:
    """Values by the order in which they come first."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return rank[inverse].tobytes()


@dataclass
class Stage:
    """The graph that is copied."""

    folder: Path
    data: ReferenceDataset
    backend: str
    rows: list[RowMutation] = field(default_factory=list)
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Task of each kind of edit; and ``elsewhere``, ``supervoxel split elsewhere``: of other objects."""
    twins: dict[tuple[str, ...], tuple[bytes, bytes]] = field(default_factory=dict)

    def copy(self, home: Path | None = None, bucket: str | None = None) -> Scene:
        """A new scene.

        Parameters
        ----------
        home
            Folder in which it is registered as graph ``stage`` (SQLite only).
        bucket
            URL of where its volume goes; default: a folder.
        """
        unique = f"t{uuid.uuid4().hex[:12]}"
        name = unique if home is None else self.data.config.table_name
        folder = self.folder / unique
        url = bucket or kv.as_url(folder / "ws")
        if bucket is None:
            shutil.copytree(self.folder / "ws", folder / "ws")
        else:
            folder.mkdir()
            files = [p for p in (self.folder / "ws").rglob("*") if p.is_file() and not p.name.endswith(".__lock")]
            kv.write_many(bucket, {str(f.relative_to(self.folder / "ws")): f.read_bytes() for f in files})
        table = _table(self.backend, name, folder if home is None else home / "tables")
        table.create()
        table.mutate(self.rows)
        source = self.data.config.data_source.model_copy(update={"watershed": url})
        config = self.data.config.model_copy(update={"data_source": source})
        meta.write_meta(table, meta.from_config(config))
        place = ["bigtable", name]
        if isinstance(table, SqliteTable):
            place = ["sqlite", name, str(table.folder)]
        if home is not None:
            Registry(str(home)).register(config)
        return Scene(table, folder, place)

    def twin(self, zygote: Any, *tasks: str) -> tuple[bytes, bytes]:
        """What these edits come to when nobody is killed."""
        if tasks not in self.twins:
            scene = self.copy()
            for task in tasks:
                where = {"BIGTABLE_EMULATOR_HOST": os.environ.get("BIGTABLE_EMULATOR_HOST", "")}
                assert zygote.do(table=scene.place, environment=where, **self.requests[task]) == 0, task
            scene.prove()
            self.twins[tasks] = scene.objects()
            scene.remove()
        return self.twins[tasks]


def _table(backend: str, name: str, folder: Path) -> Table:
    if backend == "sqlite":
        return SqliteTable(name, folder)
    return BigtableTable(name, "project", "instance", patience=20.0)


def build_stage(folder: Path, backend: str) -> Stage:
    """Build the graph, make two edits that can be undone, and find points for every kind of edit."""
    table = SqliteTable("stage", folder)
    table.create()
    labels = random_labels(SHAPE, 70, seed=2)
    objects = {label: (label + 1) // 3 for label in range(1, 71)}
    data = build_dataset(folder / "ws", table, labels, objects, chunk_size=CHUNK, voxel_offset=ORIGIN, graph_id="stage")
    stage = Stage(folder, data, backend)
    graph = open_chunked_graph(table)
    finder = _Finder(data, graph)
    west, east = finder.points_within((0, 4)), finder.points_within((6, 9))
    merged = finder.make("merge", west)
    cut = finder.make("supervoxel split", west)
    requests: dict[str, dict[str, Any]] = {
        "undo of a merge": {"do": "undo", "operation": merged},
        "undo of a supervoxel split": {"do": "undo", "operation": cut},
        "merge": finder.find("merge", west),
        "merge by hand": finder.find("merge by hand", west),
        "split": finder.find("split", west),
        "supervoxel split": finder.find("supervoxel split", west),
        "elsewhere": finder.find("merge", east),
        "supervoxel split elsewhere": finder.find("supervoxel split", east),
    }
    stage.requests = requests
    stage.rows = [
        RowMutation(key, [SetCell(column, c.value, c.timestamp) for column, cells in row.items() for c in cells])
        for key, row in table.scan([EVERYTHING])
        if key != b"meta"
    ]
    table.close()
    return stage


class _Finder:
    """Finds pairs of voxels for an edit, by making it on the graph and taking it back; the first that works."""

    def __init__(self, data: ReferenceDataset, graph: ChunkedGraph) -> None:
        self.data, self.graph = data, graph
        self.used: set[int] = set()

    @property
    def voxels(self) -> UInt64Array:
        return np.asarray(self.graph.fork.open().read().result(), np.uint64)

    def points_within(self, chunks: tuple[int, int]) -> tuple[int, int]:
        return chunks[0] * CHUNK[0], chunks[1] * CHUNK[0]

    def candidates(self, kind: str, span: tuple[int, int]) -> Any:
        voxels = self.voxels
        inside = np.unique(voxels[span[0] : span[1]])
        outside = np.unique(np.concatenate([voxels[: span[0]], voxels[span[1] :]]).ravel())
        every = np.unique(voxels)
        every = every[every > 0]
        root = dict(zip(every.tolist(), roots(self.graph, every).tolist(), strict=True))
        beyond = {root[sv] for sv in outside.tolist() if sv}
        own = [sv for sv in inside.tolist() if sv and root[sv] not in beyond | self.used]
        rng = np.random.default_rng(3)
        if kind == "supervoxel split":
            for sv in own:
                where = np.argwhere(voxels == sv)
                if len(where) > 150:
                    order = np.argsort(where[:, 1])
                    yield sv, sv, where[order[3]], where[order[-3]]
            return
        touching = contacts(voxels)
        pairs = [(a, b) for a, b in touching if a in own and b in own]
        if kind == "merge by hand":
            pairs = [(a, b) for a in own for b in own if a < b and not _touch(touching, root, root[a], root[b])]
        for at in rng.permutation(len(pairs)).tolist():
            a, b = pairs[at]
            if (root[a] == root[b]) is (kind == "split"):
                yield a, b, *(np.argwhere(voxels == sv)[0] for sv in (a, b))

    def find(self, kind: str, span: tuple[int, int]) -> dict[str, Any]:
        for a, b, source, sink in self.candidates(kind, span):
            task = {
                "do": "merge" if kind.startswith("merge") else "split",
                "source": [(source + ORIGIN).tolist()],
                "sink": [(sink + ORIGIN).tolist()],
            }
            try:
                edit = self.run(task)
            except edits.EditRefused:
                continue
            undone = edits.undo(self.graph, edit.operation_id, "stage")
            self.used |= {*undone.roots.tolist()}
            self.used |= {int(r) for r in roots(self.graph, [a, b])} if kind != "supervoxel split" else set()
            return task
        raise AssertionError(f"no {kind} can be made on the stage")

    def make(self, kind: str, span: tuple[int, int]) -> int:
        for _, _, source, sink in self.candidates(kind, span):
            what = "merge" if kind.startswith("merge") else "split"
            task = {"do": what, "source": [(source + ORIGIN).tolist()], "sink": [(sink + ORIGIN).tolist()]}
            try:
                edit = self.run(task)
            except edits.EditRefused:
                continue
            self.used |= {*edit.roots.tolist()}
            return edit.operation_id
        raise AssertionError(f"no {kind} can be made on the stage")

    def run(self, task: dict[str, Any]) -> edits.CommittedEdit:
        sides = Points.of(coordinates=task["source"]), Points.of(coordinates=task["sink"])
        volume = self.graph.fork.open()
        if task["do"] == "merge":
            return edits.merge(self.graph, edits.MergeRequest("stage", *sides, OFFSET), volume=volume)
        request = edits.SplitRequest("stage", *sides, OFFSET, disallow_isolating_cut=False)
        return edits.split(self.graph, request, volume=volume)


def _touch(touching: Any, root: dict[int, int], one: int, other: int) -> bool:
    return any({root[a], root[b]} == {one, other} or (one == other) for a, b in touching)
