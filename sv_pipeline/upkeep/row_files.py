"""Files with rows of a table: encodes and decodes them. Knows no graph.

A file is a zstd stream of rows in the order of their keys::

    row     length of the key (4 bytes) | number of cells (4 bytes) | key | cells
    cell    family (1 byte) | length of the qualifier (2 bytes) | time in ms (8 bytes) | length of the value (4 bytes)
            | qualifier | value

Integers are little-endian. The catalogue of a backup holds the SHA-256 of each file.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import zstandard

from sv_pipeline.errors import CorruptionError
from sv_pipeline.table.interface import Cell, ColumnKey, RowView

__all__ = ["RowFile", "row_files", "rows_in"]

FILE_BYTES = 64 << 20
"""Size of a file before compression, at which the next one is begun, in bytes."""
_ROW, _CELL = struct.Struct("<II"), struct.Struct("<cHqI")

Row = tuple[bytes, RowView]


@dataclass(frozen=True)
class RowFile:
    """One file with rows."""

    content: bytes
    rows: int

    @property
    def digest(self) -> str:
        """SHA-256 of the content, as hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()


def row_files(rows: Iterable[Row]) -> Iterator[RowFile]:
    """Encode rows as files; none if there are no rows."""
    buffer, count = bytearray(), 0
    for key, row in rows:
        cells = [(column, cell) for column, found in row.items() for cell in found]
        buffer += _ROW.pack(len(key), len(cells)) + key
        for column, cell in cells:
            buffer += _CELL.pack(column.family.encode(), len(column.qualifier), cell.timestamp, len(cell.value))
            buffer += column.qualifier + cell.value
        count += 1
        if len(buffer) >= FILE_BYTES:
            yield RowFile(zstandard.ZstdCompressor(3).compress(bytes(buffer)), count)
            buffer, count = bytearray(), 0
    if count:
        yield RowFile(zstandard.ZstdCompressor(3).compress(bytes(buffer)), count)


def rows_in(content: bytes, digest: str, place: str) -> Iterator[Row]:
    """Decode a file; raise CorruptionError, which names the place, if it is not the file with this digest."""
    if hashlib.sha256(content).hexdigest() != digest:
        raise CorruptionError(f"{place} is not the file that was written.", remedy="Use another backup.")
    data, at = zstandard.ZstdDecompressor().decompress(content), 0
    while at < len(data):
        key_length, n_cells = _ROW.unpack_from(data, at)
        at += _ROW.size
        key = data[at : at + key_length]
        at += key_length
        row: RowView = {}
        for _ in range(n_cells):
            family, length, time, size = _CELL.unpack_from(data, at)
            at += _CELL.size
            column = ColumnKey(family.decode(), data[at : at + length])
            at += length
            row.setdefault(column, []).append(Cell(time, data[at : at + size]))
            at += size
        yield key, row
