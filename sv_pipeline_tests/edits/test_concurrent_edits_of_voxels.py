"""Processes that split supervoxels of one graph at once: as if one edit had come after the other, in the log's order."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import CommittedEdit, LockPatience, Reason, commit
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.lineage import OperationStatus, read_operations
from sv_pipeline.graph.queries import roots
from sv_pipeline.segmentation.reader import open_fork
from sv_pipeline_tests.edits.tissue import (
    Recipe,
    Tissue,
    copy_of,
    fast_folder,
    locks_and_scopes,
    new_table,
    template_of,
)
from sv_pipeline_tests.edits.voxel_model import canonical

PROCESSES, EDITS = 4, 50
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

    def ask(self, tissue: Tissue, operation: int | None = None) -> CommittedEdit:
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


def edit_at_random(graph: ChunkedGraph, seed: int) -> tuple[list[Answer], list[str]]:
    """What one process does: edits of what it sees, which others may just be changing."""
    tissue = Tissue(graph, open_fork(graph.watershed_url, graph.graph_id))
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


def _choose(tissue: Tissue, rng: np.random.Generator, operations: list[int]) -> Request:
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


def edits_roots(tissue: Tissue, supervoxels: np.ndarray) -> dict[int, int]:
    """Root of each supervoxel, 0 for one that was split since it was read."""
    found = roots(tissue.graph, supervoxels, missing_ok=True)
    return dict(zip(supervoxels.tolist(), found.tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
def test_edits_of_four_processes_equal_the_same_edits_in_the_order_of_the_log(
    backend: str, request: pytest.FixtureRequest
) -> None:
    if backend == "bigtable":
        request.getfixturevalue("bigtable_emulator")
    template = template_of(Recipe((36, 20, 13), 24, 1, labels_per_object=3, voxel_offset=(5, 3, 1)))
    with fast_folder() as folder, copy_of(template, new_table(backend, folder)) as tissue:
        start = tissue.generation
        with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(edit_at_random, tissue.graph, seed) for seed in range(PROCESSES)]
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
        assert of_voxels > 20, refused
        voxels = tissue.voxels()
        found = canonical(voxels), canonical(tissue.objects(voxels))

        with fast_folder() as other, copy_of(template, new_table("sqlite", other)) as replay:
            numbers: dict[int, int] = {}
            for answer in done:
                edit = answer.request.ask(replay, numbers.get(answer.request.operation))
                numbers[answer.operation] = edit.operation_id
                assert len(edit.supervoxels) == answer.supervoxels, answer
            replay.verify()
            again = replay.voxels()
            assert np.array_equal(canonical(again), found[0])
            assert np.array_equal(canonical(replay.objects(again)), found[1])
