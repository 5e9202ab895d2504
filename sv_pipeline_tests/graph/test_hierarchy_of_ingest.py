"""The hierarchy that an ingest makes is what follows from the definitions, whatever the batches and the backend."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from sv_pipeline.graph.layers import newest_of_reruns
from sv_pipeline.table import keys
from sv_pipeline.table.columns import CHILDREN, PARENT, Ragged
from sv_pipeline.table.interface import Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline_tests.graph.compare import expected_shape, stored_shape
from sv_pipeline_tests.graph.worlds import World, ingest, random_world
from sv_pipeline_tests.properties import examples

worlds = st.builds(
    random_world,
    st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 3, 1), (3, 2, 1), (3, 3, 2), (5, 1, 2)]),
    st.integers(0, 2**32 - 1),
    per_chunk=st.sampled_from([0.5, 2.0, 4.0]),
    edges_per_supervoxel=st.sampled_from([0.5, 1.0, 2.0]),
    objects=st.sampled_from([0.1, 0.4, 0.8]),
    cross=st.sampled_from([0.05, 0.4]),
)


@examples(25, suppress_health_check=list(HealthCheck))
@given(worlds, st.integers(1, 20))
def test_any_graph_equals_the_reference(world: World, batch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = SqliteTable("t", Path(folder) / "tables")
        graph, _ = ingest(world, table, Path(folder), batch=batch)
        stored, expected = stored_shape(graph), expected_shape(world)
        table.close()
    for part in expected:
        assert stored[part] == expected[part], part


def test_a_graph_of_five_layers_equals_the_reference(new_table: Table, tmp_path: Path) -> None:
    world = random_world((8, 8, 4), 3, per_chunk=3, edges_per_supervoxel=2, objects=0.4, cross=0.2)
    graph, _ = ingest(world, new_table, tmp_path, batch=100)
    stored, expected = stored_shape(graph), expected_shape(world)
    for part in expected:
        assert stored[part] == expected[part], part


def test_skips_of_many_layers_happen_in_these_worlds() -> None:
    """The worlds above are worth nothing if no node ever skips a layer and goes on."""
    world = random_world((8, 8, 4), 3, per_chunk=3, edges_per_supervoxel=2, objects=0.4, cross=0.2)
    steps = [(child[0], parent[0]) for child, parent in expected_shape(world)["parents"].items()]  # type: ignore[attr-defined]
    assert {(2, 4), (2, 5), (3, 5)} <= set(steps)


def test_every_parent_is_younger_than_its_children(new_table: Table, tmp_path: Path) -> None:
    graph, _ = ingest(random_world((3, 3, 1), 5), new_table, tmp_path, batch=3)
    created, parent_of = {}, {}
    for layer in range(1, graph.n_layers + 1):
        for key, row in new_table.scan([keys.layer_range(layer)]):
            if cells := CHILDREN.cells(row):
                created[int(key)] = cells[0].timestamp
            if cells := PARENT.cells(row):
                parent_of[int(key)] = (PARENT.newest(row), cells[0].timestamp)
    for node, (parent, timestamp) in parent_of.items():
        assert timestamp == created[parent] > created.get(node, 0)


def test_of_two_nodes_with_the_same_largest_child_the_later_counts() -> None:
    children = Ragged(np.array([1, 5, 2, 3, 4, 5, 7], np.uint64), np.array([0, 2, 4, 6, 7]))
    assert newest_of_reruns(np.array([10, 11, 12, 13], np.uint64), children).tolist() == [False, True, True, True]
