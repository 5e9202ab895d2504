"""Counters: numbers are given once, to us and to PyChunkedGraph's own client alike."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kvdbclient import BigTableClient, BigTableConfig

from sv_pipeline.errors import InputError
from sv_pipeline.ids import IdLayout
from sv_pipeline.table import counters, keys
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.columns import COUNTER
from sv_pipeline.table.interface import Table

LAYOUT = IdLayout(6)
CHUNK = int(LAYOUT.chunk_ids(2, [1, 2, 3]))
ROOT_CHUNK = int(LAYOUT.chunk_ids(6, [0, 0, 0]))


def take(table: Table, chunk_id: int, count: int) -> list[int]:
    first = counters.reserve(table, LAYOUT, chunk_id, count)
    ids: list[int] = counters.node_ids(LAYOUT, chunk_id, first, count).tolist()
    return ids


def test_segments_of_a_chunk_count_from_one(table: Table) -> None:
    assert take(table, CHUNK, 3) == [CHUNK | 1, CHUNK | 2, CHUNK | 3]
    assert take(table, CHUNK, 1) == [CHUNK | 4]
    assert counters.max_segment(table, LAYOUT, CHUNK) == 4


def test_chunks_count_on_their_own(table: Table) -> None:
    other = int(LAYOUT.chunk_ids(2, [1, 2, 4]))
    take(table, CHUNK, 3)
    assert take(table, other, 1) == [other | 1]


def test_root_ids_come_from_256_shards(table: Table) -> None:
    assert counters.segment_step(LAYOUT, ROOT_CHUNK) == 256
    assert counters.reserve(table, LAYOUT, ROOT_CHUNK, 3, shard=5) == 256 + 5
    assert counters.reserve(table, LAYOUT, ROOT_CHUNK, 1, shard=5) == 4 * 256 + 5
    assert counters.reserve(table, LAYOUT, ROOT_CHUNK, 1, shard=0) == 256
    assert counters.node_ids(LAYOUT, ROOT_CHUNK, 261, 3).tolist() == [ROOT_CHUNK | s for s in (261, 517, 773)]
    assert counters.max_segment(table, LAYOUT, ROOT_CHUNK) == 4 * 256 + 5


def test_root_ids_are_never_given_twice(table: Table) -> None:
    with ThreadPoolExecutor(4) as pool:
        ids = [i for part in pool.map(lambda n: take(table, ROOT_CHUNK, n), [1, 2, 3] * 20) for i in part]
    assert len(set(ids)) == len(ids) == 120
    assert len({i % 256 for i in ids}) > 10


def test_a_full_chunk_is_an_error_that_names_it(table: Table) -> None:
    room = LAYOUT.max_segment(2)
    table.increment(keys.counter_key(CHUNK), COUNTER.key, room - 1)
    assert take(table, CHUNK, 1) == [CHUNK | room]
    with pytest.raises(InputError, match=r"chunk \(1, 2, 3\) of layer 2 .* CHUNK_SIZE"):
        take(table, CHUNK, 1)


def test_nothing_cannot_be_reserved(table: Table) -> None:
    with pytest.raises(ValueError, match="0 ids"):
        counters.reserve(table, LAYOUT, CHUNK, 0)


def test_operations_count_from_one(table: Table) -> None:
    assert counters.last_operation_id(table) == 0
    assert [counters.new_operation_id(table) for _ in range(3)] == [1, 2, 3]
    assert counters.last_operation_id(table) == 3


def test_an_unsharded_root_counter_of_an_old_ingest_is_seen(table: Table) -> None:
    table.increment(keys.counter_key(ROOT_CHUNK), COUNTER.key, 77)
    assert counters.max_segment(table, LAYOUT, ROOT_CHUNK) == 77


# -- together with PyChunkedGraph's client ----------------------------------------------------------------------------


@pytest.fixture
def client(bigtable: BigtableTable) -> Iterator[BigTableClient]:
    config = BigTableConfig(PROJECT=bigtable.project, INSTANCE=bigtable.instance, ADMIN=True, READ_ONLY=False)
    client = BigTableClient(bigtable.name, config)
    yield client
    client.close()


def test_our_ids_and_those_of_kvdbclient_never_collide(bigtable: BigtableTable, client: BigTableClient) -> None:
    ids: list[int] = []
    for count in (3, 1, 5):
        ids += take(bigtable, CHUNK, count)
        ids += client.create_node_ids(np.uint64(CHUNK), count).tolist()
    assert sorted(ids) == [CHUNK | s for s in range(1, 19)]
    assert int(client.get_max_node_id(np.uint64(CHUNK))) == CHUNK | counters.max_segment(bigtable, LAYOUT, CHUNK)


def test_root_ids_never_collide_either(bigtable: BigtableTable, client: BigTableClient) -> None:
    ids: list[int] = []
    for shard in (3, 255, 3):
        first = counters.reserve(bigtable, LAYOUT, ROOT_CHUNK, 4, shard=shard)
        ids += counters.node_ids(LAYOUT, ROOT_CHUNK, first, 4).tolist()
        segments = client._get_root_segment_ids_range(np.uint64(ROOT_CHUNK), 4, counter=shard)
        ids += (segments.astype(np.uint64) | np.uint64(ROOT_CHUNK)).tolist()
        ids += client.create_node_ids(np.uint64(ROOT_CHUNK), 2, root_chunk=True).tolist()
    assert len(set(ids)) == len(ids)
    highest = counters.max_segment(bigtable, LAYOUT, ROOT_CHUNK)
    assert int(client.get_max_node_id(np.uint64(ROOT_CHUNK), root_chunk=True)) == ROOT_CHUNK | highest == max(ids)


def test_operation_ids_never_collide_either(bigtable: BigtableTable, client: BigTableClient) -> None:
    ids = [int(i) for _ in range(3) for i in (counters.new_operation_id(bigtable), client.create_operation_id())]
    assert ids == [1, 2, 3, 4, 5, 6]
    assert int(client.get_max_operation_id()) == counters.last_operation_id(bigtable) == 6


def test_supervoxels_of_the_watershed_are_reserved_for_kvdbclient_too(
    bigtable: BigtableTable, client: BigTableClient
) -> None:
    chunk = int(LAYOUT.chunk_ids(1, [1, 2, 3]))
    bigtable.increment(keys.counter_key(chunk), COUNTER.key, 50)
    assert int(client.create_node_id(np.uint64(chunk))) == chunk | 51
    client.set_max_node_id(np.uint64(chunk), np.uint64(chunk | 100))
    assert take(bigtable, chunk, 1)[0] > chunk | 100


def test_an_operation_and_ids_are_reserved_together(table: Table) -> None:
    """A chunk without room gives none, and the others are not held up by it."""
    small = IdLayout(6, 18)
    full = int(small.chunk_ids(2, [0, 0, 0]))
    counters.reserve(table, small, full, small.max_segment(2))
    other, root = int(small.chunk_ids(2, [0, 0, 1])), int(small.chunk_ids(6, [0, 0, 0]))
    assert counters.new_operation(table, small, []) == (1, [])
    operation, (none, first, of_root) = counters.new_operation(table, small, [(full, 1), (other, 2), (root, 2)])
    assert (operation, none, first) == (2, None, 1)
    assert of_root is not None
    assert counters.reserve(table, small, other, 1) == 3
    given = counters.node_ids(small, root, of_root, 2).tolist()
    for _ in range(3):
        given += counters.node_ids(small, root, counters.reserve(table, small, root, 1), 1).tolist()
    assert len(set(given)) == 5
