"""What the done-markers say, and how layers are undone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.config import DatasetConfig
from sv_pipeline.errors import ConflictError, InputError, NotReadyError
from sv_pipeline.graph.chunked_graph import ChunkedGraph, create_chunked_graph
from sv_pipeline.ids import IdLayout
from sv_pipeline.ingest import progress
from sv_pipeline.ingest.purge import Reserved
from sv_pipeline.ingest.reservations import IdRange
from sv_pipeline.table import counters, keys
from sv_pipeline.table.columns import INGEST_DONE, OPERATION_STATUS
from sv_pipeline.table.interface import DeleteCells, RowMutation, Table
from sv_pipeline_tests.graph.compare import dump, expected_shape, stored_shape
from sv_pipeline_tests.graph.worlds import build, build_all, random_world, write_world

WORLD = random_world((4, 3, 1), 6, per_chunk=4, objects=0.4, cross=0.2)


@pytest.fixture
def config(tmp_path: Path) -> DatasetConfig:
    return write_world(WORLD, tmp_path)


@pytest.fixture
def graph(new_table: Table, config: DatasetConfig) -> ChunkedGraph:
    return create_chunked_graph(new_table, config)


def test_coordinates_are_done_or_missing(graph: ChunkedGraph, config: DatasetConfig) -> None:
    coordinates = graph.grid.coordinates(2)
    assert progress.missing_coordinates(graph, 2).tolist() == coordinates.tolist()
    build(graph, config, 2, coordinates[2:7])
    missing = np.concatenate([coordinates[:2], coordinates[7:]])
    assert progress.missing_coordinates(graph, 2).tolist() == missing.tolist()


def test_an_unfinished_layer_is_named_with_its_first_missing_chunk(graph: ChunkedGraph, config: DatasetConfig) -> None:
    build(graph, config, 2, graph.grid.coordinates(2)[1:])
    with pytest.raises(NotReadyError, match=r"layer 2 has 1 of 12 chunks unfinished, first \(0, 0, 0\)\. Run layer 2"):
        progress.require_layer_complete(graph, 2)
    build(graph, config, 2, graph.grid.coordinates(2)[:1])
    progress.require_layer_complete(graph, 2)


def test_the_status_adds_up_the_markers_in_one_request(graph: ChunkedGraph, config: DatasetConfig) -> None:
    coordinates = graph.grid.coordinates(2)
    reports = [report for c in coordinates[:5] for report in build(graph, config, 2, c[None])]
    progress.mark_failed(graph, 2, coordinates[4:7], InputError("edge file x is broken."))
    before = graph.table.round_trips
    status = progress.layer_status(graph)
    assert graph.table.round_trips - before == 1
    assert list(status) == list(range(2, graph.n_layers + 1))
    layer = status[2]
    assert (layer.chunks, layer.done, layer.failed, layer.error) == (12, 5, 2, "edge file x is broken.")
    assert layer.nodes == sum(report.nodes for report in reports)
    assert layer.supervoxels == sum(report.supervoxels for report in reports)
    assert layer.throughput is not None
    assert layer.throughput > 0
    assert not layer.complete
    assert (status[3].done, status[3].throughput) == (0, None)


def test_a_failure_is_forgotten_when_the_chunk_is_done(graph: ChunkedGraph, config: DatasetConfig) -> None:
    coordinates = graph.grid.coordinates(2)
    progress.mark_failed(graph, 2, coordinates[:3], ValueError())
    assert progress.layer_status(graph)[2].error == "ValueError"
    build(graph, config, 2, coordinates)
    assert progress.layer_status(graph)[2].failed == 0
    progress.mark_failed(graph, 2, coordinates[:3], ValueError("too late"))
    assert progress.layer_status(graph)[2].error is None


def rows_below(graph: ChunkedGraph, layer: int) -> dict[bytes, object]:
    """All rows but counters, as they are when all layers below ``layer`` are built."""
    return dump(graph.table, without=(b"i",))


@pytest.mark.parametrize("layer", [2, 3, 4])
def test_a_purged_layer_is_as_if_it_had_never_been_built(
    graph: ChunkedGraph, config: DatasetConfig, layer: int
) -> None:
    for below in range(2, layer):
        build(graph, config, below, graph.grid.coordinates(below))
    before = rows_below(graph, layer)
    build_all(graph, config)
    assert rows_below(graph, layer) != before
    progress.purge_layer(graph, layer)
    assert rows_below(graph, layer) == before
    build_all(graph, config)
    assert stored_shape(graph) == expected_shape(WORLD)


def test_an_interrupted_purge_is_completed_by_the_next(
    graph: ChunkedGraph, config: DatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(graph, config, 2, graph.grid.coordinates(2))
    before = rows_below(graph, 3)
    build_all(graph, config)
    calls = []

    def dying(mutations) -> None:  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        type(graph.table).mutate(graph.table, mutations)

    with monkeypatch.context() as patch:
        patch.setattr(graph.table, "mutate", dying)
        with pytest.raises(KeyboardInterrupt):
            progress.purge_layer(graph, 3)
    assert len(progress.missing_coordinates(graph, 3)) == graph.grid.count(3)
    progress.purge_layer(graph, 3)
    assert rows_below(graph, 3) == before


def test_a_graph_with_edits_is_not_purged(graph: ChunkedGraph, config: DatasetConfig) -> None:
    build_all(graph, config)
    graph.table.mutate([RowMutation(keys.node_key(1), [OPERATION_STATUS.set(0)])])
    before = dump(graph.table)
    with pytest.raises(ConflictError, match="lose the edits"):
        progress.purge_layer(graph, 3)
    assert dump(graph.table) == before


def test_a_graph_that_other_software_built_is_not_purged(graph: ChunkedGraph, config: DatasetConfig) -> None:
    build_all(graph, config)
    rows = [key for key, _ in graph.table.scan([keys.ingest_range()], [INGEST_DONE.key])]
    graph.table.mutate(RowMutation(key, [DeleteCells()]) for key in rows)
    with pytest.raises(ConflictError, match="nothing to purge"):
        progress.purge_layer(graph, 2)


def test_a_chunk_is_not_written_again_over_edits(graph: ChunkedGraph, config: DatasetConfig) -> None:
    build(graph, config, 2, graph.grid.coordinates(2))
    graph.table.mutate([RowMutation(keys.node_key(1), [OPERATION_STATUS.set(0)])])
    with pytest.raises(ConflictError, match="lose the edits"):
        build(graph, config, 2, graph.grid.coordinates(2), again=True)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(1, 60), st.integers(1, 5)), max_size=12))
def test_reserved_ids_are_known_by_their_ranges(requests: list[tuple[bool, int, int, int]]) -> None:
    """Ranges of ordinary chunks and of shards of the root chunk, whose ids lie between each other."""
    layout = IdLayout(5)
    ranges, expected = [], set()
    for is_root, which, first, count in requests:
        chunk = int(layout.chunk_ids(5, (0, 0, 0)) if is_root else layout.chunk_ids(3, (which, 0, 0)))
        one = IdRange(chunk, 256 * first + which if is_root else first, count)
        ids = set(counters.node_ids(layout, chunk, one.first, count).tolist())
        if not ids & expected:  # counters never give a number twice
            ranges.append(one)
            expected |= ids
    chunks = [layout.chunk_ids(5, (0, 0, 0)), *layout.chunk_ids(3, [(which, 0, 0) for which in range(4)])]
    candidates = np.concatenate([np.arange(70 * 256, dtype=np.uint64) | chunk for chunk in chunks])
    found = candidates[Reserved(layout, ranges).contains(candidates)]
    assert set(found.tolist()) == expected
