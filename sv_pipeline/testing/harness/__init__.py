"""Runs processes that edit and recover a graph, and kills, stops or disturbs them at a named step of their work."""
