"""The ingest as a whole: what is to do, in which batches, done by whom, and whether it is complete.

One place that the terminal and Dagster both call. Knows no Dagster. Order of the stages::

    watershed (labels, edges)  ->  setup (table, base)  ->  layers 2..top (graph; voxels at one layer)  ->  fork
"""
