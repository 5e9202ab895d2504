"""Surfaces of objects: where they are, at which mip they are made, and how often."""

from __future__ import annotations

import numpy as np
import pytest

from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.testing.worlds import World
from sv_pipeline.viewer import labels
from sv_pipeline.viewer.labels import View
from sv_pipeline.viewer.meshes import ObjectMeshes, Surface
from sv_pipeline_tests.editable import two_parts_of_an_object


def volume_of(surface: Surface) -> float:
    """The volume that a closed surface encloses, in voxels."""
    a, b, c = (surface.vertices[surface.triangles[:, corner]].astype(np.float64) for corner in range(3))
    return float(abs(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6))


@pytest.mark.parametrize("most_voxels", [1 << 24, 40_000])
def test_a_surface_encloses_the_voxels_of_its_object(graph: OpenGraph, most_voxels: int) -> None:
    world, view = World(graph.dataset), View(graph.graph)
    objects = world.objects(world.voxels())
    meshes = ObjectMeshes(view, labels.supervoxels(view), most_voxels=most_voxels)
    roots, counts = np.unique(objects[objects > 0], return_counts=True)
    for root in roots[np.argsort(counts)[-3:]]:
        surface = meshes.surface(int(root))
        assert surface is not None
        where = np.argwhere(objects == root)
        tolerance = 1.5 if most_voxels > 1 << 20 else 4
        assert np.abs(surface.vertices.min(axis=0) - where.min(axis=0)).max() <= tolerance
        assert np.abs(surface.vertices.max(axis=0) - (where.max(axis=0) + 1)).max() <= tolerance
        assert volume_of(surface) == pytest.approx(len(where), rel=0.25)


def test_an_object_has_a_surface_of_its_own_after_a_split(graph: OpenGraph) -> None:
    one, other = two_parts_of_an_object(graph, of_a_supervoxel=True)
    view = View(graph.graph)
    meshes = ObjectMeshes(view, labels.supervoxels(view))
    (old,) = set(graph.roots([one, other]).tolist())
    whole = meshes.surface(old)
    parts = [meshes.surface(root) for root in graph.split([one], [other]).roots.tolist()]
    assert meshes.surface(old) is whole  # remembered: a root never changes
    assert sum(volume_of(part) for part in parts) == pytest.approx(volume_of(whole), rel=0.1)


def test_what_is_no_object_or_too_large_has_no_surface(graph: OpenGraph) -> None:
    view = View(graph.graph)
    volume = labels.supervoxels(view)
    root = int(graph.roots([two_parts_of_an_object(graph)[0]])[0])
    assert ObjectMeshes(view, volume).surface(root + 12345) is None
    assert ObjectMeshes(view, volume, most_voxels=10).surface(root) is None
