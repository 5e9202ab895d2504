"""Processes that split supervoxels of one graph at once: as if one edit had come after the other, as the log says."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import CommittedEdit, LockPatience, Reason
from sv_pipeline.edits.write import commit
from sv_pipeline.graph.queries import leaves, roots
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.testing.invariants import locks_and_scopes
from sv_pipeline.testing.models import canonical
from sv_pipeline.testing.tables import Backend
from sv_pipeline.testing.volumes import LabelledVolume, cells
from sv_pipeline.testing.worlds import World, build
from sv_pipeline_tests.edits.machines import AT_LENGTH

PROCESSES, MOMENTS = 4, 8
EDITS = 50 if AT_LENGTH else 20
PATIENT, IMPATIENT = LockPatience(60.0, 0.01), LockPatience(0.0)
NEAR = (6, 6, 6)
Voxel = list[int]


@dataclass(frozen=True)
class Request:
    """What one process asked for."""

    kind: str
    source: Voxel | None = None
    sink: Voxel | None = None
    operation: int = 0

    def ask(self, tissue: World, operation: int | None = None) -> CommittedEdit:
        """Make the edit; ``operation`` is what an undo or redo is about, where that has another number."""
        graph, volume = tissue.graph, tissue.volume
        if self.kind in ("undo", "redo"):
            revert = edits.undo if self.kind == "undo" else edits.redo
            return revert(graph, operation or self.operation, "tester", patience=PATIENT)
        assert self.source is not None
        assert self.sink is not None
        if self.kind == "merge":
            merge = tissue.merge_request(self.source, self.sink, offset=NEAR)
            return edits.merge(graph, merge, volume=volume, patience=PATIENT)
        split = tissue.split_request(self.source, self.sink, offset=NEAR)
        return edits.split(graph, split, volume=volume, patience=PATIENT)


@dataclass(frozen=True)
class Answer:
    """What became of it."""

    time: int
    operation: int
    request: Request
    supervoxels: int


def edit_at_random(tissue: World, seed: int) -> tuple[list[Answer], list[str]]:
    """What one process does: edits of what it sees, which others may just be changing."""
    rng = np.random.default_rng(seed)
    done: list[Answer] = []
    refused: list[str] = []
    for _ in range(EDITS):
        request = _choose(tissue, rng, [answer.operation for answer in done])
        try:
            edit = request.ask(tissue)
        except edits.EditRefused as refusal:
            refused.append(str(refusal.reason))
            continue
        done.append(Answer(edit.logical_time, edit.operation_id, request, len(edit.supervoxels)))
    return done, refused


def _choose(tissue: World, rng: np.random.Generator, operations: list[int]) -> Request:
    kind = rng.choice(
        ["supervoxel", "supervoxel", "split", "merge", "undo", "redo"], p=[0.3, 0.2, 0.1, 0.25, 0.1, 0.05]
    )
    if kind in ("undo", "redo") and operations:
        return Request(str(kind), operation=int(rng.choice(operations)))
    voxels = tissue.voxels()
    source = rng.choice(np.argwhere(voxels > 0)).tolist()
    ids = np.unique(voxels[voxels > 0])
    found = edits_roots(tissue, ids)
    own = found[voxels[tuple(source)].item()]
    of_object = np.isin(voxels, [sv for sv, root in found.items() if root == own])
    if kind == "merge":
        where = (voxels > 0) & ~of_object
    else:
        where = of_object if kind == "split" else voxels == voxels[tuple(source)]
    places = np.argwhere(where)
    near = places[(np.abs(places - source) <= 8).all(axis=1)]
    if not len(near):
        return Request("undo", operation=10**6)
    return Request("merge" if kind == "merge" else "split", source, rng.choice(near).tolist())


def edits_roots(tissue: World, supervoxels: np.ndarray) -> dict[int, int]:
    """Root of each supervoxel, 0 for one that was split since it was read."""
    found = roots(tissue.graph, supervoxels, missing_ok=True)
    return dict(zip(supervoxels.tolist(), found.tolist(), strict=True))


def look_back(tissue: World, time: int) -> None:
    """Chunk by chunk, the leaves of the objects of a moment are the ids that the fork shows pinned to it.

    Not of the whole volume at once: edits of other places may have been committed in another order.
    """
    graph = tissue.graph
    pinned: list[np.ndarray] = []
    for coordinate in graph.grid.coordinates(2):
        box = graph.grid.box(2, coordinate)
        generation = graph.fork.generation_at(time, within=box)
        voxels = tissue.voxels(generation)[box.shifted(-tissue.offset).slices]
        pinned.append(np.unique(voxels[voxels > 0]))
    ids = np.sort(np.concatenate(pinned))
    found = leaves(graph, np.unique(roots(graph, ids, at=time)))
    assert np.array_equal(np.sort(found.values), ids), f"at {time}"


@pytest.mark.slow
def test_edits_of_four_processes_equal_the_same_edits_in_the_order_of_the_log(backend: Backend, tmp_path: Path) -> None:
    world = build(cells((36, 20, 13), 24, 1, labels_per_object=3, voxel_offset=(5, 3, 1)), tmp_path)
    with world.copied(backend) as tissue:
        start = tissue.generation
        with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(edit_at_random, tissue, seed) for seed in range(PROCESSES)]
            results = [future.result() for future in futures]
        refused = Counter(reason for _, some in results for reason in some)
        done = sorted((a for some, _ in results for a in some), key=lambda a: (a.time, a.operation))
        tissue.verify()
        assert Reason.LOCKED not in refused
        assert not locks_and_scopes(tissue.rows())
        log = read_operations(tissue.graph)
        assert len(done) + sum(refused.values()) == PROCESSES * EDITS
        successes = [operation.id for operation in log if operation.status is OperationStatus.SUCCESS]
        assert successes == sorted(answer.operation for answer in done), "no edit is lost"
        of_voxels = sum(answer.supervoxels > 0 for answer in done)
        assert tissue.generation == start + of_voxels
        assert of_voxels > EDITS // 4, refused
        for answer in done[:: len(done) // MOMENTS]:
            look_back(tissue, answer.time)
        voxels = tissue.voxels()
        found = canonical(voxels), canonical(tissue.objects(voxels))

        with world.copied() as replay:
            numbers: dict[int, int] = {}
            for answer in done:
                edit = answer.request.ask(replay, numbers.get(answer.request.operation))
                numbers[answer.operation] = edit.operation_id
                assert len(edit.supervoxels) == answer.supervoxels, answer
            replay.verify()
            again = replay.voxels()
            assert np.array_equal(canonical(again), found[0])
            assert np.array_equal(canonical(replay.objects(again)), found[1])


# -- who waits for whom -----------------------------------------------------------------------------------------------


@contextmanager
def paused(edit: Callable[[], CommittedEdit], monkeypatch: pytest.MonkeyPatch) -> Iterator[Future[CommittedEdit]]:
    """While the block runs, an edit stands still just before it commits its voxels, with all its locks."""
    there, go_on = threading.Event(), threading.Event()
    commit_voxels = commit._commit_voxels

    def stand_still(*args: object) -> None:
        if not there.is_set():
            there.set()
            assert go_on.wait(60)
        commit_voxels(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(commit, "_commit_voxels", stand_still)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(edit)
        try:
            while not there.wait(0.05):
                assert not future.done(), future.result()
            yield future
        finally:
            go_on.set()
        future.result()


@pytest.fixture
def bars(backend: Backend, tmp_path: Path) -> Iterator[World]:
    """Three bars along x of 12 chunks; two more objects beside the first: one in its chunks, one far away."""
    labels = np.zeros((96, 8, 8), np.int64)
    for number, start in enumerate(range(0, 96, 8), 1):
        labels[start : start + 8, 0:3] = number
        labels[start : start + 8, 4:7] = 100 + number
    objects = {label: 1 + label // 100 for label in range(1, 113)}
    objects |= {label: 1000 + label for label in (105, 106, 107)}
    with build(LabelledVolume(labels, objects), tmp_path).copied(backend) as tissue:
        yield tissue


def split(tissue: World, x: int, y: int = 1, patience: LockPatience = IMPATIENT) -> CommittedEdit:
    """A split of the supervoxel at a place."""
    request = tissue.split_request([x, y, 0], [x + 6, y, 6], offset=(0, 0, 0))
    return edits.split(tissue.graph, request, volume=tissue.volume, patience=patience)


def test_edits_in_other_chunks_never_wait(bars: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with paused(lambda: split(bars, 0, patience=PATIENT), monkeypatch) as future:
        assert len(split(bars, 32, 5).supervoxels)  # in the chunk farther, of another object
        merge = bars.merge_request([47, 5, 1], [48, 5, 1])
        edits.merge(bars.graph, merge, volume=bars.volume, patience=IMPATIENT)
        assert not future.done()
    bars.verify()
    assert not locks_and_scopes(bars.rows())


def test_edits_of_other_objects_in_the_same_chunks_are_refused_with_the_name_of_the_holder(
    bars: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with paused(lambda: split(bars, 0, patience=PATIENT), monkeypatch):
        for x in (0, 8, 16):  # the same chunk, a neighbour, and one whose neighbour is one
            with pytest.raises(
                edits.EditRefused, match=r"chunk \([01], 0, 0\) is being written by operation 1 of 'tester'"
            ) as caught:
                split(bars, x, 5)
            assert caught.value.reason is Reason.LOCKED
    assert len(split(bars, 0, 5).supervoxels)
    bars.verify()


def test_edits_of_one_object_are_refused_however_far_apart(bars: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        paused(lambda: split(bars, 0, patience=PATIENT), monkeypatch),
        pytest.raises(edits.EditRefused, match=r"root \d+ is being written by operation 1 of 'tester'"),
    ):
        split(bars, 88)
    assert len(split(bars, 88).supervoxels)


def test_an_edit_of_the_same_chunks_waits_and_comes_later_in_the_log(
    bars: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with paused(lambda: split(bars, 0, patience=PATIENT), monkeypatch) as first:
            second = pool.submit(split, bars, 0, 5, PATIENT)
            with pytest.raises(TimeoutError):
                second.result(0.3)
            assert not first.done()
        assert second.result().logical_time > first.result().logical_time
    bars.verify()
