"""Voxels of boxes as values: one block, and a sequence of blocks that are computed on access. Computes nothing."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from sv_pipeline.grid import Box

__all__ = ["Labels", "VoxelBlock", "VoxelBlocks"]

Labels = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class VoxelBlock:
    """The voxels of a box: uint64, axes (x, y, z)."""

    box: Box
    voxels: Labels


class VoxelBlocks(Sequence[VoxelBlock]):
    """A sequence of blocks that are computed on access; their boxes are known in advance."""

    @property
    @abc.abstractmethod
    def boxes(self) -> tuple[Box, ...]:
        """Absolute box of each block."""

    @abc.abstractmethod
    def block(self, index: int) -> VoxelBlock:
        """Compute one block."""

    def __len__(self) -> int:
        return len(self.boxes)

    @overload
    def __getitem__(self, index: int) -> VoxelBlock: ...
    @overload
    def __getitem__(self, index: slice) -> list[VoxelBlock]: ...
    def __getitem__(self, index: int | slice) -> VoxelBlock | list[VoxelBlock]:
        if isinstance(index, slice):
            return [self.block(i) for i in range(*index.indices(len(self)))]
        return self.block(range(len(self))[index])
