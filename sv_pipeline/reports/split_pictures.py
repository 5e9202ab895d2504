"""Pictures of a supervoxel split: the box that it changed, before and after, as read from the fork."""

from __future__ import annotations

import numpy as np

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.grid import Box
from sv_pipeline.reports.pictures import Panel, render
from sv_pipeline.segmentation.fork.records import OperationRecord

__all__ = ["split_picture"]

MAX_SIDE = 512
"""Maximum side of a picture, in voxels."""


def split_picture(graph: ChunkedGraph, operation_id: int) -> bytes | None:
    """Draw the slice with most changed voxels, before and after an operation, as PNG; None if it changed no voxels."""
    record = graph.fork.record(operation_id)
    if record is None:
        return None
    box = _envelope(record)
    before = graph.fork.open(version=record.generation_before)
    after = graph.fork.open()
    old, new = (np.asarray(store[box.slices].read().result(), np.uint64) for store in (before, after))
    changed = old != new
    depth = int(np.argmax(changed.sum(axis=(0, 1))))
    where = np.argwhere(changed[..., depth])
    low, high = (where.min(axis=0), where.max(axis=0) + 1) if len(where) else ((0, 0), old.shape[:2])
    low, high = np.maximum(np.asarray(low) - 16, 0), np.minimum(np.asarray(high) + 16, old.shape[:2])
    high = np.minimum(high, low + MAX_SIDE)
    x, y, _ = graph.fork.base.info().volume.scales[0].resolution
    view = np.s_[low[0] : high[0], low[1] : high[1], depth]
    panels = [
        Panel(f"generation {record.generation_before}", old[view], (float(x), float(y))),
        Panel(f"operation {operation_id}", new[view], (float(x), float(y))),
    ]
    return render(panels, title=f"{int(changed.sum()):,} voxels changed, z = {box.start[2] + depth}")


def _envelope(record: OperationRecord) -> Box:
    return Box.of(
        np.min([box.start for box in record.boxes], axis=0), np.max([box.stop for box in record.boxes], axis=0)
    )
