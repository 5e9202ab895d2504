"""Typed columns of the PyChunkedGraph v3 layout and of our own ingest rows; bulk decoding of columns.

Our own columns occur only in our own rows, because PyChunkedGraph fails at a column that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import CorruptionError
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import codecs
from sv_pipeline.table.codecs import ArrayCodec, Codec
from sv_pipeline.table.interface import Cell, ColumnKey, RowView, SetCell

__all__ = [
    "ADDED_EDGES",
    "AFFINITIES",
    "AREAS",
    "BLOCK_COUNTS",
    "BLOCK_STATES",
    "BOUNDING_BOX_OFFSET",
    "CHILDREN",
    "CHUNK_LOCK_SCOPE",
    "COMPACTED_AFFINITIES",
    "COMPACTED_AREAS",
    "COMPACTED_SPLIT_EDGES",
    "COUNTER",
    "COUNTS_KEPT",
    "FAKE_EDGES",
    "FORMER_IDS",
    "FORMER_PARENTS",
    "INDEFINITE_LOCK",
    "INGEST_DONE",
    "INGEST_FAILED",
    "INGEST_RESERVATION",
    "LOCK",
    "MAX_LAYERS",
    "META_KEY",
    "NEW_IDS",
    "NEW_PARENTS",
    "OLD_FAKE_EDGES",
    "OPERATION_AFFINITIES",
    "OPERATION_EXCEPTION",
    "OPERATION_ID",
    "OPERATION_STATUS",
    "OPERATION_TIMESTAMP",
    "PARENT",
    "REDO_OPERATION_ID",
    "REMOVED_EDGES",
    "ROOTS",
    "SINK_COORDINATES",
    "SINK_IDS",
    "SOURCE_COORDINATES",
    "SOURCE_IDS",
    "SPLIT_EDGES",
    "UNDO_OPERATION_ID",
    "USER",
    "VERSION",
    "ArrayColumn",
    "Column",
    "Ragged",
    "atomic_cross_edges",
    "cross_edges",
    "newest_arrays",
    "newest_ids",
    "newest_timestamps",
    "side_by_side",
]

V = TypeVar("V")
Scalar = TypeVar("Scalar", bound=np.generic)

MAX_LAYERS = 20
"""Number of layers for which columns of cross edges exist: 0 to 19."""


@dataclass(frozen=True)
class Column(Generic[V]):
    """A column and the type of its values."""

    key: ColumnKey
    codec: Codec[V]

    def encode(self, value: V) -> bytes:
        """Encode a value."""
        return self.codec.encode(value)

    def decode(self, data: bytes) -> V:
        """Decode bytes; CorruptionError if they are not a valid value."""
        return self.codec.decode(data)

    def set(self, value: V, timestamp: int | None = None) -> SetCell:
        """Return the change that sets a cell to ``value``."""
        return SetCell(self.key, self.codec.encode(value), timestamp)

    def newest(self, row: RowView | None) -> V | None:
        """Return the newest value in a row that was read; None if there is none."""
        cells = row.get(self.key) if row else None
        return self.codec.decode(cells[0].value) if cells else None

    def readable(self, row: RowView | None) -> V | None:
        """Return the newest value in a row that was read; None if there is none, or if it cannot be decoded."""
        try:
            return self.newest(row)
        except CorruptionError:
            return None

    def history(self, row: RowView | None) -> list[tuple[int, V]]:
        """Return all (timestamp, value) pairs in a row that was read, newest first."""
        return [(cell.timestamp, self.codec.decode(cell.value)) for cell in self.cells(row)]

    def cells(self, row: RowView | None) -> list[Cell]:
        """Return the undecoded cells, newest first."""
        return row.get(self.key, []) if row else []


@dataclass(frozen=True)
class ArrayColumn(Column[npt.NDArray[Scalar]]):
    """A column of arrays."""

    codec: ArrayCodec[Scalar]


def _key(family: str, qualifier: str) -> ColumnKey:
    return ColumnKey(family, qualifier.encode())


def _ids(family: str, qualifier: str, *, compressed: bool = False) -> ArrayColumn[np.uint64]:
    return ArrayColumn(_key(family, qualifier), ArrayCodec("<u8", compressed=compressed))


def _edges(family: str, qualifier: str, *, compressed: bool = False) -> ArrayColumn[np.uint64]:
    return ArrayColumn(_key(family, qualifier), ArrayCodec("<u8", 2, compressed))


def _floats(family: str, qualifier: str) -> ArrayColumn[np.float32]:
    return ArrayColumn(_key(family, qualifier), ArrayCodec("<f4"))


def _coordinates(qualifier: str, columns: int | None) -> ArrayColumn[np.int64]:
    return ArrayColumn(_key("2", qualifier), ArrayCodec("<i8", columns))


def _operation(family: str, qualifier: str) -> Column[int]:
    return Column(_key(family, qualifier), codecs.AsciiIdCodec())


# -- hierarchy and lineage --------------------------------------------------------------------------------------------

PARENT: Column[int] = Column(_key("0", "parents"), codecs.UInt64Codec())
"""Parent of a node; each parent over time has a cell."""
CHILDREN = _ids("0", "children", compressed=True)
"""Children of a node; the cell's timestamp is the creation time of the node."""
FORMER_PARENTS = _ids("0", "former_parents")
"""Roots from which a root was made."""
NEW_PARENTS = _ids("0", "new_parents")
"""Roots that replaced a root."""
FORMER_IDS = _ids("0", "former_ids")
"""Supervoxel from which a supervoxel was split."""
NEW_IDS = _ids("0", "new_ids")
"""Supervoxels into which a supervoxel was split."""


@cache
def cross_edges(layer: int) -> ArrayColumn[np.uint64]:
    """Return the column of a node's edges (n, 2) that cross at ``layer``; their first end is the node.

    The second ends are nodes of its own layer or below.
    """
    return _edges("4", f"cross_edges_{_layer(layer)}", compressed=True)


@cache
def atomic_cross_edges(layer: int) -> ArrayColumn[np.uint64]:
    """Return the column of supervoxel edges (n, 2) of a layer 2 node that cross at ``layer``; kept for a year only."""
    return _edges("3", f"atomic_cross_edges_{_layer(layer)}", compressed=True)


def _layer(layer: int) -> int:
    if not 0 <= layer < MAX_LAYERS:
        raise ValueError(f"there is no cross edge column of layer {layer}; layers are 0 to {MAX_LAYERS - 1}")
    return layer


# -- edges made by edits (rows ``f...``) ------------------------------------------------------------------------------

FAKE_EDGES = _edges("4", "fake_edges")
"""Edges that merges added; one cell per edge and edit."""
OLD_FAKE_EDGES = _edges("3", "fake_edges")
"""Column of the same edges in older tables."""
SPLIT_EDGES = _edges("4", "split_edges")
AFFINITIES = _floats("0", "affinities")
AREAS = _ids("0", "areas")
COMPACTED_SPLIT_EDGES = _edges("4", "compacted_split_edges")
COMPACTED_AFFINITIES = _floats("4", "compacted_affinities")
COMPACTED_AREAS = _ids("4", "compacted_areas")

# -- counters, locks, meta --------------------------------------------------------------------------------------------

COUNTER: Column[int] = Column(_key("1", "counter"), codecs.CounterCodec())
LOCK = _operation("0", "lock")
INDEFINITE_LOCK = _operation("0", "indefinite_lock")
META_KEY = _key("0", "meta")
"""A pickle that :mod:`sv_pipeline.table.meta` reads and writes."""
VERSION: Column[str] = Column(_key("0", "version"), codecs.TextCodec())

# -- operation log ----------------------------------------------------------------------------------------------------

OPERATION_ID = _operation("0", "operation_id")
"""Operation that created or replaced a root or supervoxel."""
UNDO_OPERATION_ID = _operation("2", "undo_operation_id")
REDO_OPERATION_ID = _operation("2", "redo_operation_id")
USER: Column[str] = Column(_key("2", "user"), codecs.TextCodec())
ROOTS = _ids("2", "roots")
SOURCE_IDS = _ids("2", "source_ids")
SINK_IDS = _ids("2", "sink_ids")
SOURCE_COORDINATES = _coordinates("source_coords", 3)
SINK_COORDINATES = _coordinates("sink_coords", 3)
BOUNDING_BOX_OFFSET = _coordinates("bb_offset", None)
ADDED_EDGES = _edges("2", "added_edges")
REMOVED_EDGES = _edges("2", "removed_edges")
OPERATION_AFFINITIES = _floats("2", "affinities")
OPERATION_STATUS: Column[int] = Column(_key("0", "operation_status"), codecs.IntPickleCodec())
OPERATION_TIMESTAMP: Column[datetime] = Column(_key("0", "operation_ts"), codecs.TimePickleCodec())
OPERATION_EXCEPTION: Column[str] = Column(_key("0", "operation_exception"), codecs.TextCodec())
CHUNK_LOCK_SCOPE = _ids("0", "l2_chunk_lock_scope")

# -- ingest rows (our own) --------------------------------------------------------------------------------------------

INGEST_RESERVATION: Column[Any] = Column(_key("1", "reservation"), codecs.JsonCodec())
"""Timestamp and id ranges of a chunk's task; written with a put-if-absent."""
INGEST_DONE: Column[Any] = Column(_key("1", "done"), codecs.JsonCodec())
"""Counts, seconds and worker of a chunk's task; written last."""
INGEST_FAILED: Column[Any] = Column(_key("1", "failed"), codecs.JsonCodec())
"""Last error of a chunk's task."""
BLOCK_COUNTS: Column[Any] = Column(_key("1", "counts"), codecs.JsonCodec())
"""Numbers of the done and failed chunks of a block, and sums over their done-markers."""
BLOCK_STATES: ArrayColumn[np.uint8] = ArrayColumn(_key("1", "states"), ArrayCodec("u1", compressed=True))
"""State of each chunk of a block; it changes together with the counts."""
COUNTS_KEPT: Column[Any] = Column(_key("1", "kept"), codecs.JsonCodec())
"""Sign that every task of the table keeps the counts of its blocks."""


# -- cells that belong together ---------------------------------------------------------------------------------------


def side_by_side(row: RowView | None, *columns: ArrayColumn[Any]) -> list[tuple[npt.NDArray[Any], ...]] | None:
    """Group arrays that were written together to columns of one row, newest first; None if they do not fit together.

    Cells are matched by their order in time, not by equal timestamps: kvdbclient reads its clock for each cell, so
    cells of one write may be milliseconds apart.
    """
    histories = [column.history(row) for column in columns]
    if len({len(history) for history in histories}) > 1:
        return None
    groups = [tuple(value for _, value in cells) for cells in zip(*histories, strict=True)]
    return None if any(len({len(value) for value in group}) > 1 for group in groups) else groups


# -- bulk -------------------------------------------------------------------------------------------------------------


class Ragged(NamedTuple):
    """Arrays of many rows in one array; the values of row ``i`` are ``values[offsets[i]:offsets[i + 1]]``."""

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of values of each row, shape (n,)."""
        return self.offsets[1:] - self.offsets[:-1]

    def part(self, rows: slice) -> Ragged:
        """Return neighbouring rows, from ``rows.start`` up to but not including ``rows.stop``."""
        offsets = self.offsets[rows.start : rows.stop + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    @classmethod
    def join(cls, parts: Sequence[Ragged]) -> Ragged:
        """Return the rows of several ragged arrays, at least one, in one."""
        starts = np.cumsum([0, *(part.offsets[-1] for part in parts)])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
        return cls(np.concatenate([part.values for part in parts]), np.concatenate([np.zeros(1, np.int64), *offsets]))


def newest_ids(
    column: Column[int], rows: Mapping[bytes, RowView], keys: Sequence[bytes], *, missing: int = 0
) -> UInt64Array:
    """Return the newest uint64 of a column for each key, shape (n,); ``missing`` where a row has none.

    With the column ``PARENT`` this returns the parents of many nodes at once.
    """
    absent = column.encode(missing)
    name = column.key
    cells = [row[name][0].value if (row := rows.get(key)) and name in row else absent for key in keys]
    return codecs.uint64_values(cells)


def newest_arrays(column: ArrayColumn[Scalar], rows: Mapping[bytes, RowView], keys: Sequence[bytes]) -> Ragged:
    """Return the newest arrays of a column for each key, concatenated; a row without the column counts as empty.

    The values have shape (sum,) or (sum, columns).
    """
    name, codec = column.key, column.codec
    raw = [codec.raw(row[name][0].value) if (row := rows.get(key)) and name in row else b"" for key in keys]
    size = np.dtype(codec.dtype).itemsize * (codec.columns or 1)
    offsets = np.zeros(len(raw) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw)) // size, out=offsets[1:])
    return Ragged(codec.from_raw(b"".join(raw)), offsets)


def newest_timestamps(
    column: Column[Any], rows: Mapping[bytes, RowView], keys: Sequence[bytes]
) -> npt.NDArray[np.int64]:
    """Return the timestamp (ms) of the newest cell of a column for each key, shape (n,); -1 where a row has none."""
    name = column.key
    return np.fromiter(
        (row[name][0].timestamp if (row := rows.get(key)) and name in row else -1 for key in keys), np.int64, len(keys)
    )
