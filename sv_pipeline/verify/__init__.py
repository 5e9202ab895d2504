"""Proof on demand that a graph and its segmentation are sound. Changes nothing.

The checks are an independent second opinion: they read the table in bulk, recompute what it should hold, and use none
of the queries of ``graph``.
"""
