"""What people look at: pictures of voxels and graphs, and summaries as text. Reads; never writes to a store."""
