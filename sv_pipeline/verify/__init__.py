"""Proof on demand that a graph and its segmentation are sound. Changes nothing.

An independent second opinion: it reads the table in bulk and recomputes, and uses none of the queries of ``graph``.
"""
