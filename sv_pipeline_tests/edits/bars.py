"""World made by hand: labels in boxes, mostly bars along x, and splits of it that are proven."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.testing import tables, worlds
from sv_pipeline.testing.volumes import drawn
from sv_pipeline.testing.worlds import World

Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A graph of labels that are given as {label: slices}; what touches is one object, or as ``objects`` says."""

    def build(
        shape: tuple[int, int, int],
        boxes: dict[int, tuple[slice, ...]],
        objects: dict[int, int] | None = None,
        *,
        chunk_size: tuple[int, int, int] = (8, 8, 8),
        voxel_offset: tuple[int, int, int] = (0, 0, 0),
    ) -> World:
        volume = drawn(shape, boxes, objects, voxel_offset=voxel_offset)
        world = worlds.build(volume, tmp_path / tables.unique_name(), chunk_size=chunk_size)
        world.verify()
        return world

    return build


ALL = slice(None)


def bar(start: int, stop: int) -> tuple[slice, ...]:
    """A stretch along x."""
    return (slice(start, stop), slice(1, 4), slice(1, 4))


def at(x: int) -> list[int]:
    """A voxel in the middle of a bar."""
    return [x, 2, 2]


def split(tissue: World, sources: list[list[int]], sinks: list[list[int]], **options: object) -> edits.CommittedEdit:
    """A split that is proven: the sides are apart, and no voxel changes but those of what was replaced."""
    before, generation = tissue.voxels(), tissue.generation
    edit = edits.split(tissue.graph, tissue.split_request(sources, sinks, **options), volume=tissue.volume)
    tissue.verify()
    after = tissue.voxels()
    assert tissue.generation == generation + bool(len(edit.supervoxels))
    changed = after != before
    found = np.unique(np.stack([before[changed], after[changed]], axis=-1), axis=0)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, edit.supervoxels.tolist()))
    objects = tissue.objects(after)
    sides = [set(objects[tuple(np.transpose(points))].tolist()) for points in (sources, sinks)]
    assert not sides[0] & sides[1]
    return edit


def row(array: np.ndarray) -> list[int]:
    """Ids along the middle of a bar, numbered in the order in which they come."""
    ids = array[:, 2, 2]
    _, first, index = np.unique(ids, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[index].tolist()
