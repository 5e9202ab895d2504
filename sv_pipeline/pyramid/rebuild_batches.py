"""The rebuild of one mip of a graph in batches, for many workers: plan, run a batch, check that none is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sv_pipeline.errors import NotFoundError, NotReadyError
from sv_pipeline.grid import Box
from sv_pipeline.pyramid.downsample import MEMORY_BUDGET
from sv_pipeline.pyramid.mip_maker import ForkPyramid, PartReport, boxes_within, open_pyramid
from sv_pipeline.pyramid.rebuild import begin_rebuild, rebuild_mip, unfinished
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.fork.pending import Lag

__all__ = ["MipRebuild", "batch_key", "parse_batch"]

BATCH_VOXELS = 1 << 28
"""Number of voxels of the mip below from which a batch is made; this takes some seconds."""
MAX_BATCHES = 200
"""Maximum number of batches, which are steps in Dagster's view of a run; larger volumes have larger batches."""


def batch_key(box: Box) -> str:
    """Return the name of a batch, which is made from its box, relative to the start of the mip."""
    return "_".join(map(str, (*box.start, *box.stop)))


def parse_batch(key: str) -> Box:
    """Return the box of a batch, relative to the start of the mip."""
    if re.fullmatch(r"\d+(_\d+){5}", key) is None:
        raise NotFoundError(f"{key!r} is not a batch of a rebuild.", remedy="Run the whole rebuild again.")
    numbers = [int(number) for number in key.split("_")]
    return Box.of(numbers[:3], numbers[3:])


@dataclass(frozen=True)
class MipRebuild:
    """The rebuild of one mip of one graph."""

    dataset: Dataset
    mip: int

    @cached_property
    def _pyramid(self) -> ForkPyramid:
        return open_pyramid(self.dataset.fork, large=True)

    def plan(self) -> list[str]:
        """Begin or continue the rebuild, and return the keys of the batches that are left to do.

        Raises
        ------
        NotFoundError
            If the graph has no such mip.
        NotReadyError
            If the mip below is being rebuilt.
        """
        boxes = begin_rebuild(self._pyramid, self.mip)
        offset, level = self._pyramid.volume.scales[self.mip].voxel_offset, self._pyramid.geometry.levels[self.mip]
        left = [box.shifted(np.negative(offset)) for box in boxes]
        volume = sum(box.volume for box in left)
        limit = max(BATCH_VOXELS // int(np.prod(level.step)), -(-volume // MAX_BATCHES))
        return [batch_key(batch) for box in left for batch in boxes_within(box, level.chunk_size, limit)]

    def run(self, key: str, *, memory_budget: int = MEMORY_BUDGET) -> PartReport:
        """Run a batch; a batch that was done already writes nothing."""
        box = self._pyramid.absolute(self.mip, parse_batch(key))
        return rebuild_mip(self._pyramid, self.mip, box, memory_budget=memory_budget)

    def finish(self) -> Lag:
        """Check that nothing is left, and return the lag of the still coarser mips, which the next downsample removes.

        Raises
        ------
        NotReadyError
            If boxes are left, whatever the workers reported.
        """
        if left := unfinished(self._pyramid, self.mip):
            voxels = sum(box.volume for box in left)
            raise NotReadyError(
                f"mip {self.mip} of graph {self.dataset.graph_id!r} is not rebuilt: {voxels} voxels in {len(left)} "
                f"boxes are left, the first {left[0]}.",
                remedy="Run it again: finished boxes are not rebuilt twice.",
            )
        return self.dataset.fork.lag()
