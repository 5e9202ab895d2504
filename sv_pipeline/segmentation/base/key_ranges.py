"""Divides the keys of a base among commits of bounded size, each of neighbouring keys. Pure; does no I/O.

A commit rewrites each node of the tree that holds one of its keys. So commits of neighbouring keys write every node
about once, whereas commits of whole tasks, whose keys are spread over the tree, rewrite nearly every node each time.
Keys are ordered by the text of x, then of y, then of z (`storage.chunk_names`). A range holds all keys of some x, or
some y of one x. ::

    keys    x=0 y=0 z=..   x=0 y=64 z=..   ...   x=1024 y=0 z=..   ...   x=128 y=0 z=..   ...
    ranges  |<------------- some x ------------------------------->|<------------- next x --------
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sv_pipeline.grid import ChunkGrid
from sv_pipeline.storage.chunk_names import ChunkNames
from sv_pipeline.storage.volume_info import VolumeInfo

__all__ = ["KeyRange", "key_ranges", "tasks_of_range"]

IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KeyRange:
    """Keys of neighbouring chunks of one mip."""

    mip: int
    first: int
    """Rank of the first chunk; see `storage.chunk_names`."""
    stop: int
    """Rank after that of the last chunk."""
    first_key: str
    last_key: str

    @property
    def end(self) -> str:
        """The smallest key after the last one."""
        return self.last_key + "\0"


def key_ranges(volume: VolumeInfo, at_most: int) -> Iterator[KeyRange]:
    """Yield ranges of the keys of all mips, in key order, of about ``at_most`` keys each if all chunks exist."""
    for mip, scale in sorted(enumerate(volume.scales), key=lambda numbered: numbered[1].key + "/"):
        chunks = ChunkNames(scale)
        _, n_y, n_z = chunks.shape
        unit = n_y * n_z if n_y * n_z <= at_most else n_z
        step = unit * max(1, at_most // unit)
        # A range of some y must not extend into the next x.
        rows = range(0, len(chunks), len(chunks) if unit == n_y * n_z else n_y * n_z)
        for row in rows:
            row_end = len(chunks) if unit == n_y * n_z else row + n_y * n_z
            for first in range(row, row_end, step):
                stop = min(first + step, row_end)
                names = chunks.names(chunks.cells(np.array([first, stop - 1])))
                keys = [f"{scale.key}/{name.decode()}" for name in names.tolist()]
                yield KeyRange(mip, first, stop, keys[0], keys[1])


def tasks_of_range(keys: KeyRange, volume: VolumeInfo, grid: ChunkGrid, layer: int) -> tuple[set[int], set[int]]:
    """Return the positions along x, and those along y, of the populate tasks that may have keys in a range."""
    scale, factor = volume.scales[keys.mip], volume.factors(keys.mip)
    chunks = ChunkNames(scale)
    _, n_y, n_z = chunks.shape
    whole_x = np.arange(keys.first, keys.stop, n_y * n_z)
    within_one = keys.stop - keys.first <= n_y * n_z and keys.first // (n_y * n_z) == (keys.stop - 1) // (n_y * n_z)
    ys = np.arange(keys.first, keys.stop, n_z) if within_one else np.arange(0, n_y * n_z, n_z)
    found: list[set[int]] = []
    for axis, ranks in enumerate((whole_x, ys)):
        cells = chunks.cells(ranks)[:, axis]
        voxels = cells * scale.chunk_size[axis] * factor[axis]
        last = grid.shape(layer)[axis] - 1
        found.append(set(np.minimum(voxels // grid.size(layer)[axis], last).tolist()))
    return found[0], found[1]
