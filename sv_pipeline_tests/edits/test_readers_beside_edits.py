"""Processes that read while others edit: no error, and each answer is a state that the log of operations allows."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.config import DatasetConfig
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.registry import Dataset
from sv_pipeline_tests.edits.test_concurrent_edits_of_voxels import _choose
from sv_pipeline_tests.edits.tissue import Recipe, Tissue, copy_of, fast_folder, new_table, template_of

READERS, EDITS, POINTS = 2, 20, 12
SMALL = Recipe((36, 20, 13), 24, 1, labels_per_object=3, voxel_offset=(5, 3, 1))

Leaves = tuple[int, ...]


@dataclass(frozen=True)
class Look:
    """What one look gave: root and leaves of the object at each point; and whether both were asked for at once."""

    roots: tuple[int, ...]
    leaves: tuple[Leaves, ...]
    moment: float


def opened(graph: ChunkedGraph, config: DatasetConfig) -> OpenGraph:
    """A graph, as a user opens it."""
    dataset = Dataset(config.model_copy(update={"graph_id": graph.graph_id}), "")
    dataset.__dict__.update(graph=graph, table=graph.table)
    return OpenGraph(dataset)


def keep_editing(graph: ChunkedGraph, seed: int, count: int) -> int:
    """Make so many edits that are not refused; how many were."""
    tissue = Tissue(graph, graph.fork.open())
    rng, done, refused = np.random.default_rng(seed), [0], 0
    while len(done) <= count and refused < 20 * count:
        try:
            done.append(_choose(tissue, rng, done[1:]).ask(tissue).operation_id)
        except edits.EditRefused:
            refused += 1
    return refused


def keep_looking(graph: ChunkedGraph, config: DatasetConfig, points: list[Any]) -> tuple[list[Look], list[str]]:
    """Look until told to stop; what was seen, and errors."""
    reader, looks, errors = opened(graph, config), [], []
    while not _stop.is_set():
        try:
            leaves = tuple(tuple(some.tolist()) for some in reader.leaves(points))
            looks.append(Look(tuple(reader.roots(points).tolist()), leaves, time.time()))
            reader.look_up(points[:2], points[2:4])
        except Exception as error:  # noqa: BLE001 - counted by who asked
            errors.append(f"{type(error).__name__}: {error}")
    return looks, errors


def _with(stop: Event) -> None:
    global _stop
    _stop = stop


_stop: Event


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "editors"), [("bigtable", 1), ("sqlite", 3)])
def test_readers_see_whole_edits_only(backend: str, editors: int, request: pytest.FixtureRequest) -> None:
    if backend == "bigtable":
        request.getfixturevalue("bigtable_emulator")
    template, spawn = template_of(SMALL), multiprocessing.get_context("spawn")
    with fast_folder() as folder, copy_of(template, new_table(backend, folder)) as tissue:
        graph, config, stop = tissue.graph, template.data.config, spawn.Event()
        rng = np.random.default_rng(2)
        points = (rng.permutation(np.argwhere(tissue.voxels() > 0))[:POINTS] + tissue.offset).tolist()
        with (
            ProcessPoolExecutor(READERS, spawn, initializer=_with, initargs=(stop,)) as lookers,
            ProcessPoolExecutor(editors, spawn) as workers,
        ):
            looking = [lookers.submit(keep_looking, graph, config, points) for _ in range(READERS)]
            editing = [workers.submit(keep_editing, graph, seed, EDITS // editors) for seed in range(editors)]
            for future in editing:
                future.result()
            stop.set()
            seen = [future.result() for future in looking]
        assert not Counter(error for _, errors in seen for error in errors)
        states = states_of(graph, config, points)
        assert len(states) > EDITS // 2
        assert sum(len(looks) for looks, _ in seen) > EDITS
        for looks, _ in seen:
            check([look.roots for look in looks], [roots for roots, _ in states], together=editors == 1)
            check([look.leaves for look in looks], [leaves for _, leaves in states], together=editors == 1)
        assert len({look.leaves for looks, _ in seen for look in looks}) > EDITS // 4, "it was looked meanwhile"


State = tuple[tuple[int, ...], tuple[Leaves, ...]]


def states_of(graph: ChunkedGraph, config: DatasetConfig, points: list[Any]) -> list[State]:
    """Roots and leaves at the points before the first operation, and after each that was made, by their times."""
    reader = opened(graph, config)
    made = [o for o in read_operations(graph) if o.status is OperationStatus.SUCCESS and o.timestamp is not None]
    times = sorted(edits.milliseconds_of(graph, operation.id) for operation in made)
    moments = [times[0] - 1, *times]
    states = []
    for moment in moments:
        at = np.datetime64(moment, "ms").astype("datetime64[us]").item()
        leaves = tuple(tuple(some.tolist()) for some in reader.leaves(points, at=at))
        states.append((tuple(reader.roots(points, at=at).tolist()), leaves))
    return states


def check(looks: list[tuple[Any, ...]], states: list[tuple[Any, ...]], *, together: bool) -> None:
    """Each look is of a state that is not before that of the look before; of each point, or of all together."""
    columns = [(looks, states)]
    if not together:
        columns = [([(look[i],) for look in looks], [(state[i],) for state in states]) for i in range(len(states[0]))]
    for seen, allowed in columns:
        at = 0
        for look in seen:
            later = [number for number, state in enumerate(allowed) if state == look]
            assert later, "no state of the graph looks like this"
            assert later[-1] >= at, "it was seen to go back"
            at = next(number for number in later if number >= at)
