"""Chunks in groups under a memory budget: the same result, bounded memory, and one group lost by a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sv_pipeline.errors import InputError
from sv_pipeline.graph.chunked_graph import ChunkedGraph, create_chunked_graph, open_chunked_graph
from sv_pipeline.graph.edge_files import edges_key
from sv_pipeline.ingest import chunk_groups, progress
from sv_pipeline.ingest.atomic import atomic_groups
from sv_pipeline.ingest.parents import parent_groups
from sv_pipeline.memory import INTERPRETER_MB, grouped
from sv_pipeline.table import keys
from sv_pipeline.table.interface import RowKeyRange
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.fixtures import need
from sv_pipeline_tests.graph.worlds import random_world, write_world
from sv_pipeline_tests.ingest import dense

UNLIMITED = 1 << 50
VARYING = {"seconds", "started", "finished", "worker"}
"""Fields of a done-marker that tell of the process, not of the chunk."""


def build(graph: ChunkedGraph, layer: int, budget: int) -> list[int]:
    """Build a layer as one batch; the sizes of its groups."""
    coordinates = graph.grid.coordinates(layer)
    if layer == 2:
        groups = atomic_groups(graph, coordinates, read_isolated_supervoxels=False, budget=budget)
    else:
        groups = parent_groups(graph, layer, coordinates, budget=budget)
    return [len(group) for group in groups]


def contents(graph: ChunkedGraph) -> dict[bytes, dict[str, Any]]:
    """All values of all rows but the kept counts, without the times and the worker of the ingest."""
    found: dict[bytes, dict[str, Any]] = {}
    for key, row in graph.table.scan([RowKeyRange(b"", b"\xff")]):
        if key == keys.META or key.startswith(keys.COUNTS_SIGN):
            continue
        values = {str(column): [cell.value for cell in cells] for column, cells in row.items()}
        if key.startswith(b"sv_pipeline:"):
            values = {
                name: {k: v for k, v in json.loads(cells[0]).items() if k not in VARYING | {"timestamp"}}
                for name, cells in values.items()
            }
        found[key] = values
    return found


@given(
    st.lists(st.integers(0, 50)),
    st.integers(1, 120),
)
def test_groups_are_all_items_in_their_order_within_the_limit(costs: list[int], limit: int) -> None:
    asked: list[int] = []

    def items():  # type: ignore[no-untyped-def]
        for i in range(len(costs)):
            asked.append(i)
            yield i

    seen: list[int] = []
    for group in grouped(items(), costs.__getitem__, limit):
        seen += group
        assert len(group) == 1 or sum(costs[i] for i in group) <= limit
        assert len(asked) <= len(seen) + 1, "at most one item is read before its group begins"
    assert seen == list(range(len(costs)))


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(3, 2, 1), (4, 3, 2), (5, 1, 1)]),
    st.integers(1, 200_000),
    st.integers(1, 200_000),
)
def test_any_budget_gives_the_same_rows_cells_and_ids(
    seed: int, shape: tuple[int, int, int], atomic_budget: int, parent_budget: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = write_world(random_world(shape, seed, per_chunk=4), Path(folder))
        graphs = [create_chunked_graph(SqliteTable(name, Path(folder)), config) for name in ("one", "two")]
        for layer in range(2, graphs[0].n_layers + 1):
            assert len(build(graphs[0], layer, UNLIMITED)) <= 2, "at first it is not known how long a chunk takes"
            sizes = build(graphs[1], layer, atomic_budget if layer == 2 else parent_budget)
            assert sum(sizes) == graphs[1].grid.count(layer)
        assert contents(graphs[0]) == contents(graphs[1])


def test_a_group_ends_in_time_to_be_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many chunks as take SECONDS_PER_GROUP, once that is known; a few before."""
    config = write_world(random_world((5, 4, 1), 7, per_chunk=4), tmp_path)
    monkeypatch.setattr(chunk_groups, "FIRST_GROUP", 4)
    monkeypatch.setattr(chunk_groups, "_SECONDS_PER_CHUNK", {})
    assert build(create_chunked_graph(SqliteTable("quick", tmp_path), config), 2, UNLIMITED) == [4, 16]
    monkeypatch.setattr(chunk_groups, "SECONDS_PER_GROUP", 1e-9)
    assert build(create_chunked_graph(SqliteTable("slow", tmp_path), config), 2, UNLIMITED) == [1] * 20


def test_a_group_of_parents_that_turns_out_too_large_is_halved(tmp_path: Path) -> None:
    graph, _ = dense.write_row(tmp_path, 16, 60)
    build(graph, 2, UNLIMITED)
    shutil.copytree(tmp_path / "table", tmp_path / "twin")
    twin = open_chunked_graph(SqliteTable("dense", tmp_path / "twin"))
    # The counters promise few nodes, as if edits had never raised them, so the first group is all chunks.
    for chunk in graph.layout.chunk_ids(2, graph.grid.coordinates(2)).tolist():
        row, column = keys.counter_key(chunk), next(iter(graph.table.read_rows([keys.counter_key(chunk)]).values()))
        graph.table.increment(row, next(iter(column)), -19)
    assert sum(build(graph, 3, 200_000)) == 8
    assert sum(build(twin, 3, UNLIMITED)) == 8
    ours, theirs = contents(graph), contents(twin)
    children = [key for key in theirs if not key.startswith((b"i", b"sv_pipeline:"))]
    assert {key: ours[key] for key in children} == {key: theirs[key] for key in children}


@pytest.mark.parametrize("layer", [2, 3])
def test_killed_in_the_middle_of_a_batch_a_worker_loses_one_group(tmp_path: Path, layer: int) -> None:
    graph, _ = dense.write_row(tmp_path, 24, 30)
    for below in range(2, layer):
        build(graph, below, UNLIMITED)
    shutil.copytree(tmp_path / "table", tmp_path / "twin")
    twin = open_chunked_graph(SqliteTable("dense", tmp_path / "twin"))
    sizes = build(twin, layer, 110_000)
    assert len(sizes) > 3

    code = f"""
import os
from sv_pipeline_tests.ingest import dense, test_groups
from sv_pipeline.graph.chunked_graph import open_chunked_graph
from sv_pipeline.ingest import atomic, parents
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.fixtures import need
graph = open_chunked_graph(SqliteTable("dense", {str(tmp_path / "table")!r}))
coordinates, budget = graph.grid.coordinates({layer}), 110_000
if {layer} == 2:
    groups = atomic.atomic_groups(graph, coordinates, read_isolated_supervoxels=False, budget=budget)
else:
    groups = parents.parent_groups(graph, {layer}, coordinates, budget=budget)
for _ in range(2):
    next(groups)
os.environ["SV_PIPELINE_FAILPOINT"] = "table write:kill"
next(groups)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = graph.grid.count(layer) - len(progress.missing_coordinates(graph, layer))
    assert done == sum(sizes[:2])
    assert sum(build(graph, layer, 110_000)) == graph.grid.count(layer)
    assert {k: v for k, v in contents(graph).items() if not k.startswith((b"i", b"sv_"))}.keys() == {
        k: v for k, v in contents(twin).items() if not k.startswith((b"i", b"sv_"))
    }.keys()


def test_a_failure_is_stored_with_the_chunks_of_its_group_only(tmp_path: Path) -> None:
    graph, _ = dense.write_row(tmp_path, 24, 30)
    broken = Path(graph.edges_url.removeprefix("file://")) / edges_key((20, 0, 0))
    broken.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="edges_20_0_0"):
        build(graph, 2, 110_000)
    status = progress.layer_status(graph)[2]
    assert 12 <= status.done <= 20, "the groups before it are durable"
    assert 1 <= status.failed <= 24 - status.done
    assert status.error is not None
    assert "edges_20_0_0" in status.error


@pytest.mark.slow
@pytest.mark.parametrize("layer", [2, 3, 4])
def test_the_memory_of_a_worker_does_not_grow_with_its_batch(tmp_path: Path, layer: int) -> None:
    need(sys.platform == "linux", "/proc, which tells the peak of a process's memory")
    graph, _ = dense.write_row(tmp_path, 16 << (layer - 1), 4000 >> (layer - 1))
    for below in range(2, layer):
        build(graph, below, UNLIMITED)
    count, budget = graph.grid.count(layer), 8 << 20

    def measure(first: int, stop: int) -> dict[str, Any]:
        command = [sys.executable, "-m", "sv_pipeline_tests.ingest.dense", tmp_path, layer, first, stop, budget]
        said = subprocess.run([*map(str, command)], check=True, capture_output=True, env=dict(os.environ))
        return dict(json.loads(said.stdout))

    small, large = measure(0, count // 4), measure(count // 4, count)
    assert len(large["groups"]) >= 2
    assert large["peak"] < small["peak"] + budget * 3 // 4
    assert large["peak"] < (INTERPRETER_MB << 20) + budget
    assert np.sum(large["groups"]) == count - count // 4
