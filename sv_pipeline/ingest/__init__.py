"""Building a graph: its stages, the layers, the batches and processes that do them, and their bookkeeping.

The command line and Dagster both call this package. The stages run in this order::

    watershed (labels, edges)  ->  setup (table, base)  ->  layers 2..top (graph; voxels at one layer)  ->  fork
"""
