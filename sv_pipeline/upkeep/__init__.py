"""The upkeep of the stores of a graph: retention, garbage, backups, and the removal of graphs. No Dagster."""
