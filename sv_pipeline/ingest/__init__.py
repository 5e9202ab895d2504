"""Building: supervoxels out of any segmentation, the atomic layer, the parent layers, and their bookkeeping."""
