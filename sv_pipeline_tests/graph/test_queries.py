"""What users ask about nodes, against the reference."""

from __future__ import annotations

import re
import uuid
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.errors import InputError, NotFoundError
from sv_pipeline.graph import queries
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import milliseconds
from sv_pipeline.grid import Box
from sv_pipeline.moments import as_date
from sv_pipeline.storage.precomputed import open_volume
from sv_pipeline.table import keys
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.codecs import ArrayCodec
from sv_pipeline.table.columns import CHILDREN, FORMER_PARENTS, NEW_PARENTS, PARENT
from sv_pipeline.table.interface import RowMutation, SetCell, Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline_tests.graph.worlds import CHUNK_SIZE, ingest, random_world
from sv_pipeline_tests.reference import ReferenceHierarchy, expected_hierarchy

WORLD = random_world((5, 3, 2), 2, per_chunk=3, objects=0.4, cross=0.2)
REFERENCE: ReferenceHierarchy = expected_hierarchy(WORLD.active, WORLD.supervoxels, WORLD.layout)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChunkedGraph]:
    """A graph that no test changes."""
    folder = tmp_path_factory.mktemp("world")
    graph, _ = ingest(WORLD, SqliteTable("t", folder / "tables"), folder)
    yield graph
    graph.table.close()


def test_roots_are_the_components_of_the_active_edges(graph: ChunkedGraph) -> None:
    roots = queries.roots(graph, WORLD.supervoxels)
    expected = [REFERENCE.root(int(sv), WORLD.layout) for sv in WORLD.supervoxels]
    pairs = set(zip(roots.tolist(), expected, strict=True))
    assert len(pairs) == len(set(roots.tolist())) == len(set(expected))
    assert (graph.layout.layers(roots) == graph.n_layers).all()
    assert queries.roots(graph, roots).tolist() == roots.tolist()


def test_roots_cost_one_request_per_layer(graph: ChunkedGraph) -> None:
    before = graph.table.round_trips
    queries.roots(graph, np.tile(WORLD.supervoxels, 3))
    assert graph.table.round_trips - before <= graph.n_layers - 1


@pytest.mark.parametrize("stop_layer", [1, 2, 3, 4])
def test_a_stop_layer_gives_the_highest_ancestor_up_to_it(graph: ChunkedGraph, stop_layer: int) -> None:
    found = queries.roots(graph, WORLD.supervoxels, stop_layer=stop_layer)
    expected = [REFERENCE.ancestor(int(sv), stop_layer, WORLD.layout) for sv in WORLD.supervoxels]
    assert graph.layout.layers(found).tolist() == graph.layout.layers(expected).tolist()
    assert len(set(zip(found.tolist(), expected, strict=True))) == len(set(expected))


def test_unknown_ids_are_named_or_zero(graph: ChunkedGraph) -> None:
    known = int(WORLD.supervoxels[0])
    no_root = int(graph.layout.chunk_ids(graph.n_layers, (0, 0, 0))) | 999_999
    for unknown in (known + 1000, 0, 12345, no_root, 2**64 - 1):
        with pytest.raises(NotFoundError, match=f"1 id.*{unknown} "):
            queries.roots(graph, [known, unknown])
        assert queries.roots(graph, [unknown, known], missing_ok=True)[0] == 0
        assert queries.roots(graph, [unknown], stop_layer=2, missing_ok=True).tolist() == [0]
    assert queries.roots(graph, []).shape == (0,)


def test_before_the_ingest_there_was_nothing(graph: ChunkedGraph) -> None:
    root = queries.roots(graph, WORLD.supervoxels[:1])
    made = int(queries.node_timestamps(graph, root)[0])
    assert queries.roots(graph, WORLD.supervoxels[:1], at=made).tolist() == root.tolist()
    assert queries.roots(graph, WORLD.supervoxels[:1], at=made - 1, missing_ok=True).tolist() == [0]
    assert queries.roots(graph, root, at=made - 1, missing_ok=True).tolist() == [0]
    with pytest.raises(NotFoundError, match=re.escape(as_date(made - 1))):
        queries.roots(graph, WORLD.supervoxels[:1], at=made - 1)


def test_before_the_graph_was_made_the_error_says_when_that_was(graph: ChunkedGraph) -> None:
    """As a date, and with what to do; raw milliseconds tell nobody anything."""
    wanted = WORLD.supervoxels[:1]
    (made,) = graph.table.read_rows([keys.META])[keys.META].values()
    for at in (0, 1, "1999-12-31", made[-1].timestamp - 1):
        with pytest.raises(NotFoundError) as error:
            queries.roots(graph, wanted, at=at)
        assert f"is not as old as {as_date(milliseconds(at) or 0)}: it was created on" in error.value.message
        assert not re.search(r"\d{11}", error.value.message)
        assert "later moment" in (error.value.remedy or "")


def test_a_moment_is_rounded_up_to_what_the_table_can_tell_apart() -> None:
    moment = datetime(2026, 1, 1, 0, 0, 0, 1_001, tzinfo=UTC)
    assert milliseconds(moment) == milliseconds(moment.replace(tzinfo=None)) == 1_767_225_600_002
    assert milliseconds(moment - timedelta(microseconds=1)) == 1_767_225_600_001
    assert milliseconds(5) == 5
    assert milliseconds(None) is None


def test_parents_and_children_agree(graph: ChunkedGraph) -> None:
    parents = queries.parents(graph, WORLD.supervoxels)
    below = queries.children(graph, parents)
    for i, supervoxel in enumerate(WORLD.supervoxels):
        assert supervoxel in below.values[below.offsets[i] : below.offsets[i + 1]]
    assert queries.parents(graph, queries.roots(graph, WORLD.supervoxels[:3])).tolist() == [0, 0, 0]


def test_leaves_of_all_roots_are_all_supervoxels(graph: ChunkedGraph) -> None:
    roots = np.unique(queries.roots(graph, WORLD.supervoxels))
    found = queries.leaves(graph, np.concatenate([roots, roots[:2], WORLD.supervoxels[:1]]))
    for i, root in enumerate(roots):
        below = found.values[found.offsets[i] : found.offsets[i + 1]]
        assert (queries.roots(graph, below) == root).all()
    n = int(found.offsets[len(roots)])
    assert sorted(found.values[:n].tolist()) == WORLD.supervoxels.tolist()
    again = queries.leaves(graph, roots[:2]).values
    assert found.values[n:].tolist() == [*again.tolist(), WORLD.supervoxels[0]]


def test_leaves_in_a_box_are_those_of_its_chunks(graph: ChunkedGraph) -> None:
    roots = np.unique(queries.roots(graph, WORLD.supervoxels))
    start = np.asarray(graph.grid.bounds.start)
    box = Box.of(start + np.multiply(CHUNK_SIZE, (1, 0, 1)), start + np.multiply(CHUNK_SIZE, (3, 2, 2)) + (1, 0, 0))
    coordinates = graph.layout.coordinates(WORLD.supervoxels)
    inside = ((coordinates >= (1, 0, 1)) & (coordinates < (4, 2, 2))).all(axis=1)
    assert sorted(queries.leaves(graph, roots, box=box).values.tolist()) == WORLD.supervoxels[inside].tolist()


def test_supervoxels_are_read_at_points(graph: ChunkedGraph) -> None:
    volume = open_volume(graph.watershed_url, writable=True)
    x, y, z = graph.grid.bounds.start
    volume[x : x + 2, y : y + 1, z + 3 : z + 4].write(np.array([7, 8], np.uint64)[:, None, None]).result()
    points = [(x, y, z + 3), (x + 1, y, z + 3), (x, y, z), (x, y, z + 3)]
    assert queries.supervoxels_at(graph, volume, points).tolist() == [7, 8, 0, 7]
    assert queries.supervoxels_at(graph, volume, []).tolist() == []
    for outside in ((x - 1, y, z), graph.grid.bounds.stop):
        with pytest.raises(InputError, match=rf"point \({outside[0]}, .* outside the volume"):
            queries.supervoxels_at(graph, volume, [points[0], outside])


# -- what edits of any software leave ---------------------------------------------------------------------------------


@pytest.fixture
def edited(new_table: Table, tmp_path: Path) -> tuple[ChunkedGraph, int, int, int]:
    """A supervoxel whose root was replaced at time T, in raw cells: graph, supervoxel, old root, new root."""
    graph, _ = ingest(random_world((1, 1, 1), 1, per_chunk=4), new_table, tmp_path)
    supervoxel = int(queries.leaves(graph, [_some_root(new_table)]).values[0])
    (old,) = queries.roots(graph, [supervoxel]).tolist()
    new, time = old + 256 * 1000, int(queries.node_timestamps(graph, [old])[0]) + 10
    raw = ArrayCodec("<u8").encode(queries.children(graph, [old]).values)
    new_table.mutate(
        [
            RowMutation(keys.node_key(new), [SetCell(CHILDREN.key, raw, time), FORMER_PARENTS.set([old], time)]),
            RowMutation(keys.node_key(old), [NEW_PARENTS.set([new], time)]),
            RowMutation(keys.node_key(supervoxel), [PARENT.set(new, time)]),
        ]
    )
    return graph, supervoxel, old, new


def _some_root(table: Table) -> int:
    return next(int(key) for key, _ in table.scan([keys.layer_range(2)], [CHILDREN.key]))


def test_the_root_at_a_moment_is_that_of_the_newest_cell_until_then(edited: tuple[ChunkedGraph, int, int, int]) -> None:
    graph, supervoxel, old, new = edited
    time = int(queries.node_timestamps(graph, [new])[0])
    assert queries.roots(graph, [supervoxel]).tolist() == [new]
    assert queries.roots(graph, [supervoxel], at=time).tolist() == [new]
    assert queries.roots(graph, [supervoxel], at=time - 1).tolist() == [old]


def test_cells_that_are_not_compressed_are_read(edited: tuple[ChunkedGraph, int, int, int]) -> None:
    graph, _, old, new = edited
    assert queries.leaves(graph, [new]).values.tolist() == queries.leaves(graph, [old]).values.tolist()


def test_kvdbclient_reads_what_is_written_here(bigtable_emulator: str, tmp_path: Path) -> None:
    """The library through which PyChunkedGraph reads its tables."""
    kvdbclient = pytest.importorskip("kvdbclient")
    table = BigtableTable(f"t{uuid.uuid4().hex[:8]}", "project", "instance")
    graph, _ = ingest(WORLD, table, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it says that it uses an emulator
        config = kvdbclient.BigTableConfig(PROJECT="project", INSTANCE="instance", ADMIN=False, READ_ONLY=True)
        client = kvdbclient.BigTableClient(table.name, config=config)
    attributes = kvdbclient.attributes
    supervoxels = WORLD.supervoxels
    rows = client.read_nodes(node_ids=supervoxels, properties=attributes.Hierarchy.Parent)
    parents = queries.parents(graph, supervoxels)
    assert [int(rows[sv][0].value) for sv in supervoxels] == parents.tolist()
    everything = client.read_nodes(node_ids=np.unique(parents))
    for node, row in everything.items():
        assert row[attributes.Hierarchy.Child][0].value.tolist() == queries.children(graph, [node]).values.tolist()
    chunk = graph.layout.chunks(supervoxels[:1])
    inside = supervoxels[graph.layout.chunks(supervoxels) == chunk]
    assert client.get_max_node_id(chunk[0]) == inside.max()
    table.drop()
    table.close()
