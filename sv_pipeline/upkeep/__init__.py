"""The upkeep of the stores of a graph: how much history is kept, what is deleted, removal of graphs. No Dagster."""
