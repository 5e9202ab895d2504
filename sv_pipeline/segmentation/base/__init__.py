"""The base of a watershed: its plan, how voxels get into it, and how far that is."""
