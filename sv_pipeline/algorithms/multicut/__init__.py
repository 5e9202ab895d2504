"""The cheapest cut between the points of a split request. Pure."""
