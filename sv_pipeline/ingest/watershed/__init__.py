"""Supervoxels, edge files and component files, made from any segmentation. Knows no graph and no table.

There are two passes over the chunks of layer 2, with one step between them and one after them::

    prepare_watershed ─► run_label_batch* ─► finish_labels ─► run_edge_batch* ─► finish_watershed
      checks, info        supervoxels         objects           edges,             counts
                          of each chunk       of all labels     components

Each task is one chunk, with a done-marker that is written last. A task may be repeated on any machine at any time.

Rules
-----
* A supervoxel is a 26-connected piece of one label inside one chunk. Its id consists of the chunk's id and a number,
  counted from 1 in the order of first voxels (x fastest). Label 0 is background.
* Two supervoxels that share voxel faces have an edge; its area is the number of faces. Supervoxels of one object that
  share only an edge or a corner of a voxel, in one chunk or across chunks, have an edge of area 1, so that roots are
  the 26-connected pieces of objects. Pieces of one label that touch across a chunk border are joined by a *cross* edge
  of affinity inf and area 1.
* The affinity of other edges comes from the first of these that is given: the edge table's value for the two labels
  (0.001 for pairs that it does not name); the mean of the affinity volume over their faces (channel a of voxel v
  belongs to the face between v and v - e_a; uint8 values 0 to 255 mean 0 to 1); the fraction of the smaller
  supervoxel's surface that the contact covers.
* A label belongs to the object in its row of the agglomeration table, or to the object with which it shares most voxels
  in the agglomeration volume (the lowest one in a tie). Labels that the table leaves out, and labels of object 0, are
  objects of their own. A table that names labels that do not exist is an error.
* Sources that fit in memory are checked completely before anything is written. In other volumes, faults of the voxels
  are found while they are read: the label pass finds negative labels and chunks with too many supervoxels, and
  ``finish_labels`` finds names in tables that do not exist, before any edge file is written.
"""

from __future__ import annotations

from sv_pipeline.ingest.watershed.companions import source_scales
from sv_pipeline.ingest.watershed.edges import edges_of_chunk, run_edge_batch
from sv_pipeline.ingest.watershed.labels import label_chunk, run_label_batch
from sv_pipeline.ingest.watershed.objects import make_object_table
from sv_pipeline.ingest.watershed.plan import (
    WatershedPass,
    WatershedPlan,
    done_mask,
    markers_folder,
    pending,
    planned_volume,
    prepare_watershed,
)
from sv_pipeline.ingest.watershed.run import WatershedReport, finish_labels, finish_watershed

__all__ = [
    "WatershedPass",
    "WatershedPlan",
    "WatershedReport",
    "done_mask",
    "edges_of_chunk",
    "finish_labels",
    "finish_watershed",
    "label_chunk",
    "make_object_table",
    "markers_folder",
    "pending",
    "planned_volume",
    "prepare_watershed",
    "run_edge_batch",
    "run_label_batch",
    "source_scales",
]
