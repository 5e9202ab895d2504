"""Blocks of a pyramid: what changes is made again, bit for bit as from scratch, and no two blocks share a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.algorithms.box_arrays import as_array, as_boxes, joined, parts_by_chunk, subtract, volumes
from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline.algorithms.pyramid_blocks import MipLevel, PyramidGeometry, plan_blocks, split_to_budget
from sv_pipeline.grid import Box
from sv_pipeline_tests.properties import examples

Triple = tuple[int, int, int]
Labels = npt.NDArray[np.uint64]

STEPS = [(2, 2, 1), (2, 2, 2), (1, 2, 2), (2, 1, 1), (4, 4, 1), (1, 1, 1)]
triples = st.tuples(*[st.integers(1, 9)] * 3)


@st.composite
def geometries(draw: st.DrawFn) -> PyramidGeometry:
    size = draw(st.tuples(*[st.integers(1, 33)] * 3))
    return make_geometry(size, draw(st.lists(st.sampled_from(STEPS), max_size=3)), lambda: draw(triples))


def make_geometry(size: Triple, steps: list[Triple], chunk: object) -> PyramidGeometry:
    levels = [MipLevel(size, chunk(), (1, 1, 1))]  # type: ignore[operator]
    for step in steps:
        x, y, z = (-(-s // f) for s, f in zip(levels[-1].size, step, strict=True))
        levels.append(MipLevel((x, y, z), chunk(), step))  # type: ignore[operator]
    return PyramidGeometry(tuple(levels))


@st.composite
def boxes_in(draw: st.DrawFn, size: Triple, max_boxes: int = 4) -> list[Box]:
    boxes = []
    for _ in range(draw(st.integers(1, max_boxes))):
        start = [draw(st.integers(0, n - 1)) for n in size]
        # Often a single voxel.
        stop = [draw(st.one_of(st.just(a + 1), st.integers(a + 1, n))) for a, n in zip(start, size, strict=True)]
        boxes.append(Box.of(start, stop))
    return boxes


@dataclass
class World:
    """A pyramid in memory that is kept up by blocks and parts, as the job does it on storage."""

    geometry: PyramidGeometry
    mips: list[Labels]

    @classmethod
    def random(cls, geometry: PyramidGeometry, seed: int) -> World:
        labels = np.asfortranarray(
            np.random.default_rng(seed).integers(0, 4, geometry.levels[0].size).astype(np.uint64)
        )
        return cls(geometry, from_scratch(geometry, labels))

    def edit(self, boxes: list[Box], seed: int) -> None:
        rng = np.random.default_rng(seed)
        for box in boxes:
            self.mips[0][box.slices] = rng.integers(0, 4, box.shape)

    def make_again(self, boxes: npt.NDArray[np.int64]) -> None:
        for mip, work in enumerate(self.geometry.affected(boxes), start=1):
            for box in as_boxes(work):
                fine = self.mips[mip - 1][self.geometry.footprint(mip, box).slices]
                self.mips[mip][box.slices] = downsample(fine, self.geometry.levels[mip].step)


def from_scratch(geometry: PyramidGeometry, labels: Labels) -> list[Labels]:
    mips = [labels]
    for level in geometry.levels[1:]:
        mips.append(downsample(mips[-1], level.step))
    return mips


@examples(250)
@given(st.data())
def test_what_is_made_again_equals_the_pyramid_from_scratch(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    boxes = data.draw(boxes_in(geometry.levels[0].size))
    budget = data.draw(st.sampled_from([0, 2_000, 20_000, 10**9]))
    world = World.random(geometry, seed=1)
    world.edit(boxes, seed=2)
    for block in plan_blocks(geometry, as_array(boxes), budget):
        for part in split_to_budget(geometry, block, budget):
            cut = [box.clip(part) for box in boxes]
            world.make_again(as_array(box for box in cut if box.volume))
    for mip, (have, want) in enumerate(zip(world.mips, from_scratch(geometry, world.mips[0]), strict=True)):
        np.testing.assert_array_equal(have, want, err_msg=f"mip {mip}")


@examples(100)
@given(st.data())
def test_no_two_blocks_share_a_storage_chunk_at_any_mip(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    boxes = data.draw(boxes_in(geometry.levels[0].size, 6))
    blocks = plan_blocks(geometry, as_array(boxes), data.draw(st.sampled_from([0, 5_000, 50_000])))
    seen: list[set[tuple[int, ...]]] = []
    for block in blocks:
        chunks: set[tuple[int, ...]] = set()
        for mip, work in enumerate(geometry.affected(block.affected), start=1):
            places, _ = parts_by_chunk(work, geometry.levels[mip].chunk_size, hull=True)
            chunks |= {(mip, *place) for place in places.tolist()}
        seen.append(chunks)
    assert all(not a & b for a, b in combinations(seen, 2))
    cells = [cell for block in blocks for cell in block.cells]
    assert len(cells) == len(set(cells))


@examples(100)
@given(st.data())
def test_parts_cover_what_is_affected_once_and_fit_the_budget(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    boxes = data.draw(boxes_in(geometry.levels[0].size))
    budget = data.draw(st.sampled_from([0, 1_000, 10_000]))
    for block in plan_blocks(geometry, as_array(boxes), budget):
        parts = list(split_to_budget(geometry, block, budget))
        owner = np.zeros(geometry.levels[0].size, np.int64)
        for part in parts:
            owner[part.slices] += 1
        assert owner.max() == 1
        for box in as_boxes(block.affected):
            assert (owner[box.slices] == 1).all()
        assert len(parts) == 1 or geometry.exceeds_by_mip(block.affected, budget)


def test_an_edit_of_one_voxel_touches_one_chunk_of_each_mip() -> None:
    geometry = make_geometry((1000, 1000, 500), [(2, 2, 1), (2, 2, 2), (2, 2, 2)], lambda: (64, 64, 32))
    changed = as_array([Box((513, 700, 100), (514, 701, 101))])
    (block,) = plan_blocks(geometry, changed, 1 << 30)
    for mip, work in enumerate(geometry.affected(block.affected), start=1):
        assert len(parts_by_chunk(work, geometry.levels[mip].chunk_size, hull=True)[0]) == 1
    assert geometry.cell == (512, 512, 128)
    assert block.cells == ((1, 1, 0),)


def test_the_budget_decides_how_many_cells_are_a_block() -> None:
    geometry = make_geometry((512, 512, 512), [(2, 2, 2)], lambda: (32, 32, 32))
    everything = as_array([Box((0, 0, 0), (512, 512, 512))])
    assert geometry.cell == (64, 64, 64)
    counts = [len(plan_blocks(geometry, everything, budget)) for budget in (1, 1 << 24, 1 << 28, 1 << 40)]
    assert counts[0] == 512
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 1
    for block in plan_blocks(geometry, everything, 1 << 24):
        assert geometry.bytes_whole(block.affected) <= 1 << 24


@examples(50)
@given(geometries(), triples)
def test_the_memory_of_a_block_is_that_of_its_chunks(geometry: PyramidGeometry, size: Triple) -> None:
    box = Box.of((0, 0, 0), np.minimum(np.multiply(size, 4), geometry.levels[0].size))
    assert geometry.bytes_of_block(box.shape) == geometry.bytes_whole(as_array([box]))


def test_a_petascale_volume_is_planned_without_listing_its_chunks() -> None:
    steps = [(2, 2, 1), (2, 2, 1), *[(2, 2, 2)] * 6]
    geometry = make_geometry((400_000, 300_000, 30_000), steps, lambda: (64, 64, 64))
    budget = 1 << 30
    blocks = plan_blocks(geometry, as_array([Box((0, 0, 0), (400_000, 300_000, 30_000))]), budget)
    assert len(blocks) == len({cell for block in blocks for cell in block.cells}) > 100
    parts = split_to_budget(geometry, blocks[0], budget)
    first = [next(parts) for _ in range(3)]
    for part in first:
        assert budget // 4 < geometry.bytes_by_mip(as_array([part])) <= budget


def test_boxes_outside_the_volume_count_for_nothing() -> None:
    geometry = make_geometry((20, 20, 20), [(2, 2, 2)], lambda: (8, 8, 8))
    outside = as_array([Box((20, 0, 0), (30, 5, 5)), Box((-9, -9, -9), (0, 3, 3))])
    assert plan_blocks(geometry, outside, 1 << 20) == []


def test_a_volume_smaller_than_a_chunk_is_one_cell() -> None:
    geometry = make_geometry((5, 3, 1), [(2, 2, 1), (2, 2, 2)], lambda: (64, 64, 64))
    assert geometry.cell == (5, 3, 1)
    (block,) = plan_blocks(geometry, as_array([Box((4, 2, 0), (5, 3, 1))]), 1)
    assert block.cells == ((0, 0, 0),)


def test_chunks_whose_sizes_share_no_divisor_make_the_whole_axis_a_cell() -> None:
    sizes = iter([(64, 64, 64), (59, 61, 53), (47, 43, 41)])
    geometry = make_geometry((4096, 4096, 4096), [(2, 2, 2), (2, 2, 2)], lambda: next(sizes))
    assert geometry.cell == (4096, 4096, 4096)


@examples(200)
@given(boxes_in((12, 12, 12), 5), triples)
def test_cutting_and_joining_keeps_every_voxel(boxes: list[Box], chunk: Triple) -> None:
    def painted(array: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        canvas = np.zeros((12, 12, 12), np.int64)
        for box in as_boxes(array):
            canvas[box.slices] += 1
        return canvas

    array = as_array(boxes)
    _, cut = parts_by_chunk(array, chunk, hull=False)
    np.testing.assert_array_equal(painted(cut), painted(array))
    _, hulls = parts_by_chunk(array, chunk, hull=True)
    assert painted(hulls).max() <= 1
    assert (painted(hulls) >= (painted(array) > 0)).all()
    np.testing.assert_array_equal(painted(joined(hulls)), painted(hulls))
    np.testing.assert_array_equal(painted(joined(array)) > 0, painted(array) > 0)
    assert len(joined(hulls)) <= len(hulls)


@examples(200)
@given(boxes_in((12, 12, 12), 5), boxes_in((12, 12, 12), 1))
def test_subtraction_leaves_what_is_outside_once(boxes: list[Box], taken: list[Box]) -> None:
    for box in boxes:
        left = subtract(as_array([box]), taken[0])
        canvas = np.zeros((12, 12, 12), np.int64)
        canvas[box.slices] = 1
        canvas[taken[0].slices] = 0
        for piece in as_boxes(left):
            canvas[piece.slices] -= 1
        assert not canvas.any()
        assert volumes(left).sum() == box.volume - box.clip(taken[0]).volume


def test_neighbouring_chunks_are_joined_into_one_box() -> None:
    _, chunks = parts_by_chunk(as_array([Box((0, 0, 0), (40, 30, 20))]), (8, 8, 8), hull=True)
    assert len(chunks) == 5 * 4 * 3
    assert as_boxes(joined(chunks)) == [Box((0, 0, 0), (40, 30, 20))]


def test_nothing_is_nothing() -> None:
    empty = as_array([])
    assert len(joined(parts_by_chunk(empty, (4, 4, 4), hull=True)[1])) == 0
    assert len(subtract(empty, Box((0, 0, 0), (1, 1, 1)))) == 0
