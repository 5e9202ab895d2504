"""What supervoxels fall into: every voxel in one fragment, every fragment one piece, nothing else changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from sv_pipeline.algorithms.fragments import (
    FragmentPlan,
    is_placeholder,
    member_mask,
    placeholder_index,
    placeholders,
    plan_fragments,
)
from sv_pipeline.errors import CorruptionError, InputError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline_tests.algorithms.split_worlds import OBJECT, Ids, World, pieces, world_of, worlds
from sv_pipeline_tests.properties import examples

ARRAYS = ("kept", "kept_sides", "old_ids", "sides", "chunks", "voxel_counts", "first_voxels", "voxels", "node_of_voxel")


def planned(world: World, **changes: object) -> FragmentPlan:
    given = {"segmentation": world.segmentation, "box": world.box, "members": world.members, "labels": world.sides}
    return plan_fragments(**{**given, "grid": world.grid, **changes})  # type: ignore[arg-type]


def new_ids(plan: FragmentPlan) -> Ids:
    return np.arange(len(plan), dtype=np.uint64) + np.uint64(1 << 60)


def after(plan: FragmentPlan, world: World, storage: tuple[int, int, int] = (3, 3, 3)) -> Ids:
    """The volume with the changed chunks written to it."""
    result = world.segmentation.copy()
    for block in plan.changed_chunks(world.segmentation, new_ids(plan), ChunkGrid(world.box, storage)):
        result[block.box.shifted(np.negative(world.box.start)).slices] = block.voxels
    return result


def line(sides: list[int], chunk: int = 4, n: int = 1) -> World:
    """A straight object along x, with the given side of each of its voxels."""
    source = np.full((len(sides), n, n), OBJECT)
    return world_of(source, np.array(sides)[:, None, None], (chunk, 4, 4))


@given(worlds())
@examples(150)
def test_fragments_partition_the_voxels_of_what_is_split(world: World) -> None:
    plan = planned(world)
    result = after(plan, world)
    changed = result != world.segmentation
    np.testing.assert_array_equal(changed, np.isin(world.segmentation, plan.split_ids))
    assert not np.isin(result, plan.split_ids).any()
    np.testing.assert_array_equal(np.unique(result[changed]), new_ids(plan))
    assert np.array_equal(np.union1d(plan.kept, plan.split_ids), world.members)
    for index, new in enumerate(new_ids(plan)):
        mask = result == new
        assert (world.segmentation[mask] == plan.old_ids[index]).all()
        assert (world.sides[mask] == plan.sides[index]).all()
        assert mask.sum() == plan.voxel_counts[index]
        assert pieces(mask)[1] == 1
        coordinates = np.argwhere(mask)
        np.testing.assert_array_equal(
            world.grid.chunk_of(coordinates + world.box.start), np.tile(plan.chunks[index], (len(coordinates), 1))
        )
        first = min(coordinates.tolist(), key=lambda v: v[::-1])
        np.testing.assert_array_equal(plan.first_voxels[index], np.add(first, world.box.start))


@given(worlds())
@examples(60)
def test_pieces_of_one_side_of_one_supervoxel_do_not_touch(world: World) -> None:
    plan = planned(world)
    result = after(plan, world)
    for old in plan.split_ids:
        for side in (1, 2):
            mask = (world.segmentation == old) & (world.sides == side)
            assert pieces(mask)[1] == ((plan.old_ids == old) & (plan.sides == side)).sum()
    for kept, side in zip(plan.kept, plan.kept_sides, strict=True):
        assert (world.sides[world.segmentation == kept] == side).all()
        np.testing.assert_array_equal(result == kept, world.segmentation == kept)


@given(worlds())
@examples(40)
def test_the_plan_does_not_depend_on_memory_order_and_keeps_to_its_own(world: World) -> None:
    plan = planned(world)
    other = planned(
        world,
        segmentation=np.asfortranarray(world.segmentation),
        labels=np.asfortranarray(world.sides.astype(np.int64)),
    )
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(plan, name), getattr(other, name))
    keys = list(
        zip(
            world.grid.index(2, plan.chunks), plan.old_ids, plan.sides, plan.first_voxels[:, ::-1].tolist(), strict=True
        )
    )
    assert keys == sorted(keys)


@given(worlds())
@examples(40)
def test_only_storage_chunks_with_changes_are_written_and_whole(world: World) -> None:
    plan = planned(world)
    storage = ChunkGrid(world.box, (3, 2, 4))
    chunks = plan.changed_chunks(world.segmentation, new_ids(plan), storage)
    result = after(plan, world, storage.chunk_size)
    changed = set()
    for coordinate in storage.coordinates(2):
        box = storage.box(2, coordinate)
        at = box.shifted(np.negative(world.box.start)).slices
        if (result[at] != world.segmentation[at]).any():
            changed.add(box)
    assert set(chunks.boxes) == changed
    assert [block.box for block in chunks] == list(chunks.boxes)


@given(worlds())
@examples(40)
def test_every_voxel_finds_its_node(world: World) -> None:
    plan = planned(world)
    everywhere = np.argwhere(np.ones(world.box.shape, bool)) + world.box.start
    nodes = plan.nodes_at(everywhere)
    expected = np.where(world.source == OBJECT, after(plan, world), 0)
    np.testing.assert_array_equal(plan.resolve(nodes, new_ids(plan)), expected.ravel())
    beyond = np.array([np.subtract(world.box.start, 1), world.box.stop])
    assert (plan.nodes_at(beyond) == 0).all()


@given(worlds())
@examples(30)
def test_a_kept_member_can_be_given_a_new_id(world: World) -> None:
    plan = planned(world)
    renewed = plan.renewing(plan.kept[:1], world.grid)
    assert len(renewed) == len(plan) + min(1, len(plan.kept))
    np.testing.assert_array_equal(renewed.kept, plan.kept[1:])
    np.testing.assert_array_equal(renewed.members, plan.members)
    assert np.isin(plan.kept[:1], renewed.split_ids).all()
    result = after(renewed, world)
    assert not np.isin(result, plan.kept[:1]).any()
    for index, new in enumerate(new_ids(renewed)):
        assert (world.segmentation[result == new] == renewed.old_ids[index]).all()


# -- cases ------------------------------------------------------------------------------------------------------------


def test_pieces_wholly_on_one_side_keep_their_ids_and_get_that_side() -> None:
    plan = planned(line([1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2]))
    assert len(plan.kept) == 2
    assert plan.kept_sides.tolist() == [1, 2]
    assert plan.sides.tolist() == [1, 2]
    assert plan.voxel_counts.tolist() == [1, 3]
    assert len(plan.split_ids) == 1


def test_a_cut_exactly_on_a_chunk_face_splits_nothing() -> None:
    plan = planned(line([1] * 4 + [2] * 4))
    assert len(plan) == 0
    assert plan.kept_sides.tolist() == [1, 2]
    assert len(plan.changed_chunks(np.zeros((8, 1, 1), np.uint64), [], ChunkGrid(plan.box, (2, 2, 2)))) == 0


def test_a_side_in_several_pieces_makes_a_fragment_of_each() -> None:
    plan = planned(line([1, 2, 1, 1]))
    assert plan.sides.tolist() == [1, 1, 2]
    assert plan.first_voxels[:, 0].tolist() == [0, 2, 1]


def test_more_than_two_sides_can_be_cut_at_once() -> None:
    plan = planned(line([1, 2, 3, 3]))
    assert plan.sides.tolist() == [1, 2, 3]


def test_two_members_in_one_chunk_are_not_fused_though_they_are_on_one_side() -> None:
    """Two arms of an object that meet in the next chunk only."""
    source = np.zeros((8, 3, 1), int)
    source[:, 0] = source[:, 2] = source[4:, 1] = OBJECT
    sides = np.where(np.indices(source.shape)[0] < 2, 1, 2)
    plan = planned(world_of(source, sides, (4, 4, 4)))
    assert len(plan.split_ids) == 2
    assert len(plan) == 4
    assert len(plan.kept) == 1


def test_a_supervoxel_that_was_in_two_pieces_before_becomes_two() -> None:
    world = line([1, 1, 1, 1], n=1)
    segmentation = world.segmentation.copy()
    segmentation[1] = 0
    plan = planned(world, segmentation=segmentation, labels=np.where(segmentation > 0, 1, 0))
    assert plan.voxel_counts.tolist() == [1, 2]


def test_chunks_at_the_border_of_the_volume_are_whole_as_far_as_they_exist() -> None:
    world = line([1] * 5 + [2], chunk=4)
    assert world.grid.box(2, (1, 0, 0)).shape == (2, 1, 1)
    plan = planned(world)
    assert plan.chunks.tolist() == [[1, 0, 0], [1, 0, 0]]


def test_the_box_may_be_larger_than_the_chunks_of_the_members() -> None:
    world = line([1] * 4 + [1, 2, 2, 2] + [2] * 4)
    middle = world.members[1:2]
    box = Box((3, 0, 0), (9, 1, 1))
    segmentation = world.segmentation[3:9]
    labels = np.where(np.isin(segmentation, middle), world.sides[3:9], 0)
    plan = planned(world, segmentation=segmentation, box=box, members=middle, labels=labels)
    assert plan.first_voxels[:, 0].tolist() == [4, 5]


def test_placeholders_are_no_ids_and_can_be_told_from_them() -> None:
    names = placeholders(np.arange(5))
    assert is_placeholder(names).all()
    assert placeholder_index(names).tolist() == [0, 1, 2, 3, 4]
    assert not is_placeholder(np.array([0, 1, (1 << 56) + 7, (254 << 56) + 1], np.uint64)).any()


def test_the_mask_of_members_is_theirs_in_any_memory_order() -> None:
    world = line([1] * 40, chunk=4)
    for segmentation in (world.segmentation, np.repeat(world.segmentation, 40, axis=2)[:, :, ::2]):
        mask = member_mask(segmentation, world.members[[3, 1, 3]])
        np.testing.assert_array_equal(mask, np.isin(segmentation, world.members[[1, 3]]))
        assert mask.flags.f_contiguous


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_together_is_refused() -> None:
    world = line([1, 1, 2, 2, 2, 2, 2, 2])
    first, second = world.members
    with pytest.raises(InputError, match="no supervoxel"):
        planned(world, members=[])
    with pytest.raises(InputError, match="do not fill"):
        planned(world, labels=world.sides[1:])
    with pytest.raises(InputError, match=rf"{second} has a side, but .*not to be cut"):
        planned(world, members=[first])
    with pytest.raises(InputError, match=r"no voxel with a side.*lies in the box"):
        planned(world, members=[first, second, second + np.uint64(1)])
    holes = world.sides.copy()
    holes[7] = 0
    with pytest.raises(InputError, match=f"1 voxels of supervoxel {second} have no side"):
        planned(world, labels=holes)
    with pytest.raises(InputError, match="only a part of chunk"):
        planned(world, segmentation=world.segmentation[:7], labels=world.sides[:7], box=Box((0, 0, 0), (7, 1, 1)))
    with pytest.raises(CorruptionError, match="more than one chunk"):
        planned(world, grid=ChunkGrid(world.box, (3, 4, 4)))
    plan = planned(world)
    for wrong in ([1], [1, 1], [0, 1]):
        with pytest.raises(InputError, match="2 fragments need"):
            plan.changed_chunks(world.segmentation, wrong, ChunkGrid(world.box, (2, 2, 2)))
