"""The cheapest cut between the points of a split request, on the local graph of supervoxels. Knows no table."""
