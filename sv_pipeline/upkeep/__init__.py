"""The upkeep of the stores of a graph: how much history is kept, and what is deleted. No Dagster."""
