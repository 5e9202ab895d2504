"""The cut of a mask of voxels between seeds, for a split through a supervoxel. Knows no ids and no chunks."""

from __future__ import annotations

from sv_pipeline.algorithms.voxel_cut.cut import cut_mask
from sv_pipeline.algorithms.voxel_cut.doubt import Doubt, find_doubt
from sv_pipeline.algorithms.voxel_cut.seeds import snap_distance

__all__ = ["Doubt", "cut_mask", "find_doubt", "snap_distance"]
