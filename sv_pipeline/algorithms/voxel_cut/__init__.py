"""The cut of a mask of voxels between seeds, for a split through a supervoxel. Knows no ids and no chunks."""

from __future__ import annotations

from sv_pipeline.algorithms.voxel_cut.cut import cut_mask
from sv_pipeline.algorithms.voxel_cut.seeds import snap_distance

__all__ = ["cut_mask", "snap_distance"]
