"""Making and opening graphs."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from sv_pipeline.errors import ConfigError, ConflictError, InputError, NotFoundError
from sv_pipeline.graph.chunked_graph import create_chunked_graph, open_chunked_graph
from sv_pipeline.table.interface import Table
from sv_pipeline.table.meta import TABLE_VERSION, read_version, write_version
from sv_pipeline_tests.graph.worlds import random_world, write_world

WORLD = random_world((5, 3, 2), 0)


def test_a_graph_that_was_made_can_be_opened(new_table: Table, tmp_path: Path) -> None:
    config = write_world(WORLD, tmp_path)
    made = create_chunked_graph(new_table, config)
    opened = open_chunked_graph(new_table)
    assert (opened.grid, opened.layout, opened.meta) == (made.grid, made.layout, made.meta)
    assert opened.layout == WORLD.layout
    assert opened.edges_url == f"file://{tmp_path}/ws/edges/"
    assert read_version(new_table) == TABLE_VERSION


def test_a_graph_can_be_sent_to_another_process(new_table: Table, tmp_path: Path) -> None:
    graph = create_chunked_graph(new_table, write_world(WORLD, tmp_path))
    copy = pickle.loads(pickle.dumps(graph))
    assert (copy.table.name, copy.grid, copy.meta) == (graph.table.name, graph.grid, graph.meta)
    copy.table.close()


def test_an_existing_graph_is_never_replaced(new_table: Table, tmp_path: Path) -> None:
    config = write_world(WORLD, tmp_path)
    create_chunked_graph(new_table, config)
    with pytest.raises(ConflictError, match="graph 'world' exists already"):
        create_chunked_graph(new_table, config)


def test_a_table_whose_maker_died_before_the_meta_is_completed(new_table: Table, tmp_path: Path) -> None:
    config = write_world(WORLD, tmp_path)
    new_table.create()
    with pytest.raises(NotFoundError):
        open_chunked_graph(new_table)
    create_chunked_graph(new_table, config)
    open_chunked_graph(new_table)


def test_nothing_is_made_without_a_watershed(new_table: Table, tmp_path: Path) -> None:
    config = write_world(WORLD, tmp_path)
    (tmp_path / "ws" / "info").unlink()
    with pytest.raises(InputError, match="no volume at"):
        create_chunked_graph(new_table, config)
    assert not new_table.exists()


def test_a_table_of_another_major_version_is_refused(new_table: Table, tmp_path: Path) -> None:
    create_chunked_graph(new_table, write_world(WORLD, tmp_path))
    write_version(new_table, "2.17.0")
    with pytest.raises(ConfigError, match=r"version 2\.17\.0"):
        open_chunked_graph(new_table)
