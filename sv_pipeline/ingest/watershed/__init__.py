"""Supervoxels, edge files and component files out of any segmentation. Owns this stage; knows no graph, no table."""

from __future__ import annotations

from sv_pipeline.ingest.watershed.edges import edges_of_chunk, run_edge_batch
from sv_pipeline.ingest.watershed.labels import label_chunk, run_label_batch
from sv_pipeline.ingest.watershed.plan import Stage, WatershedPlan, pending, prepare_watershed
from sv_pipeline.ingest.watershed.run import WatershedReport, finish_labels, finish_watershed, make_watershed

__all__ = [
    "Stage",
    "WatershedPlan",
    "WatershedReport",
    "edges_of_chunk",
    "finish_labels",
    "finish_watershed",
    "label_chunk",
    "make_watershed",
    "pending",
    "prepare_watershed",
    "run_edge_batch",
    "run_label_batch",
]
