"""Small labelled volumes to build graphs from: random, drawn by hand, or cropped from a user's data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sv_pipeline.config import DatasetConfig, SourceConfig
from sv_pipeline.demo.synthetic import synthetic_neuropil
from sv_pipeline.errors import InputError
from sv_pipeline.graph.edge_files import read_components_many
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ingest.watershed.source import SourceVolume, open_source
from sv_pipeline.ingest.watershed.tables import is_table, majority_objects, read_edge_table, read_object_table
from sv_pipeline.storage.precomputed import open_volume, read_info

__all__ = ["LabelledVolume", "cells", "crop", "drawn", "neuropil"]

Triple = tuple[int, int, int]
Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class LabelledVolume:
    """A volume of watershed labels, and the object that the agglomeration assigns to each label."""

    labels: Labels
    """Watershed labels, shape (x, y, z); 0 = background."""
    objects: Mapping[int, int] = field(default_factory=dict)
    """Object of each label. A label with object 0, or without an entry, is an object of its own."""
    resolution: tuple[float, float, float] = (8.0, 8.0, 40.0)
    """Size of a voxel (x, y, z), in nm."""
    voxel_offset: Triple = (0, 0, 0)
    """Coordinate (x, y, z) of the first voxel."""
    affinities: npt.NDArray[np.float32] | pd.DataFrame | None = None
    """A volume of shape (x, y, z, 3), or a table with columns ``label_a``, ``label_b`` and ``affinity``. None gives all
    edges a default affinity."""

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the volume and its table of objects as files.

        Returns
        -------
        dict
            The ``source`` section of a dataset configuration that names these files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "segmentation.npz", segmentation=self.labels, resolution=np.array(self.resolution))
        source: dict[str, Any] = {
            "segmentation": str(folder / "segmentation.npz"),
            "voxel_offset": list(self.voxel_offset),
        }
        here = np.unique(self.labels)
        named = pd.DataFrame({"label": list(self.objects), "object": list(self.objects.values())}, dtype=np.uint64)
        named = named[named["label"].isin(here[here > 0])]
        if len(named):
            source["agglomeration"] = str(folder / "objects.csv")
            named.to_csv(source["agglomeration"], index=False)
        if isinstance(self.affinities, pd.DataFrame):
            source["affinities"] = str(folder / "affinities.csv")
            both = self.affinities["label_a"].isin(here) & self.affinities["label_b"].isin(here)
            self.affinities[both].to_csv(source["affinities"], index=False)
        elif self.affinities is not None:
            source["affinities"] = str(folder / "affinities.npy")
            np.save(source["affinities"], self.affinities)
        return source


def cells(
    shape: Triple,
    n_labels: int,
    seed: int = 0,
    *,
    labels_per_object: int = 2,
    voxel_offset: Triple = (0, 0, 0),
    resolution: tuple[float, float, float] = (8.0, 8.0, 40.0),
) -> LabelledVolume:
    """Make Voronoi cells of random points, with some background in one corner.

    Labels are 1 to ``n_labels``; each run of ``labels_per_object`` consecutive labels is one object.
    """
    random = np.random.default_rng(seed)
    points = random.uniform(0, shape, (n_labels, 3))
    voxels = np.stack(np.meshgrid(*(np.arange(s) for s in shape), indexing="ij"), axis=-1)
    nearest = np.argmin(((voxels[..., None, :] - points) ** 2).sum(axis=-1), axis=-1)
    labels = nearest.astype(np.int64) + 1
    labels[: shape[0] // 6, : shape[1] // 6] = 0
    objects = {label: 1 + label // labels_per_object for label in range(1, n_labels + 1)}
    return LabelledVolume(labels, objects, resolution, voxel_offset)


def neuropil(shape: Triple, seed: int = 0, *, voxel_offset: Triple = (0, 0, 0)) -> LabelledVolume:
    """Make the demo's synthetic neuropil: thin neurites, each of which is one object of several labels."""
    volume = synthetic_neuropil(shape, seed=seed)
    objects = dict(zip(volume.labels.tolist(), volume.objects.tolist(), strict=True))
    x, y, z = (float(r) for r in volume.resolution)
    return LabelledVolume(volume.segmentation, objects, (x, y, z), voxel_offset)


def drawn(
    shape: Triple,
    boxes: Mapping[int, tuple[slice, ...]],
    objects: Mapping[int, int] | None = None,
    *,
    voxel_offset: Triple = (0, 0, 0),
) -> LabelledVolume:
    """Draw labels in boxes ``{label: slices}``, later ones over earlier ones.

    All labels are one object, unless ``objects`` gives the object of each label.
    """
    labels = np.zeros(shape, np.int64)
    for label, box in boxes.items():
        labels[box] = label
    return LabelledVolume(labels, dict.fromkeys(boxes, 1) if objects is None else objects, voxel_offset=voxel_offset)


def crop(config: DatasetConfig, size: Triple, at: Triple | None = None) -> LabelledVolume:
    """Crop a box from the data that a dataset configuration names.

    If the configuration has a ``source``, its segmentation, agglomeration and affinities are cropped. Otherwise the
    supervoxels of the given watershed volume become the labels, and its component files determine their objects.

    Parameters
    ----------
    config
        The dataset, which is not changed.
    size
        Shape of the box (x, y, z) in voxels; the box is clipped to the volume.
    at
        First voxel (x, y, z) of the box, in voxels of the base mip. By default, the box is in the middle of the volume.

    Raises
    ------
    InputError
        If the data cannot be read, or the box holds nothing but background.
    """
    volume = _crop_of_watershed(config, size, at) if config.source is None else _crop_of_source(config.source, size, at)
    if not volume.labels.any():
        raise InputError(
            f"the box of {' x '.join(map(str, volume.labels.shape))} voxels at {volume.voxel_offset} of "
            f"{config.graph_id!r} holds nothing but background.",
            remedy="Name a place where there is tissue (at), or a larger size.",
        )
    return volume


def _box(bounds: Box, size: Triple, at: Triple | None) -> Box:
    start = np.add(bounds.start, np.maximum(0, np.subtract(bounds.shape, size)) // 2) if at is None else np.asarray(at)
    box = Box.of(start, start + np.asarray(size)).clip(bounds)
    if not box.volume:
        raise InputError(f"a box at {at} lies outside the volume, {bounds}.", remedy="Name a voxel inside it (at).")
    return box


def _crop_of_source(source: SourceConfig, size: Triple, at: Triple | None) -> LabelledVolume:
    segmentation = _open(source, source.segmentation)
    if segmentation.resolution is None:
        raise InputError(
            f"{segmentation.name} does not say how large a voxel is.", remedy="Give source.resolution, in nanometres."
        )
    box = _box(segmentation.bounds, size, at)
    labels = segmentation.read(box)
    objects: dict[int, int] = {}
    if source.agglomeration is not None:
        objects = _agglomeration(source, source.agglomeration, labels, box)
    affinities: npt.NDArray[np.float32] | pd.DataFrame | None = None
    if source.affinities is not None and is_table(source.affinities):
        table = read_edge_table(source.affinities)
        affinities = pd.DataFrame({"label_a": table.labels_a, "label_b": table.labels_b, "affinity": table.affinities})
    elif source.affinities is not None:
        affinities = _open(source, source.affinities, 4).read(box)
    return LabelledVolume(labels, objects, segmentation.resolution, box.start, affinities)


def _agglomeration(source: SourceConfig, place: str, labels: Labels, box: Box) -> dict[int, int]:
    """Return the object of each label of the crop, as an ingest that sees only the crop would assign it."""
    here = np.unique(labels[labels > 0]).astype(np.uint64)
    if is_table(place):
        table = read_object_table(place)
    else:
        pairs = np.stack([labels.ravel(), _open(source, place).read(box).ravel()]).astype(np.uint64)
        (first, second), counts = np.unique(pairs[:, pairs[0] > 0], axis=1, return_counts=True)
        table = majority_objects(first, second, counts.astype(np.uint64))
    return dict(zip(here.tolist(), table.of(here).tolist(), strict=True))


def _open(source: SourceConfig, place: str, n_dimensions: int = 3) -> SourceVolume:
    return open_source(place, resolution=source.resolution, voxel_offset=source.voxel_offset, n_dimensions=n_dimensions)


def _crop_of_watershed(config: DatasetConfig, size: Triple, at: Triple | None) -> LabelledVolume:
    info = read_info(config.data_source.watershed)
    box = _box(info.bounds, size, at)
    labels = np.asarray(open_volume(config.data_source.watershed)[box.slices].read(order="F").result())
    grid = ChunkGrid(info.bounds, config.graph_config.chunk_size)
    first = (np.asarray(box.start) - grid.bounds.start) // grid.chunk_size
    last = (np.asarray(box.stop) - 1 - grid.bounds.start) // grid.chunk_size
    chunks = np.stack(np.meshgrid(*map(np.arange, first, last + 1), indexing="ij"), axis=-1).reshape(-1, 3)
    objects = _objects_of(labels, [c for found in read_components_many(config.components_url, chunks) for c in found])
    x, y, z = (float(r) for r in info.scales[0].resolution)
    return LabelledVolume(labels, objects, (x, y, z), box.start)


def _objects_of(labels: Labels, components: list[npt.NDArray[np.uint64]]) -> dict[int, int]:
    """Return the object of each supervoxel of a crop: components that share a member belong to one object."""
    if not components:
        return {}
    ids, index = np.unique(np.concatenate(components), return_inverse=True)
    component = len(ids) + np.repeat(np.arange(len(components)), [len(members) for members in components])
    n = len(ids) + len(components)
    joined = coo_array((np.ones(len(index), np.int8), (index, component)), shape=(n, n))
    _, number = connected_components(joined, directed=False)
    here = np.isin(ids, labels)
    return dict(zip(ids[here].tolist(), (number[: len(ids)][here] + 1).tolist(), strict=True))
