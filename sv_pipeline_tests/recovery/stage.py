"""A small graph with voxels that is copied for every try, the edits that are made on it, and what it looks like."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sv_pipeline import edits
from sv_pipeline.edits import Points
from sv_pipeline.graph.chunked_graph import ChunkedGraph, open_chunked_graph
from sv_pipeline.graph.queries import roots
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.ownership import OPEN_ROWS
from sv_pipeline.table import columns
from sv_pipeline.table.interface import Table
from sv_pipeline.testing.harness.actors import OFFSET
from sv_pipeline.testing.harness.forkserver import ForkServer
from sv_pipeline.testing.harness.recovery import RecoveryHarness
from sv_pipeline.testing.models import touching
from sv_pipeline.testing.tables import EVERYTHING, Backend, unique_name
from sv_pipeline.testing.volumes import cells
from sv_pipeline.testing.worlds import World, build
from sv_pipeline.verify.run import verify

SHAPE, CHUNK, ORIGIN = (144, 32, 16), (16, 16, 16), (16, 8, 4)
KINDS = ("merge", "merge by hand", "split", "supervoxel split", "undo of a merge", "undo of a supervoxel split")


@dataclass
class Scene:
    """One copy of the graph."""

    world: World
    folder: Path

    @property
    def table(self) -> Table:
        return self.world.table

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
        report = verify(graph.table, graph.fork)
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

    world: World
    folder: Path
    backend: Backend
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Task of each kind of edit; and ``elsewhere``, ``supervoxel split elsewhere``: of other objects."""
    twins: dict[tuple[str, ...], tuple[bytes, bytes]] = field(default_factory=dict)

    def copy(self, home: Path | None = None, bucket: str | None = None) -> Scene:
        """A new scene.

        Parameters
        ----------
        home
            Folder in which it is registered as graph ``stage``; default: one of its own.
        bucket
            URL of where its volume goes; default: a folder.
        """
        folder = self.folder / unique_name()
        return Scene(self.world.copied_to(folder, self.backend, home=home, watershed=bucket), folder)

    def twin(self, fork_server: ForkServer, *tasks: str) -> tuple[bytes, bytes]:
        """What these edits come to when nobody is killed."""
        if tasks not in self.twins:
            scene = self.copy()
            harness = RecoveryHarness(scene.world, fork_server, scene.folder)
            for task in tasks:
                assert harness.do(**self.requests[task]) == 0, task
            scene.prove()
            self.twins[tasks] = scene.objects()
            scene.remove()
        return self.twins[tasks]


def build_stage(folder: Path) -> Stage:
    """Build the graph, make two edits that can be undone, and find points for every kind of edit."""
    volume = cells(SHAPE, 70, seed=2, labels_per_object=3, voxel_offset=ORIGIN)
    world = build(volume, folder, "stage", chunk_size=CHUNK)
    finder = _Finder(world.graph)
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
    return Stage(world, folder, "sqlite", requests)


class _Finder:
    """Finds pairs of voxels for an edit, by making it on the graph and taking it back; the first that works."""

    def __init__(self, graph: ChunkedGraph) -> None:
        self.graph = graph
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
        near = touching(voxels)
        pairs = sorted((a, b) for a, b in near if a in own and b in own)
        if kind == "merge by hand":
            pairs = [(a, b) for a in own for b in own if a < b and not _touch(near, root, root[a], root[b])]
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
