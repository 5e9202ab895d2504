"""The parts into which the nodes of a graph are divided for verification. This module reads nothing.

Each node row belongs to exactly one part, whether its id makes sense or not::

    layer L (root)      ids cut into ranges          last stage
    layers 5 to L - 1   chunks of layer L - 1        second stage
    layers 1 to 4       chunks of layer 4            first stage: rows, edge files, edges of edits

A part needs what the parts of earlier stages hand up (`boundary`). If the graph fits into memory, it is one part.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sv_pipeline.grid import ChunkGrid
from sv_pipeline.ids import LAYER_BITS, IdLayout, UInt64Array
from sv_pipeline.table import keys
from sv_pipeline.table.interface import RowKeyRange

__all__ = ["Division", "Part"]

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Triple = tuple[int, int, int]

SHIFT = 64 - LAYER_BITS
END = 1 << 64


@dataclass(frozen=True)
class Part:
    """The nodes of the layers above ``low``, up to ``high``, in one chunk of layer ``high``, or in a range of ids."""

    low: int
    """Highest layer below the part; 0 for parts that begin with supervoxels."""
    high: int
    chunk: Triple | None
    """Coordinates of the chunk; None for a range of ids."""
    start: int = 0
    """First id of the range."""
    stop: int = END
    """End of the range of ids."""

    @property
    def key(self) -> str:
        """Name of the part in its division."""
        if self.chunk is None:
            return f"ids_{self.start:020d}"
        return f"layer{self.high:02d}_" + "_".join(map(str, self.chunk))

    @property
    def has_supervoxels(self) -> bool:
        """Whether the part begins with supervoxels, so that its edges are those of edge files."""
        return self.low == 0


@dataclass(frozen=True)
class Division:
    """A division of a graph into parts.

    Parameters
    ----------
    layout, grid
        Layout of ids and chunk grid of the graph.
    layers
        Highest layer of each stage but the last, ascending; the last one is the layer below the roots. Empty: the
        whole graph is one part.
    cuts
        Ids of the root layer at which a range ends and the next begins, ascending.
    """

    layout: IdLayout
    grid: ChunkGrid
    layers: tuple[int, ...] = ()
    cuts: tuple[int, ...] = ()

    def stages(self) -> list[list[Part]]:
        """Return the parts of each stage. Those of one stage are independent of each other."""
        top = self.layout.n_layers
        if not self.layers:
            return [[Part(0, top, None, 1 << SHIFT)]]
        result, low = [], 0
        for high in self.layers:
            chunks = self.grid.coordinates(high).tolist()
            result.append([Part(low, high, (x, y, z)) for x, y, z in chunks])
            low = high
        ends = [top << SHIFT, *self.cuts, END]
        result.append([Part(low, top, None, start, stop) for start, stop in itertools.pairwise(ends)])
        return result

    @property
    def is_whole(self) -> bool:
        """Whether the whole graph is one part."""
        return not self.layers

    def owns(self, part: Part, ids: UInt64Array) -> BoolArray:
        """Whether each id, shape (n,), belongs to a part."""
        if part.chunk is None:
            return np.asarray((ids >= np.uint64(part.start)) & (ids <= np.uint64(part.stop - 1)))
        layers = self.layout.layers(ids)
        inside = (layers > part.low) & (layers <= part.high)
        chunks = self._chunks_above(ids, layers, part.high)
        return np.asarray(inside & (chunks == part.chunk).all(axis=-1))

    def is_above(self, part: Part, ids: UInt64Array) -> BoolArray:
        """Whether each id, shape (n,), belongs to a part of a later stage that gets what this part hands up."""
        layers = self.layout.layers(ids)
        above = layers >= self.layout.n_layers
        if part.chunk is None:
            return np.zeros(len(ids), np.bool_)
        for high in self.layers:
            if high > part.high:
                chunk = np.asarray(part.chunk) >> (high - max(part.high, 2))
                low = max(layer for layer in (0, *self.layers) if layer < high)
                here = (layers > low) & (layers <= high)
                above |= here & (self._chunks_above(ids, layers, high) == chunk).all(axis=-1)
        return np.asarray(above)

    def parts_below(self, part: Part) -> Iterator[Part]:
        """Yield the parts of earlier stages that hand something up to a part."""
        low = 0
        for high in self.layers:
            if high > part.low:
                return
            if part.chunk is None:
                chunks = self.grid.coordinates(high)
            else:
                shift = part.high - max(high, 2)
                start = np.asarray(part.chunk) << shift
                stop = np.minimum(start + (1 << shift), self.grid.shape(high))
                chunks = _between(start, stop)
            for x, y, z in chunks.tolist():
                yield Part(low, high, (x, y, z))
            low = high

    def is_below(self, lower: Part, part: Part) -> bool:
        """Whether a part of an earlier stage hands something up to this part."""
        if lower.high > part.low or lower.chunk is None:
            return False
        if part.chunk is None:
            return True
        above = np.asarray(lower.chunk) >> (part.high - max(lower.high, 2))
        return bool((above == part.chunk).all())

    def _chunks_above(self, ids: UInt64Array, layers: IntArray, high: int) -> IntArray:
        """Chunk of layer ``high`` of each id; for ids outside the grid, the chunk inside that precedes them."""
        shift = np.clip(high - np.maximum(layers, 2), 0, 63)
        chunks = self.layout.coordinates(ids) >> shift[:, None]
        last = np.asarray(self.grid.shape(high), np.int64) - 1
        beyond = np.zeros(len(ids), np.bool_)
        for axis in range(3):
            beyond |= chunks[:, axis] > last[axis]
            chunks[beyond, axis] = last[axis]
        return np.asarray(chunks, np.int64)

    def ranges(self, part: Part) -> list[RowKeyRange]:
        """Return the sorted ranges of the row keys of a part's nodes."""
        if part.chunk is None:
            return [RowKeyRange(keys.node_key(part.start), keys.node_key(part.stop - 1) + b"\x00")]
        found = [r for layer in range(part.low + 1, part.high + 1) for r in self._ranges(part.chunk, part.high, layer)]
        return keys.join_ranges(RowKeyRange(keys.node_key(a), keys.node_key(b)) for a, b in found)

    def _ranges(self, chunk: Triple, high: int, layer: int) -> list[tuple[int, int]]:
        bits, segment_bits = self.layout.bits_per_dimension(layer), self.layout.segment_bits(layer)
        shift = high - max(layer, 2)
        x_last, y_last, z_last = (c == n - 1 for c, n in zip(chunk, self.grid.shape(high), strict=True))
        (x0, x1), (y0, y1), (z0, z1) = ((c << shift, (c + 1) << shift) for c in chunk)

        def first(x: int, y: int, z: int) -> int:
            return (layer << SHIFT) + (((((x << bits) + y) << bits) + z) << segment_bits)

        found = [
            (first(x, y, z0), first(x, y + 1, 0) if z_last else first(x, y, z1))
            for x in range(x0, x1)
            for y in range(y0, y1)
        ]
        if y_last and z_last:
            found += [(first(x, y1, 0), first(x + 1, 0, 0)) for x in range(x0, x1)]
        if x_last and y_last and z_last:
            found.append((first(x1, 0, 0), (layer + 1) << SHIFT))
        end = (layer + 1) << SHIFT
        return [(min(a, end), min(b, end)) for a, b in found]

    def counter_ranges(self, part: Part) -> list[RowKeyRange]:
        """Return the sorted ranges of the row keys of the id counters of a part's chunks."""
        if part.chunk is None:
            return [keys.prefix_range(b"i")] if part.low == 0 else [RowKeyRange(self._counter(part.high), b"j")]
        return [RowKeyRange(b"i" + start, b"i" + stop) for start, stop in self.ranges(part)]

    @staticmethod
    def _counter(layer: int) -> bytes:
        return b"i" + keys.node_key(layer << SHIFT)

    def chunks(self, part: Part) -> IntArray:
        """Return the coordinates of a part's layer 2 chunks, shape (n, 3); empty for parts without supervoxels."""
        if not part.has_supervoxels:
            return np.zeros((0, 3), np.int64)
        if part.chunk is None:
            return self.grid.coordinates(2)
        shift = max(part.high - 2, 0)
        start = np.asarray(part.chunk) << shift
        stop = np.minimum(start + (1 << shift), self.grid.shape(2))
        return _between(start, stop)


def _between(start: IntArray, stop: IntArray) -> IntArray:
    """All coordinates from ``start`` up to ``stop``, shape (n, 3)."""
    axes = [np.arange(a, b) for a, b in zip(start, stop, strict=True)]
    return np.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3), np.int64)
