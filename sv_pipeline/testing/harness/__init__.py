"""Processes that edit and recover a graph, and that are killed, stopped or disturbed at a named step of their work."""
