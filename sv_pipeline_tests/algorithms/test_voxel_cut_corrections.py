"""What one more click does to a cut: a correction changes the place where it is, a seed that agrees changes nothing."""

from __future__ import annotations

from typing import Any

import edt
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from sv_pipeline.algorithms.voxel_cut import cut_mask
from sv_pipeline.algorithms.voxel_cut.cells import cell_graph, divided
from sv_pipeline.algorithms.voxel_cut.corrections import Correction, Ground, recut
from sv_pipeline.algorithms.voxel_cut.cut import cut_voxels
from sv_pipeline.algorithms.voxel_cut.race import race_cells, raced
from sv_pipeline.algorithms.voxel_cut.seeds import SeedPair
from sv_pipeline.algorithms.voxel_cut.voxels import Voxels
from sv_pipeline.errors import InputError
from sv_pipeline_tests.algorithms.test_voxel_cut import ISOTROPIC, ball, pieces, requests, tube
from sv_pipeline_tests.properties import examples


@examples(100)
@given(requests(most=1), st.data())
def test_a_seed_that_agrees_with_a_cut_changes_nothing_before_or_after_a_correction(request_: Any, data: Any) -> None:
    mask, source, sink, resolution = request_
    cut = cut_voxels(mask, source, sink, resolution)
    race = cut.parts[0].race
    assume(race.arrivals is not None)

    def with_one_more(places: np.ndarray, labels: np.ndarray, sides: list[np.ndarray]) -> np.ndarray:
        more = places[data.draw(st.integers(0, len(places) - 1))][None]
        number = labels[tuple(more[0])] - 1
        return cut_mask(
            mask, *[np.concatenate([s, more]) if n == number else s for n, s in enumerate(sides)], resolution
        )

    assert np.array_equal(cut.sides, with_one_more(np.argwhere(mask), cut.sides, [source, sink]))
    raced_first = np.zeros(mask.shape, bool)
    raced_first[mask] = (race.arrivals[0] <= race.arrivals[1])[race.cells]
    wrong = np.argwhere((cut.sides == 2) & (raced_first != cut.parts[0].source_first))
    wrong = wrong[(wrong != sink[0]).any(axis=1)]
    assume(len(wrong) > 0)
    corrected = np.concatenate([source, wrong[data.draw(st.integers(0, len(wrong) - 1))][None]])
    try:
        labels = cut_mask(mask, corrected, sink, resolution)
    except InputError:
        return
    agreeing = np.argwhere((labels == 1) | ((labels == 2) & (cut.sides == 2)))
    assert np.array_equal(labels, with_one_more(agreeing, labels, [corrected, sink]))


@examples(100)
@given(requests(), st.integers(0, 2**32 - 1))
def test_a_correction_takes_only_ground_of_the_side_that_had_its_place(request_: Any, seed: int) -> None:
    mask, source, sink, resolution = request_
    depth = edt.edt(mask, anisotropy=resolution, black_border=True)[mask]
    voxels = Voxels(mask, resolution)
    ground = Ground(voxels, depth, *race_cells(voxels, depth))
    first, race = raced(voxels, depth, ground.cells, ground.graph, SeedPair(source, sink))
    rng = np.random.default_rng(seed)
    for _ in range(2):
        place = int(rng.integers(voxels.number))
        to_first = not first[place]
        rivals = voxels.numbers_of(sink if to_first else source)
        if place in rivals:
            continue
        after, race = recut(ground, race, first, Correction(np.array([place], np.int32), to_first, rivals))
        assert after[place] == to_first
        assert (after[rivals] != to_first).all()
        assert (after[first == to_first] == to_first).all()
        if not race.lump and race.arrivals is not None:
            changed, places = np.flatnonzero(after != first), voxels.coordinates * voxels.spacing
            to_rival = np.linalg.norm(places[changed, None] - places[rivals], axis=2).min(axis=1)
            assert (np.linalg.norm(places[changed] - places[place], axis=1) <= to_rival).all()
        assert len(race.cells) == voxels.number
        assert race.cells.max() + 1 == len(race.graph)
        assert race.arrivals is None or race.arrivals.shape == (2, len(race.graph))
        first = after


@examples(50)
@given(requests(), st.integers(0, 2**32 - 1))
def test_a_divided_cell_leads_to_the_graph_that_a_new_search_finds(request_: Any, seed: int) -> None:
    mask, _, _, resolution = request_
    depth = edt.edt(mask, anisotropy=resolution, black_border=True)[mask]
    voxels, rng = Voxels(mask, resolution), np.random.default_rng(seed)
    cells, graph = race_cells(voxels, depth)
    cell = int(rng.integers(len(graph)))
    part = rng.random(np.count_nonzero(cells == cell)) < 0.5
    assume(part.any() and not part.all())
    cells, graph = divided(voxels, depth, cells, graph, cell, part)
    searched = cell_graph(voxels, depth, cells)
    for name, value in vars(searched).items():
        np.testing.assert_allclose(vars(graph)[name], value, err_msg=name)


def test_a_correction_in_a_far_arm_takes_the_arm_and_leaves_what_is_near_the_other_seed() -> None:
    shape = (150, 40, 40)
    trunk = tube(shape, [(5, 20, 20), (145, 20, 20)], 7)
    one, other = tube(shape, [(40, 20, 20), (40, 3, 20)], 4), tube(shape, [(110, 20, 20), (110, 37, 20)], 4)
    source, sink = [[8, 20, 20]], [[30, 20, 20]]
    mask = trunk | one | other
    before = cut_mask(mask, source, sink, ISOTROPIC)
    assert before[110, 34, 20] == 2
    after = cut_mask(mask, [*source, [110, 34, 20]], sink, ISOTROPIC)
    assert (after[other & ~trunk] == 1).mean() > 0.9
    assert (after[:60][mask[:60]] == before[:60][mask[:60]]).mean() > 0.97
    assert pieces(after == 1) == pieces(after == 2) == 1


def test_a_correction_below_the_surface_of_a_cell_leaves_its_middle() -> None:
    shape = (90, 41, 41)
    mask = ball(shape, (20, 20, 20), 17) | ball(shape, (68, 20, 20), 17) | tube(shape, [(20, 20, 20), (68, 20, 20)], 5)
    source, sink = [[20, 20, 20]], [[68, 20, 20]]
    labels = cut_mask(mask, [*source, [68, 20, 33]], sink, ISOTROPIC)
    assert labels[68, 20, 33] == 1
    middle = ball(shape, (68, 20, 20), 10)
    assert (labels[middle] == 2).mean() > 0.95


def test_a_correction_in_a_layer_takes_its_surroundings_only() -> None:
    shape = (90, 41, 41)
    mask = ball(shape, (20, 20, 20), 17) | ball(shape, (68, 20, 20), 17) | tube(shape, [(20, 20, 20), (68, 20, 20)], 5)
    source, sink = [[20, 20, 20]], [[68, 20, 20]]
    before = cut_mask(mask, source, sink, ISOTROPIC)
    labels = cut_mask(mask, [*source, [68, 20, 35]], sink, ISOTROPIC)
    assert labels[68, 20, 35] == 1
    changed = labels != before
    assert changed[ball(shape, (68, 20, 35), 2) & mask].all()
    thread = changed & ~ball(shape, (68, 20, 35), 10)
    assert np.count_nonzero(thread) < 60, "it is joined to its side, by a way of one voxel"


def test_a_correction_in_a_small_mask_whose_cells_raced_takes_the_cell_that_is_wrong_there() -> None:
    # Few cells, and the correction is next to the other side's seed: by distance alone, it would take parts of the
    # ball of that seed, too.
    shape = (150, 33, 33)
    balls = [ball(shape, (x, 16, 16), 13) for x in (16, 45, 74, 103, 132)]
    mask = balls[0] | balls[1] | balls[2] | balls[3] | balls[4]
    mask |= tube(shape, [(16, 16, 16), (132, 16, 16)], 4)
    source, sink = [[16, 16, 16]], [[132, 16, 16]]
    before = cut_mask(mask, source, sink, ISOTROPIC)
    assert [int(before[x, 16, 16]) for x in (16, 45, 103, 132)] == [1, 1, 2, 2]
    after = cut_mask(mask, [*source, [103, 16, 16]], sink, ISOTROPIC)
    assert (after[balls[3]] == 1).mean() > 0.95
    assert (after[balls[4]] == 2).mean() > 0.95
