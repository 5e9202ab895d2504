"""What people look at: pictures of voxels and graphs, numbers, status. Never writes to a store."""
