"""Tissue made by hand: labels in boxes, mostly bars along x, and splits of it that are proven."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline_tests.edits.tissue import Tissue, copy_of, fast_folder, new_table, template_of_labels

Make = Callable[..., Tissue]


@pytest.fixture
def make() -> Iterator[Make]:
    """A graph of labels that are given as {label: slices}; what touches is one object, or as ``objects`` says."""
    with ExitStack() as stack:

        def build(
            shape: tuple[int, int, int],
            boxes: dict[int, tuple[slice, ...]],
            objects: dict[int, int] | None = None,
            **options: tuple[int, int, int],
        ) -> Tissue:
            labels = np.zeros(shape, np.int64)
            for label, box in boxes.items():
                labels[box] = label
            template = template_of_labels(labels, objects or dict.fromkeys(boxes, 1), **options)
            tissue = stack.enter_context(copy_of(template, new_table("sqlite", stack.enter_context(fast_folder()))))
            tissue.verify()
            return tissue

        yield build


ALL = slice(None)


def bar(start: int, stop: int) -> tuple[slice, ...]:
    """A stretch along x."""
    return (slice(start, stop), slice(1, 4), slice(1, 4))


def at(x: int) -> list[int]:
    """A voxel in the middle of a bar."""
    return [x, 2, 2]


def split(tissue: Tissue, sources: list[list[int]], sinks: list[list[int]], **options: object) -> edits.CommittedEdit:
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
