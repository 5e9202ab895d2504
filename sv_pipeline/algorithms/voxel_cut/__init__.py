"""The cut of a mask of voxels between seeds, for a split through a supervoxel. Knows no ids and no chunks."""

from __future__ import annotations

from sv_pipeline.algorithms.voxel_cut.cut import VoxelCut, cut_mask, cut_voxels
from sv_pipeline.algorithms.voxel_cut.doubt import Doubt, find_doubt
from sv_pipeline.algorithms.voxel_cut.seeds import snap_distance

__all__ = ["Doubt", "VoxelCut", "cut_mask", "cut_voxels", "find_doubt", "snap_distance"]
