"""Locks keep edits of one object apart, never those of others, and belong to one operation at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import LockPatience, Reason, merging
from sv_pipeline.edits.plan.roots import RequestRoots
from sv_pipeline.edits.plan.workspace import Workspace
from sv_pipeline.edits.write.locking import EditLocks, lock_roots
from sv_pipeline.errors import CorruptionError
from sv_pipeline.graph.queries import roots
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.operations.writing import OperationRow
from sv_pipeline.table import columns, keys, locks
from sv_pipeline.table.interface import RowKeyRange, Table
from sv_pipeline_tests.edits.conftest import Edited, merge_request

EXPIRY = timedelta(minutes=3)
IMPATIENT = LockPatience(0.0)
EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)


def lock_cells(table: Table) -> dict[bytes, object]:
    return dict(table.scan([EVERYTHING], [columns.LOCK.key, columns.INDEFINITE_LOCK.key]))


@pytest.fixture
def edited(make_graph: Callable[..., Edited]) -> Edited:
    return make_graph(objects=1.0, cross=0.1)


def test_a_locked_object_is_refused_with_the_name_of_the_holder(edited: Edited) -> None:
    source, sink = edited.pairs(same=False)[0]
    root = int(roots(edited.graph, [sink])[0])
    assert locks.lock(edited.graph.table, keys.node_key(root), 4711, EXPIRY)
    before = lock_cells(edited.graph.table)
    with pytest.raises(edits.EditRefused, match=f"root {root} is locked by operation 4711 since 20") as caught:
        edits.merge(edited.graph, merge_request([source], [sink]), patience=IMPATIENT)
    assert caught.value.reason is Reason.LOCKED
    assert lock_cells(edited.graph.table) == before, "the lock of the other root was given back"
    assert locks.unlock(edited.graph.table, keys.node_key(root), 4711)
    edited.merge(source, sink)
    edited.prove()


def test_what_another_operation_writes_is_refused_and_recovery_is_named(edited: Edited) -> None:
    source, sink = edited.pairs(same=False)[0]
    key = keys.node_key(int(roots(edited.graph, [source])[0]))
    assert locks.lock(edited.graph.table, key, 4711, EXPIRY)
    assert locks.lock_all_indefinitely(edited.graph.table, [key], 4711)[0]
    with pytest.raises(edits.EditRefused, match=r"being written by operation 4711 .* recover it"):
        edits.merge(edited.graph, merge_request([source], [sink]), patience=IMPATIENT)


def test_an_expired_lock_can_be_taken_over(edited: Edited) -> None:
    source, sink = edited.pairs(same=False)[0]
    key = keys.node_key(int(roots(edited.graph, [source])[0]))
    long_ago = int(time.time() * 1000) - 4 * 60_000
    assert not edited.graph.table.check_and_mutate(key, [], if_unmatched=[columns.LOCK.set(4711, long_ago)])
    edited.merge(source, sink)
    edited.prove()


def test_waiting_ends_when_the_other_edit_does(edited: Edited) -> None:
    """The root was replaced in the meantime, so the new one is locked."""
    source, sink = edited.pairs(same=False)[0]
    other = next(
        sv
        for sv in edited.world.supervoxels.tolist()
        if not {source, sink} & edited.model.component_of(sv)
        and np.abs(np.diff(edited.graph.layout.coordinates(np.array([sv, sink], np.uint64)), axis=0)).max() <= 3
    )
    old = roots(edited.graph, [source, sink])
    found: list[list[int]] = []

    def look_up() -> np.ndarray:
        if not found:
            found.append(old.tolist())
            edited.merge(source, sink)
            return old
        found.append(sorted(set(roots(edited.graph, [source, sink]).tolist())))
        return np.array(found[-1], np.uint64)

    with lock_roots(edited.graph.table, 999, look_up, EXPIRY, LockPatience(5)) as held:
        assert held.roots.tolist() == found[-1] != old.tolist()
    edited.merge(other, sink)
    edited.prove()


def taken_over(edited: Edited, monkeypatch: pytest.MonkeyPatch, thief: int) -> Callable[[int, int], None]:
    """An edit whose lock expires while it plans, and is taken over by another operation."""
    plan_merge = merging.plan_merge

    def slow_plan(workspace: Workspace, request: edits.MergeRequest) -> object:
        plan = plan_merge(workspace, request)
        for root in workspace.roots.tolist():
            key = keys.node_key(root)
            assert locks.lock(workspace.graph.table, key, thief, timedelta(0) - timedelta(minutes=1))
        return plan

    monkeypatch.setattr(merging, "plan_merge", slow_plan)

    def edit(source: int, sink: int) -> None:
        edits.merge(edited.graph, merge_request([source], [sink]))

    return edit


def test_an_edit_that_was_taken_over_writes_nothing(edited: Edited, monkeypatch: pytest.MonkeyPatch) -> None:
    source, sink = edited.pairs(same=False)[0]
    before = roots(edited.graph, [source, sink])
    edit = taken_over(edited, monkeypatch, thief=4711)
    with pytest.raises(edits.OwnershipLostError):
        edit(source, sink)
    assert roots(edited.graph, [source, sink]).tolist() == before.tolist()
    for root in before.tolist():
        assert locks.holders(edited.graph.table, keys.node_key(root)) == (4711, None), "the thief keeps its locks"
    (row,) = read_operations(edited.graph)
    assert row.status is OperationStatus.EXCEPTION
    assert (row.exception or "").startswith("failed:ownership_lost")
    own = dict(edited.graph.table.scan([keys.prefix_range(b"sv_pipeline:op:")]))
    assert {column.qualifier for found in own.values() for column in found} <= {b"identity"}


def test_an_edit_that_lost_its_locks_says_so_whatever_it_has_read(
    edited: Edited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have read some rows before another edit and some after it, which looks like a damaged table."""
    graph = edited.graph
    config = graph.meta.graph_config._replace(ROOT_LOCK_EXPIRY=timedelta(seconds=0.2))
    source, sink = edited.pairs(same=False)[0]

    def lose_and_fail(workspace: Workspace, request: edits.MergeRequest) -> object:
        for root in workspace.roots.tolist():
            assert locks.lock(graph.table, keys.node_key(root), 4711, timedelta(minutes=-1))
        time.sleep(0.3)
        raise CorruptionError("edges lead out of the object.")

    monkeypatch.setattr(merging, "plan_merge", lose_and_fail)
    with pytest.raises(edits.OwnershipLostError):
        edits.merge(
            replace(graph, meta=replace(graph.meta, graph_config=config)),
            merge_request([source], [sink]),
        )


def test_locks_are_renewed_while_an_edit_works(edited: Edited) -> None:
    found = roots(edited.graph, edited.pairs(same=False)[0])
    short = timedelta(seconds=0.4)
    with lock_roots(edited.graph.table, 7, lambda: np.unique(found), short, IMPATIENT) as held:
        assert isinstance(held, EditLocks)
        time.sleep(0.9)
        assert not locks.lock(edited.graph.table, keys.node_key(int(found[0])), 8, short)
        held.check()
    assert not lock_cells(edited.graph.table)


def test_new_roots_are_born_locked_until_all_is_written(edited: Edited, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who meets the new root through a supervoxel that has switched over already must wait for the others."""
    source, sink = edited.pairs(same=False)[0]
    seen: list[bool] = []
    succeed = OperationRow.succeed

    def look(row: OperationRow, new_roots: UInt64Array, timestamp: int) -> None:
        new = int(roots(edited.graph, [source])[0])
        seen.append(locks.lock(edited.graph.table, keys.node_key(new), 4711, EXPIRY))
        succeed(row, new_roots, timestamp)

    monkeypatch.setattr(OperationRow, "succeed", look)
    edited.merge(source, sink)
    assert seen == [False]
    assert not lock_cells(edited.graph.table)


def test_a_root_that_recovery_took_back_is_refused(edited: Edited, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked up while another edit wrote, gone by the time it is locked."""
    source, sink = edited.pairs(same=False)[0]
    phantom = edited.graph.layout.node_ids(
        edited.graph.layout.chunk_ids(edited.graph.n_layers, [0, 0, 0]),
        edited.graph.layout.max_segment(edited.graph.n_layers),
    )
    look_up = RequestRoots._look_up

    def torn_look_up(self: RequestRoots) -> None:
        look_up(self)
        self._matrix[:1, -1] = phantom

    monkeypatch.setattr(RequestRoots, "_look_up", torn_look_up)
    with pytest.raises(edits.EditRefused, match="is being changed or recovered") as caught:
        edits.merge(edited.graph, merge_request([source], [sink]))
    assert caught.value.reason is Reason.LOCKED
    assert not lock_cells(edited.graph.table)


def test_edits_of_other_objects_do_not_wait(edited: Edited) -> None:
    source, sink = edited.pairs(same=False)[0]
    mine = edited.model.component_of(source) | edited.model.component_of(sink)
    others = np.unique(roots(edited.graph, [sv for sv in edited.world.supervoxels.tolist() if sv not in mine]))
    for root in others.tolist():
        assert locks.lock(edited.graph.table, keys.node_key(root), 4711, EXPIRY)
    edits.merge(edited.graph, merge_request([source], [sink]), patience=IMPATIENT)


def test_the_time_of_a_lock_is_that_of_the_attempt_that_succeeded(
    edited: Edited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt gives a lock back, since it lacks the other; the answer to the second one is lost."""
    table, layout = edited.graph.table, edited.graph.layout
    chunks = layout.chunk_ids(2, np.array([[0, 0, 0], [1, 0, 0]]))
    free, taken = (keys.chunk_lock_key(int(chunk)) for chunk in chunks)
    assert locks.lock(table, taken, 4711, EXPIRY)
    lock_all, attempts = locks.lock_all, []

    def lost(*args: Any, **options: Any) -> list[bool]:
        answers = lock_all(*args, **options)
        attempts.append(answers)
        if len(attempts) == 1:
            locks.unlock(table, taken, 4711)
            time.sleep(0.01)
        return [False] if len(attempts) == 2 else answers

    monkeypatch.setattr(locks, "lock_all", lost)
    held = EditLocks(table, 7, EXPIRY)
    held.lock_chunks(chunks, ["one", "other"], LockPatience(10.0, 0.001))
    assert attempts == [[True, False], [True], [True]]
    rows = table.read_rows([free, taken], [columns.LOCK.key])
    assert held.locked_at() == min(cell.timestamp for row in rows.values() for cell in columns.LOCK.cells(row))
