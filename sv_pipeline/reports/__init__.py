"""Reports for people: pictures of voxels and graphs, numbers and status. Never writes to a store."""
