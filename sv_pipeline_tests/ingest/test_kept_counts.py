"""Counts that are kept beside the done-markers: they equal a count of the markers, whatever happened before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sv_pipeline.config import DatasetConfig
from sv_pipeline.graph.chunked_graph import ChunkedGraph, create_chunked_graph
from sv_pipeline.ingest import count_blocks, kept_counts, progress
from sv_pipeline.table import keys
from sv_pipeline.table.columns import BLOCK_STATES, INGEST_DONE, INGEST_FAILED
from sv_pipeline.table.interface import ConditionalMutation, DeleteCells, RowMutation, Table
from sv_pipeline.testing.tables import new_table as unused_table
from sv_pipeline_tests.graph.worlds import build, build_all, random_world, write_world

WORLD = random_world((4, 3, 2), 6, per_chunk=1)
N_CHUNKS = 24
BLOCK = 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count_blocks, "CHUNKS_PER_BLOCK", BLOCK)


@pytest.fixture
def config(tmp_path: Path) -> DatasetConfig:
    return write_world(WORLD, tmp_path)


@pytest.fixture
def graph(new_table: Table, config: DatasetConfig) -> ChunkedGraph:
    return create_chunked_graph(new_table, config)


# -- the truth --------------------------------------------------------------------------------------------------------


def markers(graph: ChunkedGraph, layer: int = 2) -> dict[int, tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """Done-marker and failure by the index of each chunk that has a row."""
    found = {}
    for key, row in graph.table.scan([keys.ingest_range(layer)], newest_only=True):
        chunk = np.uint64(keys.split_ingest_key(key)[1])
        index = int(graph.grid.index(layer, graph.layout.coordinates(chunk)))
        found[index] = INGEST_DONE.newest(row), INGEST_FAILED.newest(row)
    return found


def recounted(graph: ChunkedGraph, layer: int = 2) -> dict[str, Any]:
    """The status of a layer, counted marker by marker."""
    rows = markers(graph, layer)
    done = [marker for marker, _ in rows.values() if marker is not None]
    failed = {index: failure for index, (marker, failure) in sorted(rows.items()) if failure and not marker}
    kinds: dict[str, list[Any]] = {}
    for index, failure in failed.items():
        kinds.setdefault(failure["kind"], []).append((index, failure["error"]))
    return {
        "done": len(done),
        "nodes": sum(marker["nodes"] for marker in done),
        "supervoxels": sum(marker["supervoxels"] for marker in done),
        "edges": sum(marker["edges"] for marker in done),
        "seconds": round(sum(round(10_000 * marker["seconds"]) for marker in done) / 10_000, 3),
        "first_started": min((marker["started"] for marker in done), default=None),
        "last_finished": max((marker["finished"] for marker in done), default=None),
        "failed": len(failed),
        "error": next(iter(failed.values()))["error"] if failed else None,
        "failures": [(kind, len(those), those[0][1]) for kind, those in kinds.items()],
    }


def kept(graph: ChunkedGraph, layer: int = 2, **options: Any) -> dict[str, Any]:
    """The same from the status."""
    status = progress.layer_status(graph, layer, **options)[layer]
    values = {name: getattr(status, name) for name in recounted(graph, layer) if name != "failures"}
    return {**values, "failures": [(f.kind, f.chunks, f.error) for f in status.failures]}


def without(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def claimed(graph: ChunkedGraph, layer: int = 2) -> set[int]:
    """Indices of the chunks that stored rows of counts claim to be done."""
    found = set()
    for key, row in graph.table.scan([keys.counts_range(layer)], newest_only=True):
        states = BLOCK_STATES.newest(row)
        first = BLOCK * keys.split_counts_key(key)[1]
        found |= set() if states is None else {first + i for i in np.flatnonzero(states == 1).tolist()}
    return found


def done(graph: ChunkedGraph, layer: int = 2) -> set[int]:
    return {index for index, (marker, _) in markers(graph, layer).items() if marker is not None}


def open_marks(graph: ChunkedGraph, layer: int = 2) -> int:
    rows = graph.table.scan([keys.counts_range(layer)], newest_only=True)
    return sum(column.qualifier.startswith(b"open:") for _, row in rows for column in row)


# -- histories --------------------------------------------------------------------------------------------------------


class KilledError(BaseException):
    """The process died."""


@dataclass(eq=False)
class Watched:
    """A table that dies at its n-th request, or lets another process act before that request."""

    table: Table
    at: int
    act: Callable[[], None]
    requests: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)

    def _request(self) -> None:
        self.requests += 1
        if self.requests == self.at:
            self.act()

    def read_rows(self, *arguments: Any, **options: Any) -> Any:
        self._request()
        return self.table.read_rows(*arguments, **options)

    def scan(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        self._request()
        return self.table.scan(*arguments, **options)

    def check_and_mutate(self, *arguments: Any, **options: Any) -> bool:
        self._request()
        return self.table.check_and_mutate(*arguments, **options)

    def check_and_mutate_many(self, conditional: Sequence[ConditionalMutation]) -> list[bool]:
        return [
            self.check_and_mutate(one.key, one.any_of, if_matched=one.if_matched, if_unmatched=one.if_unmatched)
            for one in conditional
        ]

    def mutate(self, mutations: Iterable[RowMutation]) -> None:
        for mutation in mutations:  # a write of several rows may be interrupted between any two of them
            self._request()
            self.table.mutate([mutation])


@dataclass
class Worker:
    """Does what a task does with its rows, and numbers its markers so that all sums differ."""

    graph: ChunkedGraph
    serial: list[int] = field(default_factory=lambda: [0])

    def build(self, chunks: Sequence[int]) -> None:
        graph, wanted = self.graph, np.array(sorted(set(chunks)), np.int64)
        self.serial[0] += 1
        begun, opened = self.serial[0], kept_counts.open_blocks(2, wanted)
        graph.table.mutate(opened.mutations)
        there = done(graph)
        changes = []
        for index in wanted.tolist():
            if index not in there:
                numbers = {"nodes": 1 + index, "supervoxels": 7 * index, "edges": index**2, "seconds": 0.1 * begun}
                marker = {**numbers, "worker": "a:1", "started": 60_000 * begun, "finished": 60_000 * begun + index}
                changes.append(RowMutation(self.key(index), [INGEST_DONE.set(marker), DeleteCells(INGEST_FAILED.key)]))
        graph.table.mutate(changes)
        kept_counts.count_chunks(graph, 2, wanted, opened)

    def key(self, index: int) -> bytes:
        return keys.ingest_key(2, int(self.graph.layout.chunk_ids(2, self.coordinates([index]))[0]))

    def coordinates(self, chunks: Sequence[int]) -> np.ndarray:
        return np.stack(np.unravel_index(np.array(chunks), self.graph.grid.shape(2)), axis=-1)

    def act(self, action: tuple[str, list[int]]) -> None:
        what, chunks = action
        if what == "build":
            self.build(chunks)
        elif what == "fail":
            error = ValueError(f"chunk {chunks[0]}") if chunks[0] % 2 else KeyError(f"chunk {chunks[0]}")
            progress.mark_failed(self.graph, 2, self.coordinates(chunks), error)
        elif what == "plan":
            progress.missing_mask(self.graph, 2)
        elif what == "look":
            progress.layer_status(self.graph)
        elif what == "purge":
            progress.purge_layer(self.graph, 2)


some_chunks = st.lists(st.integers(0, N_CHUNKS - 1), min_size=1, max_size=12, unique=True)
actions = st.tuples(st.sampled_from(["build", "build", "fail", "plan", "look"]), some_chunks)


@st.composite
def steps(draw: st.DrawFn) -> tuple[tuple[str, list[int]], int, tuple[str, list[int]] | None]:
    """An action, the request before which something happens (0: never), and what: the end, or an action of another."""
    if draw(st.integers(0, 9)) == 0:
        return ("purge", [0]), draw(st.integers(0, 40)), None
    return draw(actions), draw(st.integers(0, 30)), draw(st.none() | actions)


@pytest.mark.parametrize("earlier_version", [False, True])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(steps(), min_size=1, max_size=7))
def test_counts_are_those_of_the_markers_after_any_history(
    tmp_path: Path, config: DatasetConfig, history: list[Any], *, earlier_version: bool
) -> None:
    """Tasks, failures, plans, looks and purges; killed at any write, or with another process in between."""
    # A disk in memory, if there is one: a history has hundreds of durable writes.
    table = unused_table("sqlite", memory if (memory := Path("/dev/shm")).is_dir() else tmp_path)
    graph = create_chunked_graph(table, config)
    worker = Worker(graph)
    if earlier_version:
        table.mutate([RowMutation(keys.COUNTS_SIGN, [DeleteCells()])])
        worker.build([0, 1, 7, 8, 9, 20])
        forget = [RowMutation(key, [DeleteCells()]) for key, _ in table.scan([keys.counts_range(2)])]
        table.mutate(forget)
    # Two workers on one chunk write markers that differ in their times only; those of the first are counted.
    times: set[str] = set()
    for action, at, meanwhile in history:
        if action[0] == "build" and meanwhile is not None and meanwhile[0] == "build":
            times = {"seconds", "first_started", "last_finished"}

        def happen(meanwhile: Any = meanwhile) -> None:
            if meanwhile is None:
                raise KilledError
            worker.act(meanwhile)

        if action[0] == "purge" and not markers(graph):
            continue
        watched: Any = Watched(table, at, happen)
        with suppress(KilledError):
            Worker(replace(graph, table=watched), worker.serial).act(action)
        assert claimed(graph) <= done(graph)
        assert kept(graph, exact=False)["done"] <= len(done(graph))
        assert without(kept(graph), times) == without(recounted(graph), times)
    missing = progress.missing_mask(graph, 2)
    assert set(np.flatnonzero(~missing).tolist()) == done(graph)
    worker.build(range(N_CHUNKS))
    progress.require_layer_complete(graph, 2)
    assert open_marks(graph) == 0
    assert without(kept(graph), times) == without(recounted(graph), times)
    before = table.round_trips
    assert progress.layer_status(graph, 2)[2].complete
    assert table.round_trips - before <= 2
    table.drop()


# -- both backends ----------------------------------------------------------------------------------------------------


def test_a_look_and_a_plan_of_counted_blocks_read_no_marker(graph: ChunkedGraph, config: DatasetConfig) -> None:
    build_all(graph, config)
    progress.require_layer_complete(graph, 2)
    for row in list(graph.table.scan([keys.ingest_range()])):
        graph.table.mutate([RowMutation(row[0], [DeleteCells()])])
    before = graph.table.round_trips
    assert all(status.complete for status in progress.layer_status(graph).values())
    assert not progress.missing_mask(graph, 2).any()
    assert graph.table.round_trips - before <= 3


def test_a_graph_of_an_earlier_version_is_counted_by_the_first_plan(graph: ChunkedGraph, config: DatasetConfig) -> None:
    build(graph, config, 2, graph.grid.coordinates(2)[:17])
    expected = recounted(graph)
    rows = [key for key, _ in graph.table.scan([keys.counts_range()])]
    graph.table.mutate(RowMutation(key, [DeleteCells()]) for key in rows)
    assert kept(graph) == expected
    assert claimed(graph) == set()
    assert progress.missing_mask(graph, 2).sum() == N_CHUNKS - 17
    assert claimed(graph) == done(graph)
    before = graph.table.round_trips
    progress.missing_mask(graph, 2)
    assert graph.table.round_trips - before <= 2
    assert kept(graph) == expected


def test_chunks_that_a_worker_of_an_earlier_version_built_are_counted_when_they_are_met(
    graph: ChunkedGraph, config: DatasetConfig
) -> None:
    coordinates = graph.grid.coordinates(2)
    build(graph, config, 2, coordinates)
    rows = [key for key, _ in graph.table.scan([keys.counts_range(2)])]
    graph.table.mutate(RowMutation(key, [DeleteCells()]) for key in rows)
    assert progress.missing_mask(graph, 2).all()
    assert all(report.skipped for report in build(graph, config, 2, coordinates))
    progress.require_layer_complete(graph, 2)
    assert kept(graph) == recounted(graph)


def test_a_killed_worker_leaves_a_block_that_the_next_plan_counts(graph: ChunkedGraph) -> None:
    worker = Worker(graph)
    worker.build([0, 1])

    def die() -> None:
        raise KilledError

    dying: Any = Watched(graph.table, 7, die)
    with pytest.raises(KilledError):
        Worker(replace(graph, table=dying), worker.serial).build([2, 3, 4])
    assert done(graph) == {0, 1, 2, 3, 4}
    assert kept(graph, exact=False)["done"] == 2
    assert kept(graph)["done"] == 5
    assert progress.missing_mask(graph, 2)[:5].sum() == 0
    assert (claimed(graph), open_marks(graph)) == ({0, 1, 2, 3, 4}, 0)


def test_two_workers_on_the_same_chunks_are_counted_once(graph: ChunkedGraph) -> None:
    worker = Worker(graph)
    other: Any = Watched(graph.table, 12, lambda: worker.build(range(3, 12)))
    Worker(replace(graph, table=other), worker.serial).build(range(8))
    assert kept(graph) == kept(graph, exact=False) == recounted(graph)
    assert (kept(graph)["done"], open_marks(graph)) == (12, 0)


def test_failures_are_counted_by_kind(graph: ChunkedGraph) -> None:
    coordinates = graph.grid.coordinates(2)
    progress.mark_failed(graph, 2, coordinates[3:9], ValueError("first"))
    progress.mark_failed(graph, 2, coordinates[6:12], OSError("second"))
    failures = progress.layer_status(graph)[2].failures
    assert [(f.kind, f.chunks, f.error, f.coordinate) for f in failures] == [
        ("ValueError", 3, "first", tuple(coordinates[3])),
        ("OSError", 6, "second", tuple(coordinates[6])),
    ]
    Worker(graph).build([3, 6])
    failures = progress.layer_status(graph)[2].failures
    assert [(f.kind, f.chunks, f.coordinate) for f in failures] == [
        ("ValueError", 2, tuple(coordinates[4])),
        ("OSError", 5, tuple(coordinates[7])),
    ]
    assert json.dumps([f.coordinate for f in failures])
