"""What a voxel cut promises for any mask, and what it finds on shapes with a known answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cc3d
import edt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import find_objects

from sv_pipeline.algorithms.contacts import face_contacts
from sv_pipeline.algorithms.voxel_cut import cut_mask, snap_distance
from sv_pipeline.errors import InputError
from sv_pipeline.testing.fixtures import need
from sv_pipeline_tests.properties import examples

RESOLUTIONS = st.sampled_from([(10.0, 10.0, 10.0), (8.0, 8.0, 40.0), (16.0, 16.0, 40.0), (40.0, 8.0, 8.0)])
ISOTROPIC = (10.0, 10.0, 10.0)


def pieces(side: np.ndarray) -> int:
    return int(cc3d.connected_components(np.asfortranarray(side), connectivity=26).max())


def largest_piece(mask: np.ndarray) -> np.ndarray:
    labels = cc3d.connected_components(np.asfortranarray(mask), connectivity=26)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def refuses_interleaved(refusal: InputError) -> None:
    assert "interleave" in refusal.message


def tube(shape: tuple[int, int, int], points: list[tuple[float, float, float]], radius: float) -> np.ndarray:
    """Voxels within ``radius`` of a polyline."""
    grid = np.stack(np.indices(shape), axis=-1).astype(float)
    inside = np.zeros(shape, bool)
    for start, end in zip(map(np.array, points[:-1]), map(np.array, points[1:]), strict=True):
        along = np.clip(((grid - start) @ (end - start)) / max(((end - start) ** 2).sum(), 1e-9), 0, 1)
        inside |= ((grid - start - along[..., None] * (end - start)) ** 2).sum(axis=-1) <= radius**2
    return inside


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> np.ndarray:
    return tube(shape, [centre, centre], radius)


@st.composite
def masks(draw: Any) -> np.ndarray:
    """Random connected masks: porous, tubes, sheets and lines of one voxel, a neck of one voxel, hollow, tiny."""
    kind = draw(st.sampled_from(["blob", "tubes", "sheet", "line", "neck", "hollow", "tiny"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(int(n) for n in rng.integers(4, 16, 3))
    if kind == "blob":
        mask = rng.random(shape) < rng.uniform(0.2, 0.9)
    elif kind == "tubes":
        points = [tuple(rng.integers(0, shape).astype(float)) for _ in range(rng.integers(2, 6))]
        mask = tube(shape, points, rng.uniform(0.9, 2.5))
    elif kind == "sheet":
        height = np.clip(np.cumsum(rng.integers(-1, 2, shape[:2]), axis=0), 0, shape[2] - 1)
        mask = np.arange(shape[2]) == height[..., None]
    elif kind == "neck":
        mask = np.zeros((shape[0] + 9, 5, 5), bool)
        mask[:4] = mask[-4:] = True
        mask[:, 2, 2] = True
    elif kind == "hollow":
        mask = np.ones(shape, bool)
        mask[1:-1, 1:-1, 1:-1] = rng.random(tuple(n - 2 for n in shape)) < rng.uniform(0, 0.5)
    elif kind == "tiny":
        mask = np.zeros((3, 3, 3), bool)
        mask.ravel()[rng.choice([0, 1, 3, 4, 9, 10, 12, 13], rng.integers(2, 5), replace=False)] = True
    else:
        mask = np.zeros(shape, bool)
        mask[np.arange(min(shape)), np.arange(min(shape)), np.arange(min(shape))] = True
    mask = largest_piece(mask)
    if np.count_nonzero(mask) < 2:
        mask = np.ones(shape, bool)
    return mask


@st.composite
def requests(draw: Any, most: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float, float]]:
    """A connected mask, seeds of both sides on it, and a resolution."""
    mask = draw(masks())
    inside = np.argwhere(mask)
    wanted = [draw(st.integers(1, most)), draw(st.integers(1, most))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if sum(wanted) > len(inside):
        wanted = [1, 1]
    chosen = inside[rng.choice(len(inside), sum(wanted), replace=False)]
    if draw(st.booleans()):  # side by side
        away = np.abs(inside - chosen[0]).max(axis=1)
        chosen = inside[np.argsort(away, kind="stable")[: sum(wanted)]]
    return mask, chosen[: wanted[0]], chosen[wanted[0] :], draw(RESOLUTIONS)


@examples(200)
@given(requests(most=1))
def test_with_one_seed_a_side_every_connected_mask_is_cut_into_two_single_pieces(request_) -> None:
    mask, source, sink, resolution = request_
    labels = cut_mask(mask, source, sink, resolution)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels > 0, mask)
    assert labels[tuple(source[0])] == 1
    assert labels[tuple(sink[0])] == 2
    assert pieces(labels == 1) == 1
    assert pieces(labels == 2) == 1


@examples(200)
@given(requests(most=8))  # more of them contradict each other than are corrected one by one
def test_with_several_seeds_a_side_each_side_is_one_piece_with_its_seeds_or_the_seeds_are_refused(request_) -> None:
    mask, source, sink, resolution = request_
    try:
        labels = cut_mask(mask, source, sink, resolution)
    except InputError as refusal:
        refuses_interleaved(refusal)
        return
    assert np.array_equal(labels > 0, mask)
    assert (labels[tuple(source.T)] == 1).all()
    assert (labels[tuple(sink.T)] == 2).all()
    assert pieces(labels == 1) == 1
    assert pieces(labels == 2) == 1


@examples(100)
@given(requests())
def test_the_answer_does_not_depend_on_which_side_is_called_source(request_) -> None:
    mask, source, sink, resolution = request_
    try:
        labels = cut_mask(mask, source, sink, resolution)
    except InputError:
        with pytest.raises(InputError):
            cut_mask(mask, sink, source, resolution)
        return
    assert np.array_equal(labels, cut_mask(mask, np.concatenate([source, source]), sink, resolution))
    swapped = cut_mask(mask, sink, source, resolution)
    assert np.array_equal(swapped, np.where(labels > 0, 3 - labels, 0))


@examples(50)
@given(requests(), st.integers(0, 5))
def test_empty_space_around_the_mask_changes_nothing(request_, margin) -> None:
    mask, source, sink, resolution = request_
    try:
        labels = cut_mask(mask, source, sink, resolution)
    except InputError:
        return
    padded = cut_mask(np.pad(mask, margin), source + margin, sink + margin, resolution)
    assert np.array_equal(padded, np.pad(labels, margin))


def test_the_memory_order_of_a_mask_changes_nothing_but_that_of_the_labels() -> None:
    mask = tube((9, 80, 7), [(2, 3, 3), (6, 40, 2), (2, 76, 4)], 2.5)  # longer in y than what is reordered at once
    source, sink = [[2, 3, 3]], [[2, 76, 4]]
    expected = cut_mask(mask, source, sink, ISOTROPIC)
    assert {0, 1, 2} == set(np.unique(expected))
    fortran = cut_mask(np.asfortranarray(mask), source, sink, ISOTROPIC)
    assert fortran.flags.f_contiguous
    assert np.array_equal(fortran, expected)
    spread = np.zeros((18, 80, 14), bool)
    spread[::2, :, ::2] = mask
    assert np.array_equal(cut_mask(spread[::2, :, ::2], source, sink, ISOTROPIC), expected)


@examples(100)
@given(st.integers(0, 2**32 - 1), RESOLUTIONS)
def test_a_mask_in_several_components_is_cut_where_both_sides_have_seeds(seed, resolution) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(tuple(rng.integers(3, 14, 3))) < 0.12
    inside = np.argwhere(mask)
    if len(inside) < 4:
        return
    chosen = inside[rng.choice(len(inside), 4, replace=False)]
    try:
        labels = cut_mask(mask, chosen[:2], chosen[2:], resolution)
    except InputError as refusal:
        refuses_interleaved(refusal)
        return
    assert np.array_equal(labels > 0, mask)
    assert (labels[tuple(chosen[:2].T)] == 1).all()
    assert (labels[tuple(chosen[2:].T)] == 2).all()
    components = cc3d.connected_components(np.asfortranarray(mask), connectivity=26)
    seeded = components[tuple(chosen.T)]
    for component in range(1, components.max() + 1):
        sides = np.unique(labels[components == component])
        both = np.isin(component, seeded[:2]) and np.isin(component, seeded[2:])
        assert len(sides) == (2 if both else 1)


def test_an_island_goes_to_the_nearer_side_in_nanometres() -> None:
    mask = np.zeros((30, 9, 9), bool)
    mask[:20, 4, 0] = True
    mask[2, 4, 3] = True  # 3 sections above the source: 120 nm
    mask[28, 4, 0] = True  # 9 voxels beyond the sink's end: 72 nm
    labels = cut_mask(mask, [[0, 4, 0]], [[19, 4, 0]], (8, 8, 40))
    assert labels[2, 4, 3] == 1
    assert labels[28, 4, 0] == 2
    far_in_voxels = np.zeros((30, 9, 9), bool)
    far_in_voxels[0, 0, 0] = far_in_voxels[20, 0, 8] = True
    far_in_voxels[12, 0, 8] = far_in_voxels[12, 0, 0] = True
    # (12, 0, 0) is 96 nm from the source; in voxels the sink is as near.
    assert cut_mask(far_in_voxels, [[0, 0, 0]], [[20, 0, 8]], (8, 8, 40))[12, 0, 0] == 1


def test_a_dumbbell_is_cut_at_its_neck_wherever_the_seeds_lie() -> None:
    shape = (60, 25, 25)
    left, right = ball(shape, (14, 12, 12), 11), ball(shape, (42, 12, 12), 11)
    mask = left | right | tube(shape, [(14, 12, 12), (42, 12, 12)], 3)
    for source, sink in (((14, 12, 12), (42, 12, 12)), ((6, 12, 12), (35, 12, 12)), ((14, 4, 12), (50, 12, 12))):
        labels = cut_mask(mask, [source], [sink], ISOTROPIC)
        assert (labels[left] == 1).mean() > 0.99
        assert (labels[right] == 2).mean() > 0.99


def test_two_tubes_that_touch_along_a_line_are_parted_along_it() -> None:
    shape = (70, 16, 28)
    one, other = tube(shape, [(8, 8, 8), (62, 8, 8)], 5.2), tube(shape, [(8, 8, 18), (62, 8, 18)], 5.2)
    labels = cut_mask(one | other, [[12, 8, 8]], [[58, 8, 18]], ISOTROPIC)
    only_one, only_other = one & ~other, other & ~one
    assert (labels[only_one] == 1).mean() > 0.9
    assert (labels[only_other] == 2).mean() > 0.9


def test_the_side_branch_of_a_y_comes_off_whole() -> None:
    shape = (80, 50, 13)
    trunk, branch = tube(shape, [(6, 6, 6), (74, 6, 6)], 5), tube(shape, [(40, 12, 6), (40, 44, 6)], 3)
    labels = cut_mask(trunk | branch, [[8, 6, 6], [70, 6, 6]], [[40, 38, 6]], ISOTROPIC)
    assert (labels[trunk] == 1).mean() > 0.95
    assert (labels[branch & ~trunk] == 2).mean() > 0.85


def test_in_a_u_the_way_through_the_object_counts_not_the_straight_line() -> None:
    shape = (60, 30, 11)
    mask = tube(shape, [(54, 5, 5), (6, 5, 5), (6, 24, 5), (54, 24, 5)], 4)
    labels = cut_mask(mask, [[50, 5, 5]], [[50, 24, 5]], ISOTROPIC)
    assert (labels[20:56, :12][mask[20:56, :12]] == 1).all()
    assert (labels[20:56, 18:][mask[20:56, 18:]] == 2).all()


def test_anisotropy_is_respected() -> None:
    mask = np.ones((41, 3, 41), bool)
    source, sink = [[2, 1, 2]], [[38, 1, 38]]
    labels = cut_mask(mask, source, sink, (10, 10, 100))
    # 36 voxels in z are ten times as far as 36 in x: the cut lies across z.
    assert (labels[:, :, :16] == 1).all()
    assert (labels[:, :, -16:] == 2).all()


def test_seeds_beside_the_mask_snap_to_it_up_to_the_stated_distance() -> None:
    mask = np.zeros((60, 9, 9), bool)
    mask[:20] = True
    assert snap_distance(ISOTROPIC) == 300
    labels = cut_mask(mask, [[0, 4, 4]], [[49, 4, 4]], ISOTROPIC)
    assert labels[19, 4, 4] == 2
    with pytest.raises(InputError, match=r"sink seed \(50, 4, 4\) is more than 300 nm"):
        cut_mask(mask, [[0, 4, 4]], [[50, 4, 4]], ISOTROPIC)
    assert snap_distance((8, 8, 200)) == 600


FULL = np.ones((5, 5, 5), bool)
ONE_VOXEL = np.zeros((5, 5, 5), bool)
ONE_VOXEL[2, 2, 2] = True


@pytest.mark.parametrize(
    ("mask", "source", "sink", "resolution", "message"),
    [
        (FULL.astype(np.uint8), [[0, 0, 0]], [[4, 4, 4]], ISOTROPIC, "not a bool array"),
        (FULL[0], [[0, 0, 0]], [[4, 4, 4]], ISOTROPIC, "not a bool array"),
        (~FULL, [[0, 0, 0]], [[4, 4, 4]], ISOTROPIC, "nothing to cut"),
        (ONE_VOXEL, [[2, 2, 2]], [[2, 2, 3]], ISOTROPIC, "nothing to cut"),
        (FULL, np.zeros((0, 3), int), [[4, 4, 4]], ISOTROPIC, "source seeds have shape"),
        (FULL, [0, 0, 0], [[4, 4, 4]], ISOTROPIC, "source seeds have shape"),
        (FULL, [[0, 0, 0]], [[4.0, np.nan, 4]], ISOTROPIC, "sink seeds have type float64"),
        (FULL, [[0, 0, 0]], [[4, 4, 5]], ISOTROPIC, "outside the array"),
        (FULL, [[0, 0, -1]], [[4, 4, 4]], ISOTROPIC, "outside the array"),
        (FULL, [[0, 0, 0], [1, 1, 1]], [[4, 4, 4], [1, 1, 1]], ISOTROPIC, "seed of both sides"),
        (FULL, [[0, 0, 0]], [[4, 4, 4]], (8, 8), "not three sizes"),
        (FULL, [[0, 0, 0]], [[4, 4, 4]], (8, 8, 0), "not three sizes"),
        (FULL, [[0, 0, 0]], [[4, 4, 4]], (8, 8, np.nan), "not three sizes"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_a_reason(mask, source, sink, resolution, message) -> None:
    with pytest.raises(InputError, match=message):
        cut_mask(mask, source, sink, resolution)


def test_seeds_that_alternate_along_a_line_are_refused() -> None:
    mask = np.zeros((9, 3, 3), bool)
    mask[:, 1, 1] = True
    with pytest.raises(InputError, match="interleave"):
        cut_mask(mask, [[0, 1, 1], [5, 1, 1]], [[2, 1, 1], [8, 1, 1]], ISOTROPIC)


def test_seeds_that_alternate_along_a_thick_tube_still_give_one_piece_a_side() -> None:
    mask = np.ones((40, 9, 9), bool)
    labels = cut_mask(mask, [[2, 4, 4], [22, 4, 4]], [[12, 4, 4], [36, 4, 4]], ISOTROPIC)
    assert pieces(labels == 1) == pieces(labels == 2) == 1


def test_seeds_of_one_side_in_two_arms_are_joined_round_the_other_side() -> None:
    shape = (110, 110, 11)
    cross = tube(shape, [(4, 55, 5), (106, 55, 5)], 4) | tube(shape, [(55, 4, 5), (55, 106, 5)], 4)
    labels = cut_mask(cross, [[6, 55, 5], [104, 55, 5]], [[55, 6, 5], [55, 104, 5]], ISOTROPIC)
    assert pieces(labels == 1) == pieces(labels == 2) == 1
    for arm in (np.s_[:20], np.s_[90:]):
        assert (labels[arm][cross[arm]] == 1).mean() > 0.95
        assert (labels[:, arm][cross[:, arm]] == 2).mean() > 0.95


def test_where_two_neurites_cross_each_keeps_its_far_arm() -> None:
    shape = (110, 110, 23)
    # They touch where they pass over each other; one seed each, the sink's much nearer to the crossing.
    one, other = tube(shape, [(4, 55, 7), (106, 55, 7)], 4.5), tube(shape, [(55, 4, 15), (55, 106, 15)], 4.5)
    labels = cut_mask(one | other, [[8, 55, 7]], [[55, 38, 15]], ISOTROPIC)
    assert (labels[one & ~other] == 1).mean() > 0.9
    assert (labels[other & ~one] == 2).mean() > 0.9


@pytest.mark.parametrize("radius", [4, 5])
def test_where_two_neurites_run_through_each_other_each_keeps_its_far_arm(radius) -> None:
    shape = (110, 110, 19)
    # The cells of the crossing can go to one side only: the other side's far arm is cut off, but for a thread.
    one = tube(shape, [(4, 55, 9), (106, 55, 9)], radius)
    other = tube(shape, [(55, 4, 9), (55, 106, 9)], radius)
    labels = cut_mask(one | other, [[8, 55, 9]], [[55, 20, 9]], ISOTROPIC)
    assert pieces(labels == 1) == pieces(labels == 2) == 1
    assert (labels[66:][one[66:]] == 1).mean() > 0.95
    assert (labels[:, 66:][other[:, 66:]] == 2).mean() > 0.95


def test_where_a_neurite_ends_at_the_side_of_another_it_does_not_take_the_half_that_continues_a_line() -> None:
    shape = (300, 40, 9)
    # The seed of the long one is eighty radii away from where the other one ends, beyond which it goes on.
    one, other = tube(shape, [(4, 10, 4), (296, 10, 4)], 3), tube(shape, [(240, 15, 4), (240, 36, 4)], 3)
    labels = cut_mask(one | other, [[8, 10, 4]], [[240, 30, 4]], ISOTROPIC)
    assert (labels[252:][one[252:]] == 1).all()
    assert (labels[other & ~one] == 2).mean() > 0.95


@pytest.mark.parametrize("resolution", [ISOTROPIC, (8.0, 8.0, 16.0)])
def test_seeds_below_the_surface_of_a_lump_whose_middle_is_the_other_sides_claim_its_surface(resolution) -> None:
    lump = ball((51, 51, 51), (25, 25, 25), 22)
    inside = edt.edt(lump, black_border=True)
    labels = cut_mask(lump, [[25, 25, 25]], [[25, 46, 25]], resolution)
    assert (labels[inside > 4] == 1).mean() > 0.99
    assert (labels[lump & (inside <= 1)] == 2).mean() > 0.99
    assert pieces(labels == 1) == pieces(labels == 2) == 1


def test_a_seed_below_the_surface_of_a_neurite_of_its_own_claims_that_neurite() -> None:
    shape = (100, 60, 41)
    soma, neurite = ball(shape, (22, 30, 20), 19), tube(shape, [(40, 30, 20), (96, 30, 20)], 4)
    labels = cut_mask(soma | neurite, [[22, 30, 20]], [[80, 33, 20]], ISOTROPIC)
    assert (labels[soma & ~neurite] == 1).mean() > 0.95
    assert (labels[75:][neurite[75:]] == 2).mean() > 0.9
    # As thick as the other, but behind a neck.
    one, other = ball(shape, (22, 30, 20), 19), ball(shape, (70, 30, 20), 18)
    labels = cut_mask(
        one | other | tube(shape, [(22, 30, 20), (70, 30, 20)], 4), [[22, 30, 20]], [[70, 47, 20]], ISOTROPIC
    )
    assert (labels[one] == 1).mean() > 0.95
    assert (labels[other] == 2).mean() > 0.95


def test_a_hundred_seeds_a_side_are_kept_and_joined() -> None:
    shape = (110, 110, 23)
    one, other = tube(shape, [(4, 55, 7), (106, 55, 7)], 4.5), tube(shape, [(55, 4, 15), (55, 106, 15)], 4.5)
    rng = np.random.default_rng(0)
    source, sink = (rng.permutation(np.argwhere(side))[:100] for side in (one & ~other, other & ~one))
    labels = cut_mask(one | other, source, sink, ISOTROPIC)
    assert (labels[tuple(source.T)] == 1).all()
    assert (labels[tuple(sink.T)] == 2).all()
    assert pieces(labels == 1) == pieces(labels == 2) == 1


DATA = Path(__file__).parents[3] / "shared" / "data"


def balanced_accuracy(labels: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    return float(((labels[one] == 1).mean() + (labels[other] == 2).mean()) / 2)


def deepest(side: np.ndarray, resolution: tuple[float, ...]) -> np.ndarray:
    depth = edt.edt(np.asfortranarray(side), anisotropy=resolution, black_border=True)
    return np.argwhere(depth == depth.max())[:1]


def test_real_objects_fused_into_one_mask_come_apart() -> None:
    need((DATA / "em_128.npz").exists(), f"{DATA / 'em_128.npz'} (real segmentation)")
    with np.load(DATA / "em_128.npz") as file:
        volume, resolution = file["segmentation"], tuple(float(r) for r in file["resolution"])
    contacts, sizes = face_contacts(volume), np.bincount(volume.ravel())
    usable = (contacts.areas >= 100) & (sizes[contacts.pairs].min(axis=1) >= 3000)
    pairs = contacts.pairs[usable & (sizes[contacts.pairs].max(axis=1) <= 30_000)]
    scores = []
    for a, b in pairs[:: max(1, len(pairs) // 48)]:
        mask = largest_piece((volume == a) | (volume == b))
        one, other = mask & (volume == a), mask & (volume == b)
        if min(one.sum(), other.sum()) < 3000:
            continue
        labels = cut_mask(mask, deepest(one, resolution), deepest(other, resolution), resolution)
        assert pieces(labels == 1) == pieces(labels == 2) == 1
        scores.append(balanced_accuracy(labels, one, other))
    assert len(scores) >= 24
    assert np.median(scores) > 0.88
    assert np.mean(scores) > 0.84


def test_real_supervoxels_that_straddle_two_bodies_come_apart() -> None:
    need((DATA / "fib_250.npz").exists(), f"{DATA / 'fib_250.npz'} (real supervoxels)")
    with np.load(DATA / "fib_250.npz") as file:
        supervoxels, bodies = file["supervoxels"], file["groundtruth"]
        resolution = tuple(float(r) for r in file["resolution"])
    scores = []
    boxes = find_objects(supervoxels)
    for label in (8, 20, 653, 747, 909, 1083, 1237, 1286, 1334, 1506, 1663, 1690):
        box = boxes[label - 1]
        mask = supervoxels[box] == label
        inside = np.bincount(bodies[box][mask])
        inside[0] = 0
        one, other = (mask & (bodies[box] == body) for body in np.argsort(-inside)[:2])
        labels = cut_mask(mask, deepest(one, resolution), deepest(other, resolution), resolution)
        scores.append(balanced_accuracy(labels, one, other))
    assert np.median(scores) > 0.8
    assert np.mean(scores) > 0.8
