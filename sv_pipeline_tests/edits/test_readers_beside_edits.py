"""Processes that read while others edit: no error, and each answer is a state that the log of operations allows."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.testing.tables import Backend
from sv_pipeline.testing.volumes import cells
from sv_pipeline.testing.worlds import World, build
from sv_pipeline_tests.edits.test_concurrent_edits_of_voxels import _choose

READERS, EDITS, POINTS = 2, 20, 12
SMALL = cells((36, 20, 13), 24, 1, labels_per_object=3, voxel_offset=(5, 3, 1))

Leaves = tuple[int, ...]


@dataclass(frozen=True)
class Look:
    """What one look gave: root and leaves of the object at each point; and whether both were asked for at once."""

    roots: tuple[int, ...]
    leaves: tuple[Leaves, ...]
    moment: float


def keep_editing(tissue: World, seed: int, count: int) -> int:
    """Make so many edits that are not refused; how many were."""
    rng, done, refused = np.random.default_rng(seed), [0], 0
    while len(done) <= count and refused < 20 * count:
        try:
            done.append(_choose(tissue, rng, done[1:]).ask(tissue).operation_id)
        except edits.EditRefused:
            refused += 1
    return refused


def keep_looking(tissue: World, points: list[Any]) -> tuple[list[Look], list[str]]:
    """Look until told to stop; what was seen, and errors."""
    reader, looks, errors = tissue.open(), [], []
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
def test_readers_see_whole_edits_only(
    backend: Backend, editors: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if backend == "bigtable":
        request.getfixturevalue("bigtable_emulator")
    spawn = multiprocessing.get_context("spawn")
    with build(SMALL, tmp_path).copied(backend) as tissue:
        stop = spawn.Event()
        rng = np.random.default_rng(2)
        points = (rng.permutation(np.argwhere(tissue.voxels() > 0))[:POINTS] + tissue.offset).tolist()
        with (
            ProcessPoolExecutor(READERS, spawn, initializer=_with, initargs=(stop,)) as lookers,
            ProcessPoolExecutor(editors, spawn) as workers,
        ):
            looking = [lookers.submit(keep_looking, tissue, points) for _ in range(READERS)]
            editing = [workers.submit(keep_editing, tissue, seed, EDITS // editors) for seed in range(editors)]
            for future in editing:
                future.result()
            stop.set()
            seen = [future.result() for future in looking]
        assert not Counter(error for _, errors in seen for error in errors)
        states = states_of(tissue, points)
        assert len(states) > EDITS // 2
        assert sum(len(looks) for looks, _ in seen) > EDITS
        for looks, _ in seen:
            check([look.roots for look in looks], [roots for roots, _ in states], together=editors == 1)
            check([look.leaves for look in looks], [leaves for _, leaves in states], together=editors == 1)
        assert len({look.leaves for looks, _ in seen for look in looks}) > EDITS // 6, "it was looked meanwhile"


State = tuple[tuple[int, ...], tuple[Leaves, ...]]


def states_of(tissue: World, points: list[Any]) -> list[State]:
    """Roots and leaves at the points before the first operation, and after each that was made, by their times."""
    reader, graph = tissue.open(), tissue.graph
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
