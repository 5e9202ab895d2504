"""How long a tick takes that looks for stuck operations, in a log of 10^6 rows. Both backends; prints a table.

python -m benchmarks.stuck_scan [ROWS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline.operations.log import OperationStatus
from sv_pipeline.operations.unfinished import find_unfinished
from sv_pipeline.operations.writing import OperationRow
from sv_pipeline.recovery import foreign
from sv_pipeline.table import columns, keys, meta
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.interface import RowMutation, Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.servers.bigtable import find_emulator, running_emulator

UNFINISHED, TICKS = 5, 10


def log_rows(n: int) -> Iterator[RowMutation]:
    """Finished operations, with the cells of a split."""
    ids = np.arange(10, dtype=np.uint64)
    done = [
        columns.USER.set("somebody"),
        columns.SOURCE_IDS.set(ids),
        columns.SINK_IDS.set(ids),
        columns.ROOTS.set(ids[:2]),
        columns.OPERATION_STATUS.set(int(OperationStatus.SUCCESS)),
    ]
    for operation in range(1, n + 1):
        yield RowMutation(keys.node_key(operation), done)


def tick(graph: ChunkedGraph) -> tuple[float, int]:
    """Seconds of a tick, and rows of the log that it has not looked at yet."""
    began = time.monotonic()
    ahead = foreign.advance(graph.table).ahead
    found = find_unfinished(graph, foreign.watched(graph.table))
    assert len(found) >= UNFINISHED
    return time.monotonic() - began, ahead


def measure(name: str, table: Table, n: int) -> None:
    """Fill a log, and tick."""
    table.create()
    began = time.monotonic()
    table.mutate(log_rows(n))
    table.increment(keys.OPERATION_COUNTER, columns.COUNTER.key, n)
    filled = time.monotonic() - began
    for _ in range(UNFINISHED):
        OperationRow.create(table, [columns.USER.set("somebody")], {})
    grid = ChunkGrid(Box.of((0, 0, 0), (512, 512, 512)), (256, 256, 512))
    graph = ChunkedGraph(table, meta.TableMeta.__new__(meta.TableMeta), grid, IdLayout(grid.n_layers))
    backlog = []
    while True:
        seconds, ahead = tick(graph)
        backlog.append(seconds)
        if not ahead:
            break
    steady = [tick(graph)[0] for _ in range(TICKS)]
    print(f"{name}: {n:,} rows, filled in {filled:.0f} s")
    for what, times in (("looking at all of it", backlog), ("then", steady)):
        print(f"  {what}: {len(times)} ticks of {statistics.median(times):.3f} s, at most {max(times):.3f} s")
    table.drop()


def main() -> None:
    """Run it."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        measure("sqlite", SqliteTable("log", Path(folder)), n)
    with running_emulator(str(find_emulator())):
        measure("bigtable", BigtableTable("log", "project", "instance"), n)


if __name__ == "__main__":
    main()
