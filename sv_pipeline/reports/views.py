"""Pictures of slices of a dataset: supervoxels, layers of the graph, roots and mips. Only the slices are read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sv_pipeline.edits import settled
from sv_pipeline.graph import queries
from sv_pipeline.grid import Box
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.pictures import Panel, render
from sv_pipeline.reports.sizes import PUBLISHED_WIDTH
from sv_pipeline.storage.precomputed import open_volume
from sv_pipeline.verify.volumes import graph_volume

__all__ = ["layer_picture", "mips_picture", "roots_picture", "supervoxels_picture"]

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
    panels = []
    for mip, scale in enumerate(volume.info.scales[:max_mips]):
        store, resolution = volume.open(mip), scale.resolution
        box = _window(Box.of(store.domain.inclusive_min[:3], store.domain.exclusive_max[:3]))
        middle = (box.start[2] + box.stop[2]) // 2
        labels = store[box.slices[0], box.slices[1], middle].read().result()
        panels.append(Panel(f"mip {mip}: {' x '.join(f'{r:g}' for r in resolution)} nm", labels, resolution[:2]))
    return render(panels, title=f"{dataset.graph_id}: mips", width=width)


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
