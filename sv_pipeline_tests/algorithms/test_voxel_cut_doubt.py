"""When a cut is called a film, what is said of it, and where another point would decide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cc3d
import edt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, find_objects

from sv_pipeline.algorithms.voxel_cut import VoxelCut, cut_voxels, find_doubt
from sv_pipeline.algorithms.voxel_cut.doubt import FEWEST, TOUCHING, DoubtKind, side_shape
from sv_pipeline.algorithms.voxel_cut.wavering import STAKE, wavering_parts
from sv_pipeline.testing.fixtures import need
from sv_pipeline_tests.algorithms.test_voxel_cut import DATA, ISOTROPIC, ball, masks, tube
from sv_pipeline_tests.properties import examples


def voxel(*xyz: int) -> np.ndarray:
    return np.array([xyz], np.int64)


def test_two_points_in_one_thick_body_leave_a_film() -> None:
    mask = ball((31, 31, 31), (15, 15, 15), 13)
    middle, shallow = voxel(15, 15, 15), voxel(15, 15, 3)
    cut = cut_voxels(mask, middle, shallow, ISOTROPIC)
    doubt = find_doubt(cut, middle, shallow, ISOTROPIC)
    assert doubt is not None
    assert (doubt.kind, doubt.name) == (DoubtKind.FILM, "sink")
    assert doubt.voxels == np.count_nonzero(cut.sides == 2)
    assert doubt.cut_voxels == np.count_nonzero(mask)
    assert doubt.shape is not None
    assert doubt.shape.thickness < 1.1
    assert doubt.shape.deep < 0.01
    assert doubt.shape.surface > 0.99
    assert 0 < doubt.sure < 0.25
    # The place is deep on the sink's half of the body, where the cut has given everything to the source.
    assert doubt.place is not None
    assert cut.sides[doubt.place] == 1
    assert doubt.place[2] < 15
    assert f"{doubt.voxels:,} of {doubt.cut_voxels:,} voxels" in str(doubt)
    assert ",".join(map(str, doubt.place)) in str(doubt)
    assert doubt.shifted((10, 20, 30)).place == tuple(np.add(doubt.place, (10, 20, 30)))

    swapped = find_doubt(cut_voxels(mask, shallow, middle, ISOTROPIC), shallow, middle, ISOTROPIC)
    assert swapped is not None
    assert (swapped.name, swapped.voxels, swapped.place) == ("source", doubt.voxels, doubt.place)


def test_a_point_at_the_named_place_ends_the_film_of_a_careless_click() -> None:
    """Two bodies that touch; the sink is clicked at its surface, so it gets the surface of both."""
    mask = tube((40, 60, 30), [(12, 8, 14), (12, 52, 14)], 8) | tube((40, 60, 30), [(26, 8, 14), (26, 52, 14)], 7)
    source, sink = voxel(12, 30, 14), voxel(32, 30, 14)
    doubt = find_doubt(cut_voxels(mask, source, sink, ISOTROPIC), source, sink, ISOTROPIC)
    assert doubt is not None
    assert doubt.place is not None
    assert doubt.place[0] > 19, "the place is in the body of the sink"
    more = np.concatenate([sink, voxel(*doubt.place)])
    cut = cut_voxels(mask, source, more, ISOTROPIC)
    sides = cut.sides
    after = find_doubt(cut, source, more, ISOTROPIC)
    assert after is None or (after.kind is DoubtKind.PART and after.voxels < 0.1 * doubt.cut_voxels)
    assert sides[26, 10, 14] == sides[26, 50, 14] == 2
    assert sides[12, 10, 14] == sides[12, 50, 14] == 1


def test_an_arm_that_both_sides_could_have_is_doubtful_until_a_point_is_placed_there() -> None:
    """Three arms of equal length meet at equal angles; the points are in two of them."""
    middle = np.array([50, 50, 10])
    ends = [(50, 94, 10), (12, 28, 10), (88, 28, 10)]
    mask = np.logical_or.reduce([tube((100, 100, 20), [tuple(middle.tolist()), end], 6) for end in ends])
    source, sink, third = (voxel(*(0.8 * np.array(end) + 0.2 * middle).astype(int)) for end in (*ends[1:], ends[0]))
    cut = cut_voxels(mask, source, sink, ISOTROPIC)
    doubt = find_doubt(cut, source, sink, ISOTROPIC)
    assert doubt is not None
    assert doubt.kind is DoubtKind.PART
    assert doubt.shape is None
    assert doubt.place is not None
    assert doubt.place[1] > 55, "the place is in the third arm"
    assert cut.sides[doubt.place] == doubt.side == cut.sides[tuple(third[0])]
    assert 0.5 < doubt.sure < 0.75
    assert 0.2 * doubt.cut_voxels < doubt.voxels < 0.4 * doubt.cut_voxels
    assert "which might belong to the" in str(doubt)
    assert ",".join(map(str, doubt.place)) in str(doubt)

    swapped = find_doubt(cut_voxels(mask, sink, source, ISOTROPIC), sink, source, ISOTROPIC)
    assert swapped == replace(doubt, side=3 - doubt.side)
    assert doubt.side == 2
    corrected = cut_voxels(mask, np.concatenate([source, voxel(*doubt.place)]), sink, ISOTROPIC)
    assert np.count_nonzero(corrected.sides != cut.sides) > 0.7 * doubt.voxels, "a point there takes most of the arm"
    for one, other in ((np.concatenate([source, voxel(*doubt.place)]), sink), (source, np.concatenate([sink, third]))):
        next_doubt = find_doubt(cut_voxels(mask, one, other, ISOTROPIC), one, other, ISOTROPIC)
        assert next_doubt is None or next_doubt.voxels < 0.25 * doubt.voxels


@pytest.mark.parametrize("kind", DoubtKind)
def test_advice_ends_and_names_no_place_twice(kind: DoubtKind) -> None:
    """Whoever looks finds that each named place belongs to the side that has it (film: the body; part: its arm)."""
    if kind is DoubtKind.FILM:
        mask = tube((30, 120, 30), [(14, 10, 14), (14, 110, 14)], 9)
        seeds = [voxel(14, 90, 14), voxel(14, 30, 7)]
    else:
        ends = [(50, 94, 10), (12, 28, 10), (88, 28, 10)]
        mask = np.logical_or.reduce([tube((100, 100, 20), [(50, 50, 10), end], 6) for end in ends])
        seeds = [voxel(19, 32, 10), voxel(80, 32, 10)]
    named: list[tuple[int, int, int]] = []
    while len(named) <= 8:
        cut = cut_voxels(mask, *seeds, ISOTROPIC)
        doubt = find_doubt(cut, *seeds, ISOTROPIC)
        if doubt is None or doubt.place is None:
            break
        assert doubt.place not in named
        named.append(doubt.place)
        side = int(cut.sides[doubt.place])
        seeds[side - 1] = np.concatenate([seeds[side - 1], voxel(*doubt.place)])
    assert 1 <= len(named) <= 6
    if kind is DoubtKind.FILM:
        assert doubt is not None, "it is a rim all the same"
        assert "move its points into its body" in str(doubt)


@examples(30)
@given(mask=masks(), seed=st.integers(0, 2**32 - 1))
def test_a_doubtful_part_belongs_to_its_side(mask: np.ndarray, seed: int) -> None:
    mask = cc3d.largest_k(np.asfortranarray(mask), k=1, connectivity=26) > 0
    rng = np.random.default_rng(seed)
    voxels = np.argwhere(mask)
    if len(voxels) < 2:
        return
    source, sink = (place[None] for place in voxels[rng.choice(len(voxels), 2, replace=False)])
    cut, swapped = cut_voxels(mask, source, sink, ISOTROPIC), cut_voxels(mask, sink, source, ISOTROPIC)
    for component in cut.parts:
        first = cut.sides[component.box][component.mask] == (1 if component.source_first else 2)
        for part in wavering_parts(component.mask, component.race, first):
            assert (first[part.voxels] == part.first).all()
            assert (part.voxels >= part.core).all()
            assert part.core.any()
            assert 0.1 < part.wrong < 1
            assert part.stake >= STAKE * len(first)
    doubt = find_doubt(cut, source, sink, ISOTROPIC)
    mirrored = find_doubt(swapped, sink, source, ISOTROPIC)
    if doubt is None:
        assert mirrored is None
        return
    if doubt.kind is DoubtKind.PART:
        assert doubt.place is not None
        assert cut.sides[doubt.place] == doubt.side
        assert mirrored == replace(doubt, side=3 - doubt.side)
        moved = cut_voxels(np.pad(mask, 2), source + 2, sink + 2, ISOTROPIC)
        assert find_doubt(moved, source + 2, sink + 2, ISOTROPIC) == doubt.shifted((2, 2, 2))


def test_of_two_films_of_equal_size_the_same_is_named_whichever_side_is_called_source() -> None:
    sides = np.ones((20, 10, 2), np.uint8)
    sides[..., 1] = 2
    source, sink = voxel(3, 3, 0), voxel(16, 6, 1)
    for order in "CF":
        doubt = find_doubt(VoxelCut(np.asarray(sides, order=order)), source, sink, ISOTROPIC)
        swapped = find_doubt(VoxelCut(np.asarray(3 - sides, order=order)), sink, source, ISOTROPIC)
        assert doubt is not None
        assert swapped == replace(doubt, side=3 - doubt.side)


def test_two_bodies_at_a_neck_leave_no_doubt() -> None:
    mask = ball((80, 40, 40), (20, 20, 20), 14) | ball((80, 40, 40), (60, 20, 20), 14)
    mask |= tube(mask.shape, [(20, 20, 20), (60, 20, 20)], 3)
    source, sink = voxel(20, 20, 20), voxel(60, 20, 20)
    assert find_doubt(cut_voxels(mask, source, sink, ISOTROPIC), source, sink, ISOTROPIC) is None


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_a_thin_neurite_beside_a_thick_one_is_no_film(radius: int) -> None:
    sides = np.zeros((60, 60, 40), np.uint8)
    sides[tube(sides.shape, [(20, 5, 20), (20, 55, 20)], 10)] = 1
    sides[tube(sides.shape, [(20, 30, 32 + radius), (55, 30, 32 + radius)], radius) & (sides == 0)] = 2
    assert side_shape(sides, 2).touching < 0.5 * TOUCHING
    assert find_doubt(VoxelCut(sides), voxel(20, 30, 20), voxel(50, 30, 32 + radius), ISOTROPIC) is None


@st.composite
def cuts(draw: Any) -> np.ndarray:
    """Masks with sides at random: by a plane, by depth, or voxel by voxel."""
    mask = draw(masks())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    how = draw(st.sampled_from(["plane", "shell", "noise"]))
    if how == "plane":
        second = np.stack(np.indices(mask.shape), axis=-1) @ rng.normal(size=3) > rng.normal(0, 5)
    elif how == "shell":
        second = binary_dilation(~np.pad(mask, 1), iterations=int(rng.integers(1, 3)))[1:-1, 1:-1, 1:-1]
    else:
        second = rng.random(mask.shape) < rng.uniform(0, 1)
    return np.where(mask, np.where(second, 2, 1), 0).astype(np.uint8)


@examples(60)
@given(sides=cuts(), seed=st.integers(0, 99), pad=st.tuples(*[st.integers(0, 2)] * 3))
def test_a_film_is_what_lies_on_the_other_side(sides: np.ndarray, seed: int, pad: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    cube = np.ones((3, 3, 3), bool)
    for side in (1, 2):
        own, other = sides == side, sides == 3 - side
        if not own.any():
            continue
        shape = side_shape(sides, side)
        assert shape.voxels == own.sum()
        assert shape.touching == (own & binary_dilation(other, cube)).sum() / own.sum()
        exposed = binary_dilation(~np.pad(sides != 0, 1))[1:-1, 1:-1, 1:-1] & (sides != 0)
        assert shape.surface == (exposed & own).sum() / exposed.sum()
        inner = ~binary_dilation(~np.pad(own, 1))[1:-1, 1:-1, 1:-1] & own
        assert shape.deep == inner.sum() / own.sum()
    if not (sides == 1).any() or not (sides == 2).any():
        assert find_doubt(VoxelCut(sides), voxel(0, 0, 0), voxel(0, 0, 0), ISOTROPIC) is None
        return
    source, sink = (rng.permutation(np.argwhere(sides == side))[:1] for side in (1, 2))
    doubt = find_doubt(VoxelCut(sides), source, sink, ISOTROPIC)
    # Neither the box around the object nor the names of the sides matter.
    shifted = find_doubt(VoxelCut(np.pad(sides, [(n, n) for n in pad])), source + pad, sink + pad, ISOTROPIC)
    assert shifted == (None if doubt is None else doubt.shifted(pad))
    counts = [int((sides == side).sum()) for side in (1, 2)]
    smaller = side_shape(sides, 1 if counts[0] <= counts[1] else 2)
    assert (doubt is not None) == (smaller.voxels >= FEWEST and smaller.touching >= TOUCHING)
    if doubt is None:
        return
    assert (doubt.voxels, doubt.cut_voxels) == (min(counts), sum(counts))
    assert 0 < doubt.sure <= 1
    assert doubt.place is None or sides[doubt.place] == 3 - doubt.side
    if counts[0] != counts[1]:
        other_way = find_doubt(VoxelCut(np.where(sides, 3 - sides, 0).astype(np.uint8)), sink, source, ISOTROPIC)
        assert other_way is not None
        assert (other_way.side, other_way.shape, other_way.place) == (3 - doubt.side, doubt.shape, doubt.place)


@pytest.mark.parametrize(("label", "film"), [(105, True), (828, True), (8, False), (1083, False), (1286, False)])
def test_supervoxels_of_real_data(label: int, film: bool) -> None:
    """Of supervoxels that hold two bodies, only those are films whose second body is a rim; most of it is wrong."""
    need((DATA / "fib_250.npz").exists(), "the FIB-SEM volume is not here")
    with np.load(DATA / "fib_250.npz") as file:
        volume, bodies = file["supervoxels"], file["groundtruth"]
    box = find_objects(volume)[label - 1]
    mask, truth = volume[box] == label, bodies[box]
    largest = sorted(zip(*np.unique(truth[mask & (truth > 0)], return_counts=True), strict=True), key=lambda n: -n[1])
    sides = [mask & (truth == body) for body, _ in largest[:2]]
    seeds = [deepest(side) for side in sides]
    cut = cut_voxels(mask, *seeds, ISOTROPIC)
    doubt = find_doubt(cut, *seeds, ISOTROPIC)
    assert (doubt is not None and doubt.kind is DoubtKind.FILM) is film
    if doubt is not None and film:
        right = sides[doubt.side - 1][cut.sides == doubt.side].mean()
        assert right / 2.1 < doubt.sure < right * 2.1


def deepest(side: np.ndarray) -> np.ndarray:
    depth = edt.edt(np.asfortranarray(side), black_border=True)
    return np.argwhere(depth == depth.max())[:1]
