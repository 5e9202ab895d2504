"""Pictures of slices of a dataset: supervoxels, layers of the graph, roots and mips. Only the slices are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.edits import settled
from sv_pipeline.graph import queries
from sv_pipeline.grid import Box
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.pictures import Panel, render
from sv_pipeline.reports.sizes import PUBLISHED_WIDTH
from sv_pipeline.storage.precomputed import VolumeInfo, open_volume
from sv_pipeline.verify.volumes import graph_volume

__all__ = ["layer_picture", "mip_panels", "mips_picture", "roots_picture", "supervoxels_picture"]

MAX_PIXELS = 640
"""Maximum side of a slice that is read, in voxels: enough for a picture, and quick to read."""
UInt64Array = npt.NDArray[np.uint64]


def supervoxels_picture(dataset: Dataset, *, width: int = PUBLISHED_WIDTH) -> bytes:
    """Draw two orthogonal slices of the supervoxels through the middle of the volume, as PNG."""
    xy, xz = _middle_slices(dataset)
    count = len(np.unique(np.concatenate([xy.ravel(), xz.ravel()])))
    return render(
        _panels(dataset, {"supervoxels, x-y": (xy, (0, 1)), "x-z": (xz, (0, 2))}),
        title=f"{dataset.graph_id}: {count:,} supervoxels in view",
        width=width,
    )


def layer_picture(dataset: Dataset, layer: int, *, width: int = PUBLISHED_WIDTH) -> bytes:
    """Draw the nodes of one layer (each supervoxel's highest ancestor up to it) beside the supervoxels, as PNG."""
    xy, xz = _middle_slices(dataset)
    lifted = _lift(dataset, np.concatenate([xy.ravel(), xz.ravel()]), layer)
    nodes_xy, nodes_xz = lifted[: xy.size].reshape(xy.shape), lifted[xy.size :].reshape(xz.shape)
    return render(
        _panels(
            dataset,
            {
                "supervoxels, x-y": (xy, (0, 1)),
                f"layer {layer}, x-y": (nodes_xy, (0, 1)),
                f"layer {layer}, x-z": (nodes_xz, (0, 2)),
            },
        ),
        title=f"{dataset.graph_id}: nodes at layer {layer} of {dataset.grid.n_layers}",
        width=width,
    )


def roots_picture(dataset: Dataset, *, width: int = PUBLISHED_WIDTH) -> bytes:
    """Draw the roots (neurons) in two orthogonal slices, as PNG."""
    xy, xz = _middle_slices(dataset)
    roots = _lift(dataset, np.concatenate([xy.ravel(), xz.ravel()]), None)
    count = len(np.unique(roots[roots != 0]))
    return render(
        _panels(
            dataset,
            {
                "roots, x-y": (roots[: xy.size].reshape(xy.shape), (0, 1)),
                "x-z": (roots[xy.size :].reshape(xz.shape), (0, 2)),
            },
        ),
        title=f"{dataset.graph_id}: {count:,} roots in view",
        width=width,
    )


def mips_picture(dataset: Dataset, *, max_mips: int = 4, width: int = PUBLISHED_WIDTH) -> bytes:
    """Draw the same x-y field at several mips of the fork, or of the base if there is no fork yet, as PNG."""
    volume = graph_volume(dataset.fork)
    field = _window(volume.info.bounds)
    depth = (field.start[2] + field.stop[2]) // 2
    panels = mip_panels(volume.open, volume.info, field, depth, max_mips)
    return render(panels, title=f"{dataset.graph_id}: mips", width=width)


def mip_panels(
    open_mip: Callable[[int], Any], volume: VolumeInfo, field: Box, depth: int, max_mips: int
) -> list[Panel]:
    """Return an x-y slice of each mip, of the same field.

    Parameters
    ----------
    open_mip
        Opens a mip, as TensorStore.
    field
        Box of the field in voxels of mip 0; its z is not used.
    depth
        The z of the slice, in voxels of mip 0.
    """
    panels = []
    for mip, scale in enumerate(volume.scales[:max_mips]):
        factor, offset = np.asarray(volume.factors(mip)), np.asarray(scale.voxel_offset)
        start = np.subtract(field.start, volume.bounds.start) // factor + offset
        stop = -(-np.subtract(field.stop, volume.bounds.start) // factor) + offset
        inside = Box.of(start, stop).clip(scale.bounds)
        z = min((depth - volume.bounds.start[2]) // int(factor[2]) + int(offset[2]), scale.bounds.stop[2] - 1)
        labels: UInt64Array = open_mip(mip)[inside.slices[0], inside.slices[1], z].read().result()
        name = f"mip {mip}: {' x '.join(f'{r:g}' for r in scale.resolution)} nm"
        panels.append(Panel(name, labels, scale.resolution[:2]))
    return panels


def _window(bounds: Box) -> Box:
    """A box in the middle of a volume, at most MAX_PIXELS voxels long on each side."""
    start, shape = np.asarray(bounds.start), np.asarray(bounds.shape)
    size = np.minimum(shape, MAX_PIXELS)
    low = start + (shape - size) // 2
    return Box.of(low, low + size)


def _middle_slices(dataset: Dataset) -> tuple[UInt64Array, UInt64Array]:
    volume = open_volume(dataset.watershed_url)
    box = _window(dataset.volume.bounds)
    middle = [(a + b) // 2 for a, b in zip(box.start, box.stop, strict=True)]
    xy = volume[box.slices[0], box.slices[1], middle[2]].read()
    xz = volume[box.slices[0], middle[1], box.slices[2]].read()
    return np.asarray(xy.result()), np.asarray(xz.result())


def _lift(dataset: Dataset, supervoxels: UInt64Array, layer: int | None) -> UInt64Array:
    """Ancestors of the pixels' supervoxels, each of which is looked up once; background stays 0."""
    distinct, inverse = np.unique(supervoxels, return_inverse=True)
    lifted = np.zeros_like(distinct)
    known = distinct != 0
    lifted[known] = settled(
        dataset.graph, lambda graph: queries.roots(graph, distinct[known], stop_layer=layer, missing_ok=True)
    )
    return np.asarray(lifted[inverse], np.uint64)


def _panels(dataset: Dataset, slices: dict[str, tuple[UInt64Array, tuple[int, int]]]) -> list[Panel]:
    resolution = dataset.volume.scales[0].resolution
    return [Panel(name, labels, (resolution[axes[0]], resolution[axes[1]])) for name, (labels, axes) in slices.items()]
