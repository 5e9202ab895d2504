"""An edit that is killed anywhere leaves what recovery needs: scope before locks, and a write set that undoes it."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from sv_pipeline import edits
from sv_pipeline.errors import UnavailableError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.operations.ownership import open_key
from sv_pipeline.operations.writing import Scope, own_key, scope_in, write_set_in
from sv_pipeline.table import columns, keys, locks
from sv_pipeline.table.interface import DeleteCells, RowKeyRange, RowMutation, RowView, Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline_tests.edits.conftest import Edited, merge_request, split_request
from sv_pipeline_tests.edits.model import stored_components, verify_rows

EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)
MAX_WRITES = 60
SUBSETS = 4
"""How many subsets of changes that are sent together are tried; the first is empty."""


@pytest.fixture
def new_table(tmp_path: Path) -> Iterator[Table]:
    """A backend whose table outlives a killed process as a file."""
    table = SqliteTable("t", tmp_path)
    yield table
    table.close()


class Killed(BaseException):
    """Nothing that handles errors sees it, and no request of the dead gets through."""


def killed_after(graph: ChunkedGraph, writes: int, edit: Callable[[ChunkedGraph], object], seed: int = 0) -> bool:
    """Run an edit on a table that is cut off after so many writes; False if it came to its end.

    Of changes that are sent together with the last breath, a random subset arrives.
    """
    table = SqliteTable(graph.table.name, graph.table.folder)  # type: ignore[attr-defined]
    left = [writes]

    def cut_off(name: str, cost: int) -> None:
        method = getattr(table, name)

        def call(*args: object, **kwargs: object) -> object:
            if threading.current_thread().name.startswith("beat of"):  # it beats at any time, and dies without a word
                if left[0] < 0:
                    raise UnavailableError("the process is dead", remedy="none")
                return method(*args, **kwargs)
            if 0 <= left[0] < cost:
                left[0] = -1
                if name == "at_once":
                    chosen = random.Random(1000 * seed + writes)
                    method([change for change in args[0] if seed and chosen.random() < 0.5])  # type: ignore[attr-defined]
            if left[0] < 0:
                raise Killed
            left[0] -= cost
            return method(*args, **kwargs)

        setattr(table, name, call)

    for name, cost in {
        "mutate": 1,
        "increment": 1,
        "check_and_mutate": 1,
        "increment_many": 1,
        "check_and_mutate_many": 1,
        "at_once": 1,
        "read_rows": 0,
        "scan": 0,
    }.items():
        cut_off(name, cost)
    try:
        edit(replace(graph, table=table))
    except Killed:
        return True
    finally:
        table.close()
    return False


def expire_locks(table: Table) -> None:
    for key, _ in list(table.scan([EVERYTHING], [columns.LOCK.key])):
        table.mutate([RowMutation(key, [DeleteCells(columns.LOCK.key)])])


def open_row(table: Table, operation_id: int) -> RowView | None:
    key = open_key(operation_id)
    return table.read_rows([key]).get(key)


def read_scope(table: Table, operation_id: int) -> Scope | None:
    return scope_in(open_row(table, operation_id), operation_id)


def put_back(graph: ChunkedGraph, operation_id: int) -> None:
    """Take out the cells of an operation, then its locks, then its scope: what recovery's cleanup comes to."""
    table = graph.table
    scope = read_scope(table, operation_id)
    timestamp, cells = write_set_in(open_row(table, operation_id), operation_id)
    table.mutate(RowMutation(key, [DeleteCells(column, timestamp)]) for column, found in cells.items() for key in found)
    for root in (*scope.roots, *scope.new_roots) if scope else ():
        locks.unlock_indefinitely(table, keys.node_key(root), operation_id)
    table.mutate(RowMutation(key, [DeleteCells()]) for key in (own_key(operation_id), open_key(operation_id)))


@pytest.mark.parametrize("kind", ["merge", "merge with an edge of the user", "split"])
def test_killed_at_any_write_an_edit_can_be_put_back(make_graph: Callable[..., Edited], kind: str) -> None:
    edited = make_graph((5, 2, 1), seed=5, objects=0.1 if kind == "split" else 1.0, cross=0.05)
    graph = edited.graph
    if kind == "split":
        request = split_request(*[[sv] for sv in edited.pairs(same=True)[0]])
    else:
        touching = kind == "merge"
        request = next(  # type: ignore[assignment]
            merge_request([a], [b])
            for a, b in edited.pairs(same=False)
            if touching is bool(set(edited.model.edges) & between(edited, a, b))
        )
    before = edited.model.components

    def edit(victim: ChunkedGraph) -> None:
        (edits.split if kind == "split" else edits.merge)(victim, request)  # type: ignore[operator]

    stages = set()
    for writes, seed in itertools.product(range(MAX_WRITES), range(SUBSETS)):
        died = killed_after(graph, writes, edit, seed)
        log = read_operations(graph)
        operation = log[-1] if log else None
        held = {
            operation_id
            for _, row in graph.table.scan([EVERYTHING], [columns.INDEFINITE_LOCK.key])
            for _, operation_id in columns.INDEFINITE_LOCK.history(row)
        }
        if held:
            assert operation is not None
            assert held == {operation.operation_id}
            assert read_scope(graph.table, operation.operation_id) is not None
        expire_locks(graph.table)
        if operation is not None and operation.status is OperationStatus.SUCCESS:
            stages.add("done")
            after = stored_components(graph, edited.world)
            assert after != before
            if not died:
                break
            verify_or_release(graph, operation.operation_id)
            put_back(graph, operation.operation_id)
            graph.table.mutate([RowMutation(keys.node_key(operation.operation_id), [DeleteCells()])])
        elif operation is not None:
            stages.add("writing" if held else "before")
            if not held and operation.status is OperationStatus.CREATED:
                assert stored_components(graph, edited.world) == before
            put_back(graph, operation.operation_id)
        verify_rows(graph)
        assert stored_components(graph, edited.world) == before
    assert stages == {"before", "writing", "done"}


def test_an_answer_that_is_lost_before_the_first_indefinite_lock_leaves_nothing(
    make_graph: Callable[..., Edited], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All changes of one request after the other are made, and the edit learns only that it failed."""
    edited = make_graph((5, 2, 1), seed=5, objects=1.0, cross=0.05)
    graph, table = edited.graph, edited.graph.table
    request = merge_request(*[[sv] for sv in edited.pairs(same=False)[0]])
    names = ("mutate", "check_and_mutate", "increment_many", "check_and_mutate_many", "at_once")
    send = {name: getattr(table, name) for name in names}
    unfinished, failed = False, 0
    for number in range(MAX_WRITES):
        left = [number]

        def lose(name: str, *args: object, left: list[int] = left, **options: object) -> object:
            answer = send[name](*args, **options)
            if not threading.current_thread().name.startswith("beat of"):
                left[0] -= 1
            if left[0] == -1:
                raise UnavailableError("the answer was lost.", remedy="Try again.")
            return answer

        for name in names:
            monkeypatch.setattr(table, name, partial(lose, name))
        with contextlib.suppress(UnavailableError):
            edits.merge(graph, request)
        monkeypatch.undo()
        log = read_operations(graph)
        unfinished = bool(log) and open_row(table, log[-1].operation_id) is not None
        if unfinished and (log[-1].status is not OperationStatus.CREATED):
            break
        failed += 1
        assert not list(table.scan([EVERYTHING], [columns.LOCK.key, columns.INDEFINITE_LOCK.key]))
        for one in log:
            own = table.read_rows([own_key(one.operation_id)]).get(own_key(one.operation_id), {})
            assert {column.qualifier for column in own} <= {b"identity"}, "nothing is left of the plan"
        assert stored_components(graph, edited.world) == edited.model.components
    assert failed >= 4
    assert unfinished
    assert read_scope(table, log[-1].operation_id) is not None


def verify_or_release(graph: ChunkedGraph, operation_id: int) -> None:
    """After SUCCESS only locks and scope may be left."""
    scope = read_scope(graph.table, operation_id)
    assert scope is not None
    assert scope.roots
    assert scope.new_roots


def between(edited: Edited, a: int, b: int) -> set[tuple[int, int]]:
    one, other = edited.model.component_of(a), edited.model.component_of(b)
    return {e for e in edited.model.edges if len({*e} & one) == 1 and len({*e} & other) == 1}
