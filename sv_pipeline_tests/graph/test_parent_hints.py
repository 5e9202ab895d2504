"""Hints of parents: what was read, within bounds, and never more than a guess."""

from __future__ import annotations

import gc
import os
import signal
import weakref
from pathlib import Path

import numpy as np

from sv_pipeline.graph.parent_hints import MAX_HINTS, ParentHints, hints_of
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table.sqlite.table import SqliteTable


def ids(*values: int) -> UInt64Array:
    return np.array(values, np.uint64)


def test_chains_are_followed_as_far_as_they_are_known() -> None:
    hints = ParentHints()
    hints.note(ids(1, 2, 10, 11, 20), ids(10, 11, 20, 0, 30))
    assert hints.above(ids(1, 2, 5)).tolist() == [10, 11, 20, 30]
    hints.note(ids(10), ids(21))
    assert hints.above(ids(1)).tolist() == [10, 21], "what was read last counts"
    hints.note(ids(30), ids(10))
    assert 30 in hints.above(ids(20)).tolist(), "a circle ends"


def test_the_number_of_hints_is_bounded_and_the_latest_stay() -> None:
    hints = ParentHints()
    for start in range(1, 4 * MAX_HINTS, 1000):
        children = np.arange(start, start + 1000, dtype=np.uint64)
        hints.note(children, children + np.uint64(1 << 40))
    assert len(hints._recent) + len(hints._older) <= MAX_HINTS
    assert len(hints.above(children)) == 1000
    assert not len(hints.above(ids(1)))
    hints.note(np.arange(MAX_HINTS, dtype=np.uint64), np.ones(MAX_HINTS, np.uint64))
    assert not len(hints.above(ids(7))), "a read of very many would drive out all others"


def test_hints_live_as_long_as_their_table(tmp_path: object) -> None:
    table = SqliteTable("t", tmp_path)  # type: ignore[arg-type]
    hints_of(table).note(ids(1), ids(2))
    assert hints_of(table).above(ids(1)).tolist() == [2]
    kept = weakref.ref(hints_of(table))
    del table
    gc.collect()
    assert kept() is None


def test_a_process_that_is_forked_while_a_thread_notes_hints_does_not_wait_for_that_thread(tmp_path: Path) -> None:
    table = SqliteTable("t", tmp_path)
    hints_of(table).note(ids(1), ids(2))
    with hints_of(table)._lock:  # as another thread may hold it at that moment
        if (pid := os.fork()) == 0:
            signal.alarm(10)
            hints_of(table).note(ids(3), ids(4))
            os._exit(int(hints_of(table).above(ids(1, 3))[0]))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
    assert hints_of(table).above(ids(1)).tolist() == [2], "the parent keeps its own"
