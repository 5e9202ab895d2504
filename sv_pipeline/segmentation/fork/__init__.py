"""The fork of a graph: reading it, committing voxels to it, and our own records beside them."""
