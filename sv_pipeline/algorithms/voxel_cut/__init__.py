"""Cutting a mask of voxels in two between seeds: the voxel cut of a supervoxel split. Knows no ids, no chunks."""

from __future__ import annotations

from sv_pipeline.algorithms.voxel_cut.cut import cut_mask
from sv_pipeline.algorithms.voxel_cut.seeds import snap_distance

__all__ = ["cut_mask", "snap_distance"]
