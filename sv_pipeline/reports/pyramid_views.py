"""Pictures of all mips around an edit: before the edit, with coarser mips behind, and after they caught up."""

from __future__ import annotations

import numpy as np

from sv_pipeline.errors import NotFoundError
from sv_pipeline.grid import Box
from sv_pipeline.pyramid.catch_up import CatchUp
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.pictures import render_rows
from sv_pipeline.reports.sizes import PUBLISHED_WIDTH
from sv_pipeline.reports.views import mip_panels
from sv_pipeline.storage.ocdbt import OcdbtStore

__all__ = ["catch_up_picture"]

MIN_PIXELS, MAX_PIXELS = 96, 512
"""Limits of the side of the field that is shown, in voxels of mip 0."""
MARGIN = 1.5
MAX_MIPS = 4


def catch_up_picture(dataset: Dataset, done: CatchUp, *, width: int = PUBLISHED_WIDTH) -> bytes:
    """Draw all mips in an x-y slice through the newest edit that was behind, with one row per moment, as PNG.

    The row before the edit is left out if the fork has no record of its generation.

    Raises
    ------
    NotFoundError
        If nothing was behind.
    """
    if done.shown is None:
        raise NotFoundError(f"no mip of graph {dataset.graph_id!r} was behind, so there is nothing to show.")
    fork = dataset.fork
    volume = fork.base_info().volume
    moments = {
        "before the edit": done.unedited_generation,
        "edited, mips behind": done.generation_before,
        "caught up": done.generation_after,
    }
    stores = {name: fork.store(version=g) for name, g in moments.items() if g is not None}
    first, last = next(iter(stores.values())), stores["caught up"]
    depth = _most_changed_depth(first, last, done.shown.clip(volume.bounds))
    field = _field(done.shown, volume.bounds)
    rows = {name: mip_panels(store.array, volume, field, depth, MAX_MIPS) for name, store in stores.items()}
    title = f"{fork.graph_id}: all mips around operation {done.shown_operation}, z = {depth}"
    return render_rows(rows, title=title, width=width)


def _most_changed_depth(before: OcdbtStore, after: OcdbtStore, box: Box) -> int:
    """The z of the slice of a box in which most voxels of mip 0 differ; the middle of the box if none do."""
    middle = (box.start[2] + box.stop[2]) // 2
    start = np.maximum(box.start, np.subtract((*_center(box), middle), MAX_PIXELS // 2))
    near = Box.of(start, np.add(start, MAX_PIXELS)).clip(box)
    reads = [store.array(0)[near.slices].read() for store in (before, after)]
    changed = np.count_nonzero(reads[0].result() != reads[1].result(), axis=(0, 1))
    return near.start[2] + int(np.argmax(changed)) if changed.any() else int(middle)


def _center(box: Box) -> tuple[int, int]:
    return (box.start[0] + box.stop[0]) // 2, (box.start[1] + box.stop[1]) // 2


def _field(box: Box, bounds: Box) -> Box:
    """A square in x and y around a box, inside the volume."""
    side = int(np.clip(MARGIN * max(box.shape[:2]), MIN_PIXELS, MAX_PIXELS))
    x, y = _center(box)
    low = np.array([x - side // 2, y - side // 2, bounds.start[2]])
    high = np.array([bounds.stop[0] - side, bounds.stop[1] - side, bounds.start[2]])
    start = np.maximum(np.minimum(low, high), bounds.start)
    return Box.of(start, (start[0] + side, start[1] + side, bounds.stop[2])).clip(bounds)
