"""Killed, repeated or doubled: the ingest of a chunk always ends in the same rows, and leaves no node behind."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.errors import ConflictError
from sv_pipeline.graph.chunked_graph import ChunkedGraph, create_chunked_graph
from sv_pipeline.ingest import reservations
from sv_pipeline.ingest.reservations import IdNeed, read_task_rows, reserve_ids
from sv_pipeline.table.interface import Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline_tests.graph.compare import dump, expected_shape, stored_shape
from sv_pipeline_tests.graph.worlds import build, build_all, random_world, write_world
from sv_pipeline_tests.ingest.workers import build_and_die, build_layer

processes = multiprocessing.get_context("spawn")
WORLD = random_world((3, 3, 2), 11, per_chunk=3, objects=0.4, cross=0.2)


def nodes_of(table: Table) -> dict[bytes, object]:
    """Node rows without their times."""
    rows = dump(table, without=(b"sv_pipeline", b"i", b"meta", b"version"))
    return {
        key: {column: [cell.value for cell in cells] for column, cells in row.items()}  # type: ignore[attr-defined]
        for key, row in rows.items()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, object]:
    """Node rows of an ingest that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_world(WORLD, folder)
    graph = create_chunked_graph(SqliteTable("t", folder / "tables"), config)
    build_all(graph, config)
    return nodes_of(graph.table)


# Layer, kind of write, its number, how much of it is done, and whether numbers of a counter were lost.
DEATHS = [
    (2, "increment_many", 3, 1.0, False),  # numbers for supervoxels: raised further by nobody
    (2, "increment_many", 25, 1.0, True),  # numbers taken, not yet noted
    (2, "check_and_mutate", 5, 1.0, False),
    (2, "mutate", 0, 0.0, False),
    (2, "mutate", 0, 0.5, False),  # half of the node rows
    (2, "mutate", 1, 0.5, False),  # half of the done-markers
    (3, "check_and_mutate", 1, 1.0, False),
    (3, "mutate", 0, 0.3, False),
    (4, "mutate", 0, 0.7, False),
]


@pytest.mark.parametrize(("layer", "write", "number", "part", "wasted"), DEATHS)
def test_a_worker_killed_anywhere_leaves_what_the_next_one_completes(
    undisturbed: dict[bytes, object],
    tmp_path: Path,
    layer: int,
    write: str,
    number: int,
    part: float,
    wasted: bool,
) -> None:
    config = write_world(WORLD, tmp_path)
    table = SqliteTable("t", tmp_path / "tables")
    graph = create_chunked_graph(table, config)
    for below in range(2, layer):
        build(graph, config, below, graph.grid.coordinates(below))
    worker = processes.Process(target=build_and_die, args=(table, config, layer, write, number, part))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    build_all(graph, config)
    assert stored_shape(graph) == expected_shape(WORLD)
    assert (nodes_of(table) == undisturbed) != wasted


def test_two_processes_that_build_the_same_layer_make_one_set_of_nodes(new_table: Table, tmp_path: Path) -> None:
    config = write_world(WORLD, tmp_path)
    graph = create_chunked_graph(new_table, config)
    for layer in (2, 3):
        workers = [
            processes.Process(target=build_layer, args=(new_table, config, layer, order, 4)) for order in range(2)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0, 0]
    build_all(graph, config)
    assert stored_shape(graph) == expected_shape(WORLD)


def test_a_second_run_writes_nothing_new(new_table: Table, tmp_path: Path) -> None:
    config = write_world(WORLD, tmp_path)
    graph = create_chunked_graph(new_table, config)
    build_all(graph, config)
    before = dump(new_table)
    build_all(graph, config)
    assert dump(new_table) == before
    for layer in range(2, graph.n_layers + 1):
        build(graph, config, layer, graph.grid.coordinates(layer), again=True)
    assert dump(new_table) == before


def test_whoever_loses_the_race_uses_the_winners_ids(new_table: Table, tmp_path: Path) -> None:
    graph = create_chunked_graph(new_table, write_world(WORLD, tmp_path))
    chunk = int(graph.layout.chunk_ids(2, (1, 0, 0)))
    need = IdNeed(chunk, ((chunk, 4),), not_before=0, digest="d")
    (winner,) = reserve_ids(graph, 2, [need], [None])
    (loser,) = reserve_ids(graph, 2, [need], [None])
    assert loser == winner
    assert read_task_rows(graph, 2, np.array([chunk], np.uint64))[0].reservation == winner
    assert winner.node_ids(graph).tolist() == [chunk | segment for segment in (1, 2, 3, 4)]


def test_ids_reserved_for_another_input_are_not_used(new_table: Table, tmp_path: Path) -> None:
    graph = create_chunked_graph(new_table, write_world(WORLD, tmp_path))
    chunk = int(graph.layout.chunk_ids(2, (1, 0, 0)))
    stored = reserve_ids(graph, 2, [IdNeed(chunk, ((chunk, 4),), 0, "d")], [None])
    for changed in (IdNeed(chunk, ((chunk, 5),), 0, "d"), IdNeed(chunk, ((chunk, 4),), 0, "e")):
        with pytest.raises(ConflictError, match=r"chunk \(1, 0, 0\) of layer 2 .* another input"):
            reserve_ids(graph, 2, [changed], stored)


def test_a_clock_that_is_behind_makes_no_parent_older_than_its_children(
    new_table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph: ChunkedGraph = create_chunked_graph(new_table, write_world(WORLD, tmp_path))
    chunk = int(graph.layout.chunk_ids(3, (0, 0, 0)))
    monkeypatch.setattr(reservations, "now", lambda: 1_000)
    (reservation,) = reserve_ids(graph, 3, [IdNeed(chunk, ((chunk, 1),), 5_000, "d")], [None])
    assert reservation.timestamp == 5_000
