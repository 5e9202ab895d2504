"""Stored voxels: the base of a watershed and the fork of each graph, in OCDBT stores. Does not depend on tables."""
