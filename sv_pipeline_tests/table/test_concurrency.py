"""Several processes on one table, and a process that is killed: nothing is given twice, nothing is half there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from sv_pipeline.table.interface import CellMatch, ColumnKey, RowKeyRange, RowMutation, SetCell, Table
from sv_pipeline.table.sqlite.table import SqliteTable

COUNTER = ColumnKey("1", b"counter")
OWNER = ColumnKey("0", b"owner")
COLUMNS = [ColumnKey("0", b"%d" % i) for i in range(4)]
EVERYTHING = [RowKeyRange(b"", b"\xff")]

PROCESSES = 3
spawn = multiprocessing.get_context("spawn")


def count(table: Table, times: int) -> list[int]:
    return [table.increment(b"i", COUNTER, 1) for _ in range(times)]


def claim(table: Table, rows: int) -> list[int]:
    """Rows that this process was the first to claim."""
    me = b"%d" % os.getpid()
    return [
        i
        for i in range(rows)
        if not table.check_and_mutate(b"row%03d" % i, [CellMatch(OWNER)], if_unmatched=[SetCell(OWNER, me)])
    ]


def write_rows(table: Table, first: int) -> None:
    table.mutate(RowMutation(b"%06d" % i, [SetCell(COLUMNS[0], b"x", 1)]) for i in range(first, first + 3_000))


def in_processes(work: Callable[..., list[int]], table: Table, argument: int) -> list[list[int]]:
    with ProcessPoolExecutor(PROCESSES, mp_context=spawn) as pool:
        return [f.result() for f in [pool.submit(work, table, argument) for _ in range(PROCESSES)]]


def test_processes_never_get_the_same_number(table: Table) -> None:
    numbers = [n for part in in_processes(count, table, 50) for n in part]
    assert sorted(numbers) == list(range(1, 50 * PROCESSES + 1))


def test_threads_never_get_the_same_number(table: Table) -> None:
    with ThreadPoolExecutor(4) as pool:
        numbers = [n for part in pool.map(partial(count, table), [25] * 4) for n in part]
    assert sorted(numbers) == list(range(1, 101))


def test_exactly_one_process_wins_each_row(table: Table) -> None:
    won = in_processes(claim, table, 40)
    assert sorted(i for part in won for i in part) == list(range(40))


def test_threads_read_and_write_together(table: Table) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(partial(write_rows, table), [0, 3_000, 6_000]))
        assert all(n == 9_000 for n in pool.map(lambda _: len(list(table.scan(EVERYTHING))), range(4)))


# -- SQLite: the process itself is the server -------------------------------------------------------------------------


def write_rounds(table: Table, acknowledged: Path) -> None:
    """Write all rows again and again, four equal cells each; note each round that has returned."""
    for number in range(1, 10_000):
        value = b"%06d" % number
        table.mutate(RowMutation(b"%04d" % i, [SetCell(c, value, number) for c in COLUMNS]) for i in range(5_000))
        with acknowledged.open("ab") as file:
            file.write(value)


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.23])
def test_a_process_killed_while_it_writes_leaves_whole_rows_and_all_that_was_acknowledged(
    sqlite: SqliteTable, tmp_path: Path, delay: float
) -> None:
    acknowledged = tmp_path / "acknowledged"
    writer = spawn.Process(target=write_rounds, args=(sqlite, acknowledged), daemon=True)
    writer.start()
    while not acknowledged.exists():
        assert writer.is_alive()
        time.sleep(0.01)
    time.sleep(delay)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    last = int(acknowledged.read_bytes()[-6:])
    rows = dict(sqlite.scan(EVERYTHING, newest_only=True))
    assert len(rows) == 5_000
    for row in rows.values():
        (value,) = {cell.value for (cell,) in row.values()}
        assert len(row) == len(COLUMNS)
        assert int(value) >= last
    write_rows(sqlite, 0)  # and nothing is locked


def test_a_forked_child_and_its_parent_share_a_table(sqlite: SqliteTable) -> None:
    count(sqlite, 1)
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("fork")) as pool:
        futures = [pool.submit(count, sqlite, 100) for _ in range(PROCESSES)]
        numbers = count(sqlite, 100)
        sqlite.close()  # the parent's last connection: the children go on
        for future in futures:
            numbers += future.result()
    assert sorted(numbers) == list(range(2, 100 * (PROCESSES + 1) + 2))
    assert count(sqlite, 1) == [100 * (PROCESSES + 1) + 2]


def test_a_fork_while_threads_write_harms_nobody(sqlite: SqliteTable) -> None:
    done = threading.Event()
    written: list[int] = []

    def keep_counting() -> None:
        while not done.is_set():
            written.extend(count(sqlite, 5))

    thread = threading.Thread(target=keep_counting)
    thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        thread.join()
    assert count(sqlite, 1) == [len(written) + 1]
