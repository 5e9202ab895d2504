"""Voxels at rest: specs, the base, forks, populate, the published reader contract (TensorStore and OCDBT)."""
