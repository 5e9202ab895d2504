"""What can be known to make a commit fail is found before the indefinite locks: the edit ends without effect."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.edits.write.ready import refuse_large_cells
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.operations.refusal import EditRefused
from sv_pipeline.recovery import find_unfinished
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.records import OperationRecord, operation_key
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.table.columns import CHILDREN
from sv_pipeline.table.interface import RowMutation
from sv_pipeline.testing.harness.actors import BROKEN, DONE
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline_tests.recovery.conftest import Theatre


def prove_without_effect(play: Theatre, said: str) -> None:
    """Nothing is locked, written or open, the log says so, and the edit can be made once the cause is gone."""
    assert "has ended without effect" in said
    assert not play.scene.indefinite_locks()
    assert not find_unfinished(play.scene.graph)
    newest = max(read_operations(play.scene.graph), key=lambda one: one.operation_id)
    assert newest.status is OperationStatus.EXCEPTION


def prove_that_it_can_be_made(play: Theatre) -> None:
    assert play.do(**play.request("supervoxel split")) == DONE
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")


def test_a_fork_that_may_not_be_written(theatre: Callable[..., Theatre], gcs_server: GcsControl) -> None:
    play = theatre("sqlite", bucket=gcs_server.new_bucket())
    gcs_server.add_fault(method="POST", match="ocdbt/stage/", status=403)
    try:
        code, said = play.said(**play.request("supervoxel split"))
    finally:
        gcs_server.clear()
    assert code == BROKEN
    assert "access denied" in said
    prove_without_effect(play, said)
    prove_that_it_can_be_made(play)
    assert not [key for key in kv.list_keys(play.scene.graph.watershed_url, "ocdbt/stage/") if "probe" in key]


def test_a_fork_that_is_gone_when_the_plan_is_made(theatre: Callable[..., Theatre]) -> None:
    play = theatre("sqlite")
    folder = Path(ocdbt.fork_folder(play.scene.graph.watershed_url, "stage").removeprefix("file://"))
    result = play.folder / "last words"
    pid = play.start(**play.request("supervoxel split"), failpoint="planned:pause:2", result=str(result))
    deadline = time.monotonic() + 60
    while not find_unfinished(play.scene.graph):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(1.0)
    folder.rename(away := folder.with_name("away"))
    assert play.fork_server.wait(pid) == BROKEN
    shutil.rmtree(folder, ignore_errors=True)
    away.rename(folder)
    prove_without_effect(play, result.read_text())
    prove_that_it_can_be_made(play)


@pytest.mark.parametrize("what", ["record", "fence"])
def test_a_number_that_the_fork_knows_already(theatre: Callable[..., Theatre], what: str) -> None:
    play = theatre("sqlite")
    graph = play.scene.graph
    number = max(one.operation_id for one in read_operations(graph)) + 1
    if what == "fence":
        Fork(graph.watershed_url, "stage").take_fence(number, "another")
    else:
        store = Fork(graph.watershed_url, "stage").store()
        record = OperationRecord(number, (), (0,), 1, 1, "another")
        with store.transaction() as transaction:
            store.kv.with_transaction(transaction).write(operation_key(number), record.encode()).result()
    code, said = play.said(**play.request("supervoxel split"))
    assert code == BROKEN
    assert "'another'" in said
    prove_without_effect(play, said)


def test_a_merge_needs_no_fork(theatre: Callable[..., Theatre], gcs_server: GcsControl) -> None:
    play = theatre("sqlite", bucket=gcs_server.new_bucket())
    gcs_server.add_fault(method="POST", match="ocdbt/stage/", status=403)
    try:
        assert play.do(**play.request("merge")) == DONE
    finally:
        gcs_server.clear()


def test_a_cell_that_no_table_takes() -> None:
    cell = CHILDREN.set(np.arange(1000, dtype=np.uint64), 1)
    size = len(cell.value)
    refuse_large_cells([RowMutation(b"row", [cell])], size)
    with pytest.raises(EditRefused, match="of row row; a cell holds") as refusal:
        refuse_large_cells([RowMutation(b"row", [cell])], size - 1)
    assert refusal.value.reason == "too_large"
