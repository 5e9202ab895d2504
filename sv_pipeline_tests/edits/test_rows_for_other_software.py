"""kvdbclient, through which PyChunkedGraph reads and locks, understands every row that an edit leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kvdbclient import BigTableClient, BigTableConfig, attributes

from sv_pipeline import edits
from sv_pipeline.graph.queries import roots
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline_tests.edits.conftest import Edited, merge_request
from sv_pipeline_tests.edits.model import Model
from sv_pipeline_tests.graph.worlds import ingest, random_world
from sv_pipeline_tests.table.conftest import bigtable as bigtable


@pytest.fixture
def edited(new_bigtable: BigtableTable, tmp_path: Path) -> Edited:
    world = random_world((3, 2, 2), 6, objects=0.3, cross=0.03)
    graph, _ = ingest(world, new_bigtable, tmp_path)
    return Edited(graph, world, Model.of(world))


@pytest.fixture
def new_bigtable(bigtable: BigtableTable) -> BigtableTable:
    bigtable.drop()
    return bigtable


@pytest.fixture
def client(edited: Edited) -> Iterator[BigTableClient]:
    config = BigTableConfig(PROJECT="project", INSTANCE="instance", ADMIN=False, READ_ONLY=False)
    client = BigTableClient(edited.graph.table.name, config=config)
    yield client
    client.close()


def test_every_row_of_every_kind_of_edit_can_be_read_whole(edited: Edited, client: BigTableClient) -> None:
    merge = edited.merge(*edited.pairs(same=False)[0])
    split = edited.split(*edited.pairs(same=True)[0])
    undo = edits.undo(edited.graph, merge.operation_id, "tester")
    with pytest.raises(edits.EditRefused) as refused:
        edits.merge(edited.graph, merge_request([0], [1]))

    rows = client.read_nodes(start_id=np.uint64(1 << 56), end_id=np.uint64((edited.graph.n_layers + 1) << 56))
    for edit in (merge, split, undo):
        for root in edit.roots.tolist():
            row = rows[np.uint64(root)]
            assert row[attributes.Hierarchy.FormerParent][-1].value.tolist() == edit.old_roots.tolist()
            assert int(row[attributes.OperationLogs.OperationID][-1].value) == edit.operation_id
            created = row[attributes.Hierarchy.Child][0].timestamp
            assert int(created.timestamp() * 1000 + 0.5) == edit.logical_time
        for root in edit.old_roots.tolist():
            assert rows[np.uint64(root)][attributes.Hierarchy.NewParent][0].value.tolist() == edit.roots.tolist()

    ids = [edit.operation_id for edit in (merge, split, undo)] + [refused.value.operation_id]
    log = client.read_log_entries([np.uint64(i) for i in ids])
    status = [int(log[np.uint64(i)][attributes.OperationLogs.Status]) for i in ids]
    assert status == [0, 0, 0, 2]
    assert log[np.uint64(ids[0])][attributes.OperationLogs.AddedEdge].tolist() == merge.edges.tolist()
    assert log[np.uint64(ids[1])][attributes.OperationLogs.RemovedEdge].tolist() == split.edges.tolist()
    assert int(log[np.uint64(ids[2])][attributes.OperationLogs.UndoOperationID]) == merge.operation_id


def test_an_object_that_kvdbclient_has_locked_is_refused(edited: Edited, client: BigTableClient) -> None:
    source, sink = edited.pairs(same=False)[0]
    root = np.uint64(roots(edited.graph, [source])[0])
    assert client.lock_root(root, np.uint64(4711))
    with pytest.raises(edits.EditRefused, match="operation 4711"):
        edits.merge(edited.graph, merge_request([source], [sink]), patience=edits.LockPatience(0))
    assert client.unlock_root(root, np.uint64(4711))
    edit = edited.merge(source, sink)
    assert not client.lock_root(root, np.uint64(4712)), "a root that was replaced cannot be locked"
    assert client.lock_root(np.uint64(edit.roots[0]), np.uint64(4712)), "the new one can, once the edit is over"
