"""What a look of the edit feed costs beside a short log and a long one, beside reading the log once.

    python -m benchmarks.edit_feed [--operations 1000 100000] [--backend sqlite] [--late 100]

Each log has as many operations that are unfinished for ever, as other software leaves what it has refused. The last
column must not grow with the log.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from sv_pipeline.feed.journal import advance
from sv_pipeline.operations.log import OperationStatus
from sv_pipeline.table import columns, counters, keys
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.columns import COUNTER
from sv_pipeline.table.interface import RowMutation, SetCell, Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.servers.bigtable import find_emulator, running_emulator

LOOKS = 15
FIRST_ROOT = 6 << 56
YEARS_AGO = 1_600_000_000_000


def rows_of(first: int, last: int, late_every: int) -> Iterator[RowMutation]:
    """Operations that replaced the root of the one before, as the log and the rows of roots say it."""
    for operation in range(first, last + 1):
        at = YEARS_AGO + operation
        unfinished = late_every > 0 and operation % late_every == 0
        status = OperationStatus.CREATED if unfinished else OperationStatus.SUCCESS
        roots = np.array([] if unfinished else [FIRST_ROOT + operation], np.uint64)
        cells = [
            columns.OPERATION_STATUS.set(int(status)),
            columns.OPERATION_TIMESTAMP.set(datetime.fromtimestamp(at / 1000, UTC)),
            columns.USER.set("user"),
            columns.ROOTS.set(roots),
        ]
        yield RowMutation(keys.node_key(operation), [SetCell(c.column, c.value, at) for c in cells])
        if not unfinished:
            old = np.array([FIRST_ROOT + operation - 1], np.uint64)
            made = [columns.FORMER_PARENTS.set(old, at), columns.OPERATION_ID.set(operation, at)]
            yield RowMutation(keys.node_key(FIRST_ROOT + operation), made)


def fill(table: Table, count: int, late: int) -> None:
    """A log of so many operations."""
    every = count // late if late else 0
    for first in range(1, count + 1, 5_000):
        table.mutate(list(rows_of(first, min(first + 4_999, count), every)))
    table.increment(keys.OPERATION_COUNTER, COUNTER.key, count)


def median_ms(action: Callable[[], object]) -> float:
    """Milliseconds of one call, the median of some."""
    times = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def add_one(table: Table) -> None:
    """One more finished operation."""
    number = counters.new_operation_id(table)
    table.mutate(list(rows_of(number, number, 0)))


@contextlib.contextmanager
def new_table(backend: str) -> Iterator[Table]:
    """An empty table."""
    name = f"t{uuid.uuid4().hex[:12]}"
    with contextlib.ExitStack() as stack:
        table: Table
        if backend == "sqlite":
            table = SqliteTable(name, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        else:
            stack.enter_context(running_emulator(str(find_emulator())))
            table = BigtableTable(name, "project", "instance")
        table.create()
        stack.callback(table.close)
        yield table


def main() -> None:
    """Measure, and print a line for each log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--backend", choices=["sqlite", "bigtable"], nargs="+", default=["sqlite", "bigtable"])
    parser.add_argument("--late", type=int, default=100, help="number of operations that never finish")
    options = parser.parse_args()
    print("backend   operations  begun in s   op/s  idle look ms  requests  look at 1 new ms  log read ms  look : log")
    for backend in options.backend:
        first = None
        for count in options.operations:
            with new_table(backend) as table:
                fill(table, count, options.late)
                began = time.perf_counter()
                while advance(table, seconds=60).next <= count:
                    pass
                seconds = time.perf_counter() - began
                idle = median_ms(lambda table=table: advance(table))
                before = table.round_trips
                advance(table)
                requests = table.round_trips - before
                news = median_ms(lambda table=table: (add_one(table), advance(table)))
                adding = median_ms(lambda table=table: add_one(table))
                scan = [keys.operation_range()]
                began = time.perf_counter()
                wanted = [columns.OPERATION_STATUS.key]
                sum(1 for _ in table.scan(scan, wanted, newest_only=True))
                log = 1000 * (time.perf_counter() - began)
                first = first or idle
                print(
                    f"{backend:9} {count:10,} {seconds:11.1f} {count / seconds:6.0f} {idle:13.2f} {requests:9} "
                    f"{news - adding:17.2f} {log:12.1f}  1 : {log / idle:,.0f}   ({idle / first:.2f} x the first)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
