"""Supervoxels, edge files and component files, made out of any segmentation. Knows no graph and no table.

Two passes over the chunks of layer 2, with one step between them and one behind::

    prepare_watershed ─► run_label_batch* ─► finish_labels ─► run_edge_batch* ─► finish_watershed
      checks, info        supervoxels         objects           edges,             counts
                          of each chunk       of all labels     components

Each task is one chunk with a done-marker that is written last; it may be run again, anywhere, at any time.

What is decided here
--------------------
* A supervoxel is a 26-connected piece of one label inside one chunk. Its id is the chunk's id and a number, from 1, in
  the order of first voxels (x fastest). Label 0 is background.
* Two supervoxels that share voxel faces have an edge; its area is the number of faces. Those of one object also have
  one, of area 1, if they share but an edge or a corner, across chunks too: then roots are the 26-connected pieces of
  objects. Pieces of one label that touch across a chunk's border are joined by a *cross* edge: affinity inf, area 1.
* The affinity of other edges is, in this order: that of the edge table for the two labels (0.001 for pairs it does not
  name); the mean of the affinity volume over their faces (channel a of voxel v belongs to the face between v and
  v - e_a; uint8 counts from 0 to 255); the part of the smaller supervoxel's surface that the contact takes up.
* A label belongs to the object of its row in the agglomeration table, or with which it shares most voxels of the
  agglomeration volume (of several, the lowest). Labels that the table leaves out, and those of object 0, stand alone.
  A table that names labels that do not exist is an error.
* Sources that fit in memory are checked to the end before anything is written. Of other volumes, what only the voxels
  tell is checked as they are read: negative labels and full chunks by the label pass, names in tables by
  ``finish_labels``; no edge file is written then.
"""

from __future__ import annotations

from sv_pipeline.ingest.watershed.companions import source_scales
from sv_pipeline.ingest.watershed.edges import edges_of_chunk, run_edge_batch
from sv_pipeline.ingest.watershed.labels import label_chunk, run_label_batch
from sv_pipeline.ingest.watershed.plan import WatershedPass, WatershedPlan, markers_folder, pending, prepare_watershed
from sv_pipeline.ingest.watershed.run import WatershedReport, finish_labels, finish_watershed

__all__ = [
    "WatershedPass",
    "WatershedPlan",
    "WatershedReport",
    "edges_of_chunk",
    "finish_labels",
    "finish_watershed",
    "label_chunk",
    "markers_folder",
    "pending",
    "prepare_watershed",
    "run_edge_batch",
    "run_label_batch",
    "source_scales",
]
