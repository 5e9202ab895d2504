"""Many byte strings at once, as arrays: common prefixes, and variable-length numbers. Pure; does no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ByteStrings", "varints"]

IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ByteStrings:
    """Byte strings, one per row."""

    rows: ByteArray
    """The bytes of each string, and zeros after its end, shape (n, width)."""
    lengths: IntArray
    """Length of each string in bytes, shape (n,)."""

    @classmethod
    def of(cls, strings: Sequence[bytes] | npt.NDArray[np.bytes_]) -> ByteStrings:
        """Convert a list of strings, or an array of type ``S``, in which strings cannot end with zeros."""
        if isinstance(strings, np.ndarray):
            width = strings.dtype.itemsize
            rows = np.ascontiguousarray(strings).view(np.uint8).reshape(len(strings), width)
            return cls(rows, np.strings.str_len(strings).astype(np.int64))
        lengths = np.fromiter(map(len, strings), np.int64, len(strings))
        rows = np.zeros((len(strings), int(lengths.max(initial=0))), np.uint8)
        rows[np.arange(rows.shape[1]) < lengths[:, None]] = np.frombuffer(b"".join(strings), np.uint8)
        return cls(rows, lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: slice | IntArray) -> ByteStrings:
        return ByteStrings(self.rows[index], self.lengths[index])

    def item(self, index: int) -> bytes:
        """Return one string."""
        return bytes(self.rows[index, : self.lengths[index]])

    @property
    def shared(self) -> IntArray:
        """Length of the common prefix of each string and the one before it, shape (n,); 0 for the first."""
        shared = np.zeros(len(self), np.int64)
        if len(self) > 1 and self.rows.shape[1]:
            differs = self.rows[1:] != self.rows[:-1]
            first = np.where(differs.any(axis=1), differs.argmax(axis=1), self.rows.shape[1])
            shared[1:] = np.minimum(first, np.minimum(self.lengths[1:], self.lengths[:-1]))
        return shared

    def ascends(self, shared: IntArray) -> bool:
        """Return whether each string is greater than the one before it; ``shared`` is the property of that name."""
        if len(self) < 2:
            return True
        # Beyond its end a string counts as smaller than any byte.
        padded = np.column_stack([self.rows, np.zeros(len(self), np.uint8)]).astype(np.int16)
        at = np.arange(1, len(self))
        here = np.where(shared[1:] < self.lengths[1:], padded[at, shared[1:]], -1)
        before = np.where(shared[1:] < self.lengths[:-1], padded[at - 1, shared[1:]], -1)
        return bool((here > before).all())

    def distinct(self) -> tuple[ByteStrings, IntArray]:
        """Return the distinct strings in ascending order, and the index of each string among them, shape (n,)."""
        # Big-endian lengths at the end tell strings apart that differ in zeros at their ends only.
        lengths = self.lengths.astype(">i8").view(np.uint8).reshape(len(self), 8)
        whole = np.ascontiguousarray(np.column_stack([self.rows, lengths]))
        _, first, which = np.unique(
            whole.view(np.dtype((np.void, whole.shape[1]))).ravel(), return_index=True, return_inverse=True
        )
        return self[first], which.astype(np.int64)

    def after(self, shared: IntArray) -> bytes:
        """Return the strings without their first ``shared`` bytes, joined; ``shared`` has shape (n,)."""
        columns = np.arange(self.rows.shape[1])
        kept = (columns >= shared[:, None]) & (columns < self.lengths[:, None])
        return bytes(self.rows[kept])


def varints(numbers: npt.ArrayLike) -> bytes:
    """Encode numbers below 2^63 as base-128 integers, the lowest seven bits first, and join them."""
    values = np.asarray(numbers, np.uint64)
    width = max(1, -(-int(values.max(initial=0)).bit_length() // 7))
    shifts = np.arange(width, dtype=np.uint64) * np.uint64(7)
    left = values[:, None] >> shifts
    groups = (left & np.uint64(127)).astype(np.uint8)
    more = left > np.uint64(127)
    groups[more] |= 128
    used = np.column_stack([np.ones(len(values), bool), left[:, 1:] > 0])
    return bytes(groups[used])
