"""Forks whose coarser mips fall behind: made, edited, and compared with the pyramid from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline.grid import Box
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.layout import step_factor
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.records import pending_key, pending_value
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline_tests.segmentation.volumes import make_watershed

GRAPH = "g"


def make_fork(url: str, **watershed: object) -> Box:
    """A populated base with one fork; its bounds."""
    made = make_watershed(url, **watershed)  # type: ignore[arg-type]
    made.populate()
    Fork(url, GRAPH).create()
    return Base(url).info().volume.bounds


def edit(url: str, operation_id: int, boxes: Sequence[Box], seed: int = 0, *, value: int | None = None) -> None:
    """What the commit of an edit does: voxels and the pending key, atomically."""
    store = Fork(url, GRAPH).store()
    rng = np.random.default_rng(seed)

    def commit() -> None:
        with store.transaction(repeatable_read=True) as transaction:
            voxels, kv = store.array(0).with_transaction(transaction), store.kv.with_transaction(transaction)
            for box in boxes:
                labels = rng.integers(0, 5, box.shape) if value is None else np.full(box.shape, value)
                voxels[box.slices].write(labels.astype(np.uint64)).result()
            kv.write(pending_key(operation_id), pending_value(boxes)).result()

    retry_transport(commit, base_delay=0.01)


def assert_up_to_date(url: str, *, pending: Sequence[int] = ()) -> None:
    """Every mip is the downsampled mip below it, voxel for voxel, and the ledger holds only these operations."""
    base = Base(url).info()
    store = Fork(url, GRAPH).store()
    below = store.array(0).read(order="F").result()
    for mip in range(1, base.n_mips):
        stored = store.array(mip).read(order="F").result()
        np.testing.assert_array_equal(stored, downsample(below, step_factor(base.volume, mip)), err_msg=f"mip {mip}")
        below = stored
    assert [entry.operation_id for entry in Fork(url, GRAPH).pending()] == list(pending)


def random_boxes(bounds: Box, rng: np.random.Generator, n: int) -> list[Box]:
    """Boxes inside the volume, small ones mostly, some of one voxel."""
    boxes = []
    for _ in range(n):
        start = [int(rng.integers(a, b)) for a, b in zip(bounds.start, bounds.stop, strict=True)]
        size = rng.choice([1, 2, 5, 12, 40], 3)
        boxes.append(Box.of(start, np.add(start, size)).clip(bounds))
    return boxes
