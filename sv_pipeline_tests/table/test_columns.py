"""Columns: every value comes back, kvdbclient and we read each other, and no cell can run code."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from kvdbclient import attributes

from sv_pipeline.errors import CorruptionError
from sv_pipeline.table import columns, keys
from sv_pipeline.table.columns import ArrayColumn, Column
from sv_pipeline.table.interface import Cell, RowView

NOW = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)
IDS = np.array([1, 2**63 + 5, 7], np.uint64)
EDGES = np.array([[1, 2], [2**63 + 5, 7]], np.uint64)
FLOATS = np.array([0.5, np.inf, 1e-30], np.float32)
COORDINATES = np.array([[1, -2, 3], [4, 5, 2**40]], np.int64)

CASES: list[tuple[Column[Any], Any, Any]] = [
    (columns.PARENT, attributes.Hierarchy.Parent, np.uint64(2**63 + 5)),
    (columns.CHILDREN, attributes.Hierarchy.Child, IDS),
    (columns.FORMER_PARENTS, attributes.Hierarchy.FormerParent, IDS),
    (columns.NEW_PARENTS, attributes.Hierarchy.NewParent, IDS),
    (columns.FORMER_IDS, attributes.Hierarchy.FormerIdentity, IDS),
    (columns.NEW_IDS, attributes.Hierarchy.NewIdentity, IDS),
    (columns.cross_edges(3), attributes.Connectivity.CrossChunkEdge[3], EDGES),
    (columns.atomic_cross_edges(19), attributes.Connectivity.AtomicCrossChunkEdge[19], EDGES),
    (columns.FAKE_EDGES, attributes.Connectivity.FakeEdges, EDGES),
    (columns.OLD_FAKE_EDGES, attributes.Connectivity.FakeEdgesCF3, EDGES),
    (columns.SPLIT_EDGES, attributes.Connectivity.SplitEdges, EDGES),
    (columns.AFFINITIES, attributes.Connectivity.Affinity, FLOATS),
    (columns.AREAS, attributes.Connectivity.Area, IDS),
    (columns.COMPACTED_SPLIT_EDGES, attributes.Connectivity.CompactedSplitEdges, EDGES),
    (columns.COMPACTED_AFFINITIES, attributes.Connectivity.CompactedAffinity, FLOATS),
    (columns.COMPACTED_AREAS, attributes.Connectivity.CompactedArea, IDS),
    (columns.LOCK, attributes.Concurrency.Lock, np.uint64(12)),
    (columns.INDEFINITE_LOCK, attributes.Concurrency.IndefiniteLock, np.uint64(12)),
    (columns.VERSION, attributes.TableVersion.Version, "3.1.7"),
    (columns.OPERATION_ID, attributes.OperationLogs.OperationID, np.uint64(12)),
    (columns.UNDO_OPERATION_ID, attributes.OperationLogs.UndoOperationID, np.uint64(12)),
    (columns.REDO_OPERATION_ID, attributes.OperationLogs.RedoOperationID, np.uint64(12)),
    (columns.USER, attributes.OperationLogs.UserID, "zoë"),
    (columns.ROOTS, attributes.OperationLogs.RootID, IDS),
    (columns.SOURCE_IDS, attributes.OperationLogs.SourceID, IDS),
    (columns.SINK_IDS, attributes.OperationLogs.SinkID, IDS),
    (columns.SOURCE_COORDINATES, attributes.OperationLogs.SourceCoordinate, COORDINATES),
    (columns.SINK_COORDINATES, attributes.OperationLogs.SinkCoordinate, COORDINATES),
    (columns.BOUNDING_BOX_OFFSET, attributes.OperationLogs.BoundingBoxOffset, COORDINATES[0]),
    (columns.ADDED_EDGES, attributes.OperationLogs.AddedEdge, EDGES),
    (columns.REMOVED_EDGES, attributes.OperationLogs.RemovedEdge, EDGES),
    (columns.OPERATION_AFFINITIES, attributes.OperationLogs.Affinity, FLOATS),
    (columns.OPERATION_STATUS, attributes.OperationLogs.Status, 3),
    (columns.OPERATION_TIMESTAMP, attributes.OperationLogs.OperationTimeStamp, NOW),
    (columns.OPERATION_EXCEPTION, attributes.OperationLogs.OperationException, "it broke"),
    (columns.CHUNK_LOCK_SCOPE, attributes.OperationLogs.L2ChunkLockScope, IDS),
]
NAMES = [f"{c.key.family}:{c.key.qualifier.decode()}" for c, _, _ in CASES]


@pytest.mark.parametrize(("column", "attribute", "value"), CASES, ids=NAMES)
def test_kvdbclient_and_we_read_each_other(column: Column[Any], attribute: Any, value: Any) -> None:
    assert (column.key.family, column.key.qualifier) == (attribute.family_id, attribute.key)
    for read in (
        attribute.deserialize(column.encode(value)),
        column.decode(attribute.serialize(value)),
        column.decode(column.encode(value)),
    ):
        np.testing.assert_array_equal(read, value)
        assert np.shape(read) == np.shape(value)


def test_the_counter_is_what_an_increment_adds_to() -> None:
    assert columns.COUNTER.key == (attributes.Concurrency.Counter.family_id, attributes.Concurrency.Counter.key)
    assert attributes.Concurrency.Counter.deserialize(columns.COUNTER.encode(258)) == 258
    assert columns.COUNTER.decode(b"\0\0\0\0\0\0\1\2") == 258


def test_only_columns_of_the_layout_are_in_rows_that_pychunkedgraph_reads() -> None:
    ours = {columns.INGEST_RESERVATION.key, columns.INGEST_DONE.key, columns.INGEST_FAILED.key}
    ours |= {columns.BLOCK_COUNTS.key, columns.BLOCK_STATES.key, columns.COUNTS_KEPT.key}
    for name in columns.__all__:
        column = getattr(columns, name)
        if isinstance(column, Column) and column.key not in ours:
            attributes.from_key(column.key.family, column.key.qualifier)


@given(stn.arrays(np.uint64, st.integers(0, 50)))
def test_children_come_back(ids: np.ndarray) -> None:
    decoded = columns.CHILDREN.decode(columns.CHILDREN.encode(ids))
    assert decoded.dtype == np.uint64
    np.testing.assert_array_equal(decoded, ids)


@pytest.mark.parametrize("column", [columns.CHILDREN, columns.FORMER_IDS, columns.cross_edges(2), columns.FAKE_EDGES])
def test_nothing_is_an_array_too(column: ArrayColumn[np.uint64]) -> None:
    decoded = column.decode(column.encode([]))
    assert decoded.shape == ((0,) if column.codec.columns is None else (0, 2))
    assert decoded.dtype == np.uint64


def test_lists_and_slices_are_encoded_as_arrays() -> None:
    assert columns.ROOTS.decode(columns.ROOTS.encode([1, 2])).tolist() == [1, 2]
    assert columns.ROOTS.decode(columns.ROOTS.encode(IDS[::2])).tolist() == IDS[::2].tolist()
    assert columns.FAKE_EDGES.decode(columns.FAKE_EDGES.encode(EDGES[:, ::-1])).tolist() == EDGES[:, ::-1].tolist()
    assert columns.ROOTS.decode(columns.ROOTS.encode(IDS[2:].astype(np.int64))).tolist() == [7]
    with pytest.raises(ValueError, match="negative"):
        columns.ROOTS.encode(np.array([-1]))
    with pytest.raises(TypeError, match="cast"):
        columns.ROOTS.encode(np.array([0.5]))


def test_compressed_cells_of_any_level_and_raw_ones_are_read() -> None:
    raw = np.arange(1_000, dtype="<u8").tobytes()
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=False)
    frames = [zstandard.ZstdCompressor(level=level).compress(raw) for level in (-5, 3, 22)]
    for data in [raw, *frames, compressor.compress(raw)]:
        np.testing.assert_array_equal(columns.CHILDREN.decode(data), np.arange(1_000))


@pytest.mark.parametrize(
    ("column", "data"),
    [
        (columns.PARENT, b"123"),
        (columns.CHILDREN, b"1234567"),
        (columns.CHILDREN, b"\x28\xb5\x2f\xfdbroken"),
        (columns.FAKE_EDGES, bytes(24)),
        (columns.LOCK, b"no number"),
        (columns.COUNTER, b""),
        (columns.INGEST_DONE, b"{"),
        (columns.OPERATION_STATUS, b"broken"),
        (columns.OPERATION_STATUS, pickle.dumps("text")),
        (columns.OPERATION_TIMESTAMP, pickle.dumps(5)),
    ],
)
def test_bytes_that_cannot_be_a_value_are_corruption(column: Column[Any], data: bytes) -> None:
    with pytest.raises(CorruptionError):
        column.decode(data)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1 / 0",)


@pytest.mark.parametrize("column", [columns.OPERATION_STATUS, columns.OPERATION_TIMESTAMP])
def test_a_pickle_cannot_run_code(column: Column[Any]) -> None:
    with pytest.raises(CorruptionError, match=r"builtins\.eval"):
        column.decode(pickle.dumps(Malicious()))


def test_times_of_older_rows_are_read() -> None:
    nanoseconds = pytest.importorskip("google.api_core.datetime_helpers").DatetimeWithNanoseconds
    stored = pickle.dumps(nanoseconds(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC))
    assert columns.OPERATION_TIMESTAMP.decode(stored) == NOW
    pytz = pytest.importorskip("pytz")
    assert columns.OPERATION_TIMESTAMP.decode(pickle.dumps(NOW.replace(tzinfo=pytz.utc))) == NOW


def test_cross_edges_exist_for_twenty_layers() -> None:
    assert columns.cross_edges(5) is columns.cross_edges(5)
    for layer in (-1, columns.MAX_LAYERS):
        with pytest.raises(ValueError, match="no cross edge column"):
            columns.cross_edges(layer)


# -- rows -------------------------------------------------------------------------------------------------------------


def rows_with(column: Column[Any], values: dict[int, list[Any]]) -> dict[bytes, RowView]:
    return {
        keys.node_key(node): {column.key: [Cell(100 - i, column.encode(v)) for i, v in enumerate(versions)]}
        for node, versions in values.items()
    }


def test_a_column_is_read_out_of_a_row() -> None:
    row = rows_with(columns.PARENT, {1: [7, 5]})[keys.node_key(1)]
    assert columns.PARENT.newest(row) == 7
    assert columns.PARENT.history(row) == [(100, 7), (99, 5)]
    assert columns.CHILDREN.newest(row) is None
    assert columns.PARENT.newest(None) is None
    assert columns.PARENT.history(None) == []


def test_parents_of_many_nodes_are_one_array() -> None:
    rows = rows_with(columns.PARENT, {1: [2**63 + 5, 9], 3: [8]})
    wanted = keys.node_keys([3, 1, 2, 1])
    assert columns.newest_ids(columns.PARENT, rows, wanted).tolist() == [8, 2**63 + 5, 0, 2**63 + 5]
    assert columns.newest_timestamps(columns.PARENT, rows, wanted).tolist() == [100, 100, -1, 100]
    assert columns.newest_ids(columns.PARENT, {}, []).shape == (0,)


def test_arrays_of_many_nodes_are_joined() -> None:
    rows = rows_with(columns.cross_edges(2), {1: [EDGES, EDGES[:0]], 3: [EDGES[:1]], 4: [EDGES[:0]]})
    values, offsets = columns.newest_arrays(columns.cross_edges(2), rows, keys.node_keys([1, 2, 3, 4]))
    assert offsets.tolist() == [0, 2, 2, 3, 3]
    np.testing.assert_array_equal(values, np.concatenate([EDGES, EDGES[:1]]))
    empty = columns.newest_arrays(columns.CHILDREN, {}, [])
    assert (empty.values.shape, empty.offsets.tolist(), empty.lengths.tolist()) == ((0,), [0], [])
