"""What fragments touch, and how far away others are, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from sv_pipeline.algorithms.fragments import placeholders, plan_fragments
from sv_pipeline.algorithms.split_geometry import SplitGeometry
from sv_pipeline.errors import InputError
from sv_pipeline.grid import Box
from sv_pipeline_tests.algorithms.split_worlds import OBJECT, Ids, World, contacts, world_of, worlds
from sv_pipeline_tests.properties import examples

RESOLUTION = (4.0, 5.0, 40.0)


def measured(world: World) -> tuple[SplitGeometry, Ids]:
    """The geometry, and the volume with fragments by their placeholders."""
    plan = plan_fragments(world.segmentation, world.box, world.members, world.sides, world.grid)
    volume = world.segmentation.copy()
    everywhere = np.argwhere(world.source == OBJECT)
    volume[tuple(everywhere.T)] = plan.nodes_at(everywhere + world.box.start)
    return SplitGeometry(plan, world.segmentation, RESOLUTION, world.grid, world.layout), volume


@given(worlds())
@examples(80)
def test_contacts_of_nodes_are_found_with_their_faces(world: World) -> None:
    geometry, volume = measured(world)
    expected = {
        pair: faces
        for pair, faces in contacts(volume).items()
        if np.isin(np.array(pair, np.uint64), geometry.plan.nodes).any()
    }
    found = geometry.contacts
    assert dict(zip(map(tuple, found.pairs.tolist()), found.faces.tolist(), strict=True)) == expected
    rows = found.find(found.pairs[:, 1], found.pairs[:, 0])
    np.testing.assert_array_equal(rows, np.arange(len(rows)))
    assert (found.find([5, *found.pairs[:1, 0]], [7, 9][: 1 + len(found.pairs[:1])]) == -1).all()


@given(worlds())
@examples(30)
def test_contacts_do_not_depend_on_memory_order(world: World) -> None:
    geometry, _ = measured(world)
    for segmentation in (np.asfortranarray(world.segmentation), np.repeat(world.segmentation, 2, axis=0)[::2]):
        other = SplitGeometry(geometry.plan, segmentation, RESOLUTION, world.grid, world.layout)
        np.testing.assert_array_equal(other.contacts.pairs, geometry.contacts.pairs)
        np.testing.assert_array_equal(other.contacts.faces, geometry.contacts.faces)


@given(worlds())
@examples(40)
def test_distances_are_those_of_the_nearest_voxels(world: World) -> None:
    geometry, volume = measured(world)
    fragments = placeholders(np.arange(len(geometry.plan)))
    nodes = np.unique(volume[volume > 0])
    one, other = (m.ravel() for m in np.meshgrid(fragments[:6], nodes[-12:]))
    places = {int(n): np.argwhere(volume == n) * RESOLUTION for n in nodes}
    expected = [
        np.sqrt(((places[a][:, None] - places[b][None]) ** 2).sum(axis=-1)).min()
        for a, b in zip(one.tolist(), other.tolist(), strict=True)
    ]
    np.testing.assert_allclose(geometry.distances(one, other), expected, rtol=1e-9)


def test_a_partner_without_voxels_in_the_box_is_as_far_as_its_chunk_in_one_frame() -> None:
    """With a voxel offset; the partner is beyond the low face, so the low fragment is nearer."""
    source = np.ones((12, 2, 2), int)
    sides = np.where(np.indices(source.shape)[0] < 6, 1, 2)
    world = world_of(source, sides, (4, 4, 4), offset=(1000, 2000, 3000))
    low, middle, high = world.members
    box = Box((1004, 2000, 3000), (1008, 2002, 3002))
    segmentation = world.segmentation[4:8]
    plan = plan_fragments(segmentation, box, [middle], world.sides[4:8], world.grid)
    assert plan.first_voxels[:, 0].tolist() == [1004, 1006]
    geometry = SplitGeometry(plan, segmentation, RESOLUTION, world.grid, world.layout)
    one, other = placeholders([0, 1, 0, 1]), np.array([low, low, high, high])
    assert geometry.distances(one, other).tolist() == [4.0, 12.0, 12.0, 4.0]
    wide = Box((1003, 2000, 3000), (1009, 2002, 3002))
    labels = world.sides[3:9] * np.isin(world.segmentation[3:9], [middle])
    plan = plan_fragments(world.segmentation[3:9], wide, [middle], labels, world.grid)
    contacts_there = SplitGeometry(plan, world.segmentation[3:9], RESOLUTION, world.grid, world.layout).contacts
    row = contacts_there.find(placeholders([0, 1]), np.array([low, high]))
    assert contacts_there.faces[row].tolist() == [4, 4]
    assert (contacts_there.find(placeholders([1, 0]), np.array([low, high])) == -1).all()


def test_points_find_the_nearest_node_of_their_side() -> None:
    source = np.ones((8, 1, 1), int)
    world = world_of(source, np.array([1, 1, 2, 2, 2, 2, 2, 2])[:, None, None], (4, 4, 4))
    geometry, _ = measured(world)
    plan = geometry.plan
    assert geometry.nodes_near([[0, 0, 0], [3, 0, 0], [90, 9, 9]], 1).tolist() == placeholders([0, 0, 0]).tolist()
    assert geometry.nodes_near([[0, 0, 0], [90, 9, 9]], 2).tolist() == [int(placeholders(1)), int(plan.kept[0])]
    with pytest.raises(InputError, match="side 3"):
        geometry.nodes_near([[0, 0, 0]], 3)
    with pytest.raises(InputError, match="do not fill"):
        SplitGeometry(plan, world.segmentation[1:], RESOLUTION, world.grid, world.layout)
