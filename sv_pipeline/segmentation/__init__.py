"""Voxels at rest: the base of a watershed and the fork of each graph, in OCDBT stores. Knows no table."""
