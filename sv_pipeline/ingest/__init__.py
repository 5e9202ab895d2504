"""Building a graph: its stages, the layers, the batches and processes that do them, and their bookkeeping.

The terminal and Dagster both call this room. Order of the stages::

    watershed (labels, edges)  ->  setup (table, base)  ->  layers 2..top (graph; voxels at one layer)  ->  fork
"""
