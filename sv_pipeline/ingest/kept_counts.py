"""The counts of a layer's chunks that are kept in the table, one row for each block of chunks, beside the done-markers.

The done-markers stay the truth. A row of counts never claims more than the markers say, since all that enters it was
read from them; it may lack chunks whose worker died between the markers and the counts. Such a block has an open mark,
so that the next plan scans its markers. All other blocks are never scanned again. ::

    row sv_pipeline:counts:<layer>:<block>
        1:counts        numbers and sums, see `tallies`, and a token that is new with each change
        1:states        state of each chunk
        1:open:<token>  a worker may have written markers that are not counted yet

    worker     open mark -> done-markers -> (read the markers) -> counts and states; its mark is removed with them
    plan       a block with a mark is scanned; the mark is removed when all chunks of the block are done
    purge      open marks, counts removed -> markers removed -> nodes removed -> marks removed

A mark is removed only by its owner, or by a scan that began after the mark was seen and found the block complete.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.backoff import Backoff
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ingest.count_blocks import OPEN, Block, block_numbers, marks_of, n_blocks, positions_in_blocks
from sv_pipeline.ingest.reservations import now, worker_name
from sv_pipeline.ingest.tallies import Markers, Tally
from sv_pipeline.table import keys
from sv_pipeline.table.columns import BLOCK_COUNTS, BLOCK_STATES, COUNTS_KEPT, INGEST_DONE, INGEST_FAILED
from sv_pipeline.table.interface import (
    CellMatch,
    ColumnKey,
    ConditionalMutation,
    DeleteCells,
    RowKeyRange,
    RowMutation,
    RowView,
    SetCell,
)

__all__ = [
    "OpenBlocks",
    "SeenBlocks",
    "block_counts",
    "count_chunks",
    "count_done",
    "forget_layers",
    "layer_tallies",
    "open_blocks",
    "open_layers",
    "read_blocks",
]

ATTEMPTS = 20
PAUSE = Backoff(0.005, 0.25)

logger = logging.getLogger(__name__)
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class OpenBlocks:
    """The open marks of one worker, which are written before its done-markers."""

    mark: ColumnKey
    mutations: list[RowMutation]


@dataclass(frozen=True)
class SeenBlocks:
    """Counts of blocks as a worker has seen them at its start, or has written them."""

    kept: bool
    """Whether every task of the table keeps counts, so that nothing is done in a block without counts."""
    rows: dict[bytes, RowView | None]
    """Row of counts by key; None if there was none."""


# -- workers ----------------------------------------------------------------------------------------------------------


def open_blocks(layer: int, indices: npt.ArrayLike) -> OpenBlocks:
    """Return open marks for the blocks of chunks with these indices; write them before the chunks' markers."""
    column = ColumnKey("1", OPEN + uuid.uuid4().hex[:16].encode())
    cell = SetCell(column, _mark_value())
    return OpenBlocks(column, [RowMutation(keys.counts_key(layer, block), [cell]) for block in block_numbers(indices)])


def read_blocks(
    graph: ChunkedGraph, layer: int, indices: npt.ArrayLike, row_keys: Sequence[bytes], columns: Sequence[ColumnKey]
) -> tuple[SeenBlocks, dict[bytes, RowView]]:
    """Read the counts of the blocks of some chunks, and columns of other rows, in one request."""
    blocks = [keys.counts_key(layer, block) for block in block_numbers(indices)]
    wanted = [*columns, BLOCK_COUNTS.key, BLOCK_STATES.key, COUNTS_KEPT.key]
    rows = graph.table.read_rows([*row_keys, *blocks, keys.COUNTS_SIGN], wanted, newest_only=True)
    kept = rows.pop(keys.COUNTS_SIGN, None) is not None
    return SeenBlocks(kept, {key: rows.pop(key, None) for key in blocks}), rows


def count_done(
    graph: ChunkedGraph,
    layer: int,
    done: Mapping[int, bytes],
    opened: OpenBlocks | None = None,
    seen: SeenBlocks | None = None,
) -> None:
    """Take into the counts the done-markers of some chunks, which were read or written, and remove open marks.

    It costs one request for each block if nobody else has changed the counts since they were ``seen``; nothing if
    they have these chunks already and there are no marks. It may be repeated, and several processes may count the same
    chunks at once. If the counts change too often meanwhile, the marks stay, and the next plan counts the block.

    Parameters
    ----------
    done
        Index of each chunk in the grid of the layer, and its marker as it is stored.
    seen
        The counts as they were before; they are replaced by the new ones.
    """
    marks = [] if opened is None else [opened.mark]
    for block, positions in positions_in_blocks(graph, layer, list(done)):
        if seen is not None and block.key in seen.rows:
            row = seen.rows[block.key]
            tally = block.tally(row) or (Tally.empty(block.size) if seen.kept else None)
            if tally is not None:
                values = [done[index] for index in (positions + block.first).tolist()]
                changed = tally.add(positions, Markers.decode(positions, values, ()))
                if not changed and not marks:
                    continue
                if changed and not len(tally.outdated_examples()) and (new := block.replace(row, tally, marks)):
                    seen.rows[block.key] = new
                    continue
        _count_block(block, positions, marks)


def count_chunks(graph: ChunkedGraph, layer: int, indices: npt.ArrayLike, opened: OpenBlocks | None = None) -> None:
    """Take into the counts what the ingest rows of some chunks say, and remove open marks; see `count_done`.

    Parameters
    ----------
    indices
        Indices of the chunks in the grid of the layer, shape (n,).
    """
    for block, positions in positions_in_blocks(graph, layer, indices):
        _count_block(block, positions, [] if opened is None else [opened.mark])


def _count_block(block: Block, positions: IntArray, marks: list[ColumnKey]) -> None:
    table = block.graph.table
    wanted = [BLOCK_COUNTS.key, BLOCK_STATES.key, INGEST_DONE.key, INGEST_FAILED.key]
    row_keys = block.ingest_keys(positions)
    for attempt in range(1, ATTEMPTS + 1):
        rows = table.read_rows([block.key, *row_keys], wanted, newest_only=True)
        row = rows.pop(block.key, None)
        tally = block.tally(row)
        if tally is None and not _are_kept(block.graph):
            tally, changed = block.scan(), True
        else:
            tally, changed = _updated(block, tally or Tally.empty(block.size), positions, rows)
        if not changed and (row is not None or not tally.done.any()):
            if marks:
                table.mutate([RowMutation(block.key, [DeleteCells(mark) for mark in marks])])
            return
        if block.replace(row, tally, marks):
            return
        time.sleep(PAUSE.jittered(attempt))
    logger.warning("the counts of block %d of layer %d change too often; it stays open", block.number, block.layer)


def _updated(block: Block, tally: Tally, positions: IntArray, rows: dict[bytes, RowView]) -> tuple[Tally, bool]:
    """Add what rows say about the chunks at some positions; return the tally and whether it has changed."""
    table, wanted, changed = block.graph.table, [INGEST_DONE.key, INGEST_FAILED.key], False
    while len(positions):
        markers = block.markers(sorted(rows.items()))
        if tally.is_contradicted(positions, markers):
            return block.scan(), True
        changed |= tally.add(positions, markers)
        positions = tally.outdated_examples()
        rows = table.read_rows(block.ingest_keys(positions), wanted, newest_only=True)
    return tally, changed


# -- plans and looks --------------------------------------------------------------------------------------------------


def layer_tallies(graph: ChunkedGraph, layer: int) -> Iterator[Tally]:
    """Yield the tally of each block of a layer, exactly as the markers say, and store what had to be counted."""
    found, kept = _read_blocks(graph, layer)
    for number in range(n_blocks(graph, layer)):
        block = Block(graph, layer, number)
        row = found.get((layer, number))
        tally = None if marks_of(row) else block.tally(row)
        if tally is None and row is None and kept:
            tally = Tally.empty(block.size)
        yield tally or _recount(block, row)


def _recount(block: Block, row: RowView | None) -> Tally:
    """Scan a block and store its tally; marks that were seen before the scan are removed if the block is complete."""
    for attempt in range(1, ATTEMPTS + 1):
        tally, marks = block.scan(), marks_of(row)
        same = (stored := block.tally(row)) is not None and stored.counts() == tally.counts()
        unchanged = same and np.array_equal(stored.states, tally.states)  # type: ignore[union-attr]
        if block.graph.table.read_only or (unchanged and not (marks and tally.complete)):
            return tally
        if block.replace(row, tally, marks if tally.complete else []):
            return tally
        time.sleep(PAUSE.jittered(attempt))
        row = block.graph.table.read_rows([block.key], newest_only=True).get(block.key)
    return tally


def block_counts(
    graph: ChunkedGraph, layer: int | None = None, *, exact: bool = True
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield layer, index of the first chunk, and counts (see `Tally.counts`) of each block that was begun.

    Nothing is written.

    Parameters
    ----------
    layer
        The only layer to look at; default: all.
    exact
        Whether to scan blocks with open marks. Otherwise chunks that workers have finished in this moment, or before
        they were killed, may be missing.
    """
    found, kept = _read_blocks(graph, layer, counts_only=not exact)
    for each in range(2, graph.n_layers + 1) if layer is None else [layer]:
        numbers: Iterable[int] = [number for of, number in found if of == each]
        if not kept and (numbers or _is_begun(graph, each)):
            numbers = range(n_blocks(graph, each))
        for number in numbers:
            block, row = Block(graph, each, number), found.get((each, number))
            counts = None if exact and marks_of(row) else BLOCK_COUNTS.newest(row)
            if counts is None and (exact or not kept):
                counts = block.scan().counts()
            if counts is not None:
                yield each, block.first, counts


def _read_blocks(
    graph: ChunkedGraph, layer: int | None, *, counts_only: bool = False
) -> tuple[dict[tuple[int, int], RowView], bool]:
    """Read the rows of blocks by (layer, number), in their order, and whether every task of the table keeps counts."""
    ranges = [keys.counts_range()] if layer is None else [keys.counts_range(layer), _SIGN]
    found, kept = {}, False
    columns = [BLOCK_COUNTS.key, COUNTS_KEPT.key] if counts_only else None
    for key, row in graph.table.scan(ranges, columns, newest_only=True):
        if key == keys.COUNTS_SIGN:
            kept = True
        else:
            found[keys.split_counts_key(key)] = row
    return found, kept


_SIGN = RowKeyRange(keys.COUNTS_SIGN, keys.COUNTS_SIGN + b"\0")


# -- removal ----------------------------------------------------------------------------------------------------------


def open_layers(graph: ChunkedGraph, layers: Iterable[int]) -> None:
    """Remove the counts of layers and mark all their blocks. This must precede the removal of their markers."""
    mark = open_blocks(2, []).mark
    changes = [
        SetCell(mark, _mark_value()),
        DeleteCells(BLOCK_COUNTS.key),
        DeleteCells(BLOCK_STATES.key),
    ]
    both: dict[str, Any] = {"any_of": [CellMatch(BLOCK_COUNTS.key)], "if_matched": changes, "if_unmatched": changes}
    blocks = [(layer, number) for layer in layers for number in range(n_blocks(graph, layer))]
    graph.table.check_and_mutate_many([ConditionalMutation(keys.counts_key(*block), **both) for block in blocks])


def forget_layers(graph: ChunkedGraph, layers: Iterable[int]) -> None:
    """Remove the rows of counts of layers whose markers are removed."""
    table = graph.table
    doomed = [key for key, _ in table.scan([keys.counts_range(layer) for layer in layers], newest_only=True)]
    table.mutate(RowMutation(key, [DeleteCells()]) for key in doomed)


# -- helpers ----------------------------------------------------------------------------------------------------------


def _mark_value() -> bytes:
    return json.dumps({"worker": worker_name(), "time": now()}).encode()


def _is_begun(graph: ChunkedGraph, layer: int) -> bool:
    return graph.table.any_row([keys.ingest_range(layer)], [INGEST_DONE.key, INGEST_FAILED.key])


def _are_kept(graph: ChunkedGraph) -> bool:
    return bool(graph.table.read_rows([keys.COUNTS_SIGN], [COUNTS_KEPT.key], newest_only=True))
