"""The layout of node and chunk ids: bit arithmetic on uint64 arrays. Knows no storage and no volume.

::

    | layer: 8 bits | x: b | y: b | z: b | segment: 64 - 8 - 3 b bits |

``b`` depends on the layer. A chunk id is a node id whose segment bits are 0; segment 0 is never a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import ConfigError

__all__ = ["DEFAULT_SPATIAL_BITS", "LAYER_BITS", "IdLayout", "UInt64Array"]

UInt64Array = npt.NDArray[np.uint64]

LAYER_BITS = 8
DEFAULT_SPATIAL_BITS = 10
_LAYER_SHIFT = np.uint64(64 - LAYER_BITS)


@dataclass(frozen=True)
class IdLayout:
    """The bit layout of ids in a chunked graph with ``n_layers`` layers.

    Parameters
    ----------
    n_layers
        Number of layers including the root layer; at least 2.
    spatial_bits
        Smallest number of bits per dimension at layers 1 and 2.

    Raises
    ------
    ConfigError
        If ``spatial_bits`` cannot number the chunks of layer 2, or leaves no room for segments.
    """

    n_layers: int
    spatial_bits: int = DEFAULT_SPATIAL_BITS

    def __post_init__(self) -> None:
        if not 2 <= self.n_layers <= 255:
            raise ConfigError(f"a graph has 2 to 255 layers, not {self.n_layers}.")
        if self.spatial_bits < self.n_layers - 2:
            raise ConfigError(
                f"graph_config.SPATIAL_BITS is {self.spatial_bits}, but a graph of {self.n_layers} layers needs "
                f"at least {self.n_layers - 2} bits per dimension for its chunks.",
                remedy="Raise SPATIAL_BITS or CHUNK_SIZE.",
            )
        if LAYER_BITS + 3 * self.spatial_bits > 63:
            raise ConfigError(
                f"graph_config.SPATIAL_BITS = {self.spatial_bits} leaves no bits for supervoxels.",
                remedy="SPATIAL_BITS may be at most 18.",
            )

    # -- widths ---------------------------------------------------------------------------------------------------

    def bits_per_dimension(self, layer: int) -> int:
        """Return the number of bits of one chunk coordinate in the ids of ``layer``."""
        self._check_layer(layer)
        if layer <= 2:
            return max(self.spatial_bits, self.n_layers - 2)
        if layer >= self.n_layers - 1:
            return 1
        return self.n_layers - layer

    def segment_bits(self, layer: int) -> int:
        """Return the number of bits that number the nodes of one chunk of ``layer``."""
        return 64 - LAYER_BITS - 3 * self.bits_per_dimension(layer)

    def max_segment(self, layer: int) -> int:
        """Return the highest segment number in a chunk of ``layer``."""
        return (1 << self.segment_bits(layer)) - 1

    @cached_property
    def _shifts(self) -> npt.NDArray[np.uint64]:
        """Position of the bits of x, y and z in ids of each layer, shape (256, 3). Below those of z is the segment."""
        bits = self._bits
        return np.stack([64 - LAYER_BITS - below * bits for below in (1, 2, 3)], axis=-1).astype(np.uint64)

    @cached_property
    def _masks(self) -> npt.NDArray[np.uint64]:
        """The bits of one chunk coordinate, as a number, for each layer; shape (256, 1)."""
        return ((1 << self._bits) - 1).astype(np.uint64)[:, None]

    @cached_property
    def _segment_masks(self) -> npt.NDArray[np.uint64]:
        """The bits of the segment, as a number, for each layer; shape (256,)."""
        return (np.uint64(1) << self._shifts[:, 2]) - np.uint64(1)

    @property
    def _bits(self) -> npt.NDArray[np.int64]:
        bits = [0] + [self.bits_per_dimension(layer) for layer in range(1, self.n_layers + 1)]
        return np.array(bits + [0] * (256 - len(bits)), dtype=np.int64)

    # -- packing --------------------------------------------------------------------------------------------------

    def chunk_ids(self, layer: int, coordinates: npt.ArrayLike) -> UInt64Array:
        """Return chunk ids of ``layer`` for chunk coordinates of shape (n, 3) or (3,); result shape (n,) or ()."""
        coords = np.asarray(coordinates, dtype=np.uint64)
        bits = self.bits_per_dimension(layer)
        if coords.size and int(coords.max()) >= 1 << bits:
            raise ConfigError(f"chunk coordinate {coords.max()} does not fit the {bits} bits that layer {layer} has.")
        segment_bits = np.uint64(self.segment_bits(layer))
        width = np.uint64(bits)
        x, y, z = coords[..., 0], coords[..., 1], coords[..., 2]
        packed = (x << (segment_bits + width + width)) | (y << (segment_bits + width)) | (z << segment_bits)
        return np.asarray(packed | np.uint64(layer << (64 - LAYER_BITS)), dtype=np.uint64)

    def node_ids(self, chunk_ids: npt.ArrayLike, segments: npt.ArrayLike) -> UInt64Array:
        """Combine chunk ids and segment numbers (broadcast) to node ids."""
        return np.bitwise_or(np.asarray(chunk_ids, np.uint64), np.asarray(segments, np.uint64))

    # -- unpacking ------------------------------------------------------------------------------------------------

    def layers(self, ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the layer of each id; same shape."""
        return np.asarray(np.asarray(ids, np.uint64) >> _LAYER_SHIFT, dtype=np.int64)

    def coordinates(self, ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the chunk coordinates of ids, each in the grid of its own layer; shape (n,) gives (n, 3)."""
        ids = np.asarray(ids, np.uint64)
        layers = self.layers(ids)
        return np.asarray((ids[..., None] >> self._shifts[layers]) & self._masks[layers], np.int64)

    def segments(self, ids: npt.ArrayLike) -> UInt64Array:
        """Return the segment number of each id; same shape."""
        ids = np.asarray(ids, np.uint64)
        return ids & self._segment_mask(ids)

    def chunks(self, ids: npt.ArrayLike) -> UInt64Array:
        """Return the chunk id of each id, that is the id with its segment bits cleared; same shape."""
        ids = np.asarray(ids, np.uint64)
        return ids & ~self._segment_mask(ids)

    def _segment_mask(self, ids: UInt64Array) -> UInt64Array:
        return np.asarray(self._segment_masks[self.layers(ids)], np.uint64)

    # -- geometry of ids ------------------------------------------------------------------------------------------

    def cross_layers(self, ids1: npt.ArrayLike, ids2: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the cross layer of atomic edges between layer 1 ids, shape (n,).

        An edge of cross layer ``l`` joins two nodes that lie in different chunks at layer ``l`` and in the same
        chunk at layer ``l + 1``. The cross layer is 1 if both ends lie in one chunk, and at most ``n_layers - 1``.
        """
        differing = (self.coordinates(ids1) ^ self.coordinates(ids2)).max(axis=-1)
        # The bit length of the XOR of two coordinates is the number of layers at which they still differ.
        _, length = np.frexp(differing.astype(np.float64))
        return np.asarray(np.minimum(1 + length.astype(np.int64), self.n_layers - 1), np.int64)

    def _check_layer(self, layer: int) -> None:
        if not 1 <= layer <= self.n_layers:
            raise ValueError(f"layer {layer} is outside 1..{self.n_layers}")
