"""Pictures of a cut, from arrays: colours, where the slices go, and the sheet itself."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sv_pipeline.grid import Box
from sv_pipeline.reports.cut_pictures import (
    CutScene,
    Kind,
    Objects,
    SceneState,
    cut_voxel,
    kinds_by_object,
    render_cut,
    with_sides,
)
from sv_pipeline.reports.sizes import DIALOG_WIDTH, PUBLISHED_WIDTH

Resolution = tuple[float, float, float]
START = (100, -40, 7)
ISOTROPIC: Resolution = (8.0, 8.0, 8.0)
BLUE, ORANGE, CREAM, RED = (63, 151, 221), (242, 160, 44), (236, 230, 214), (255, 77, 109)


def scene_of(
    after: npt.NDArray[np.uint8], resolution: Resolution = (8.0, 8.0, 40.0), *, points: bool = True
) -> CutScene:
    """An object that falls into two sides."""
    before = np.where(after >= Kind.OBJECT, np.uint8(Kind.OBJECT), after)
    labels = after.astype(np.uint64)
    found = [np.argwhere(after == kind)[:1] + START if points else np.zeros((0, 3), int) for kind in (3, 4)]
    return CutScene(
        "title",
        "subtitle",
        Box.of(START, np.add(START, after.shape)),
        resolution,
        SceneState("before", before, labels),
        SceneState("after", after, labels),
        *(side.astype(np.int64) for side in found),
    )


def halves(shape: tuple[int, int, int], at: int) -> npt.NDArray[np.uint8]:
    kinds = np.full(shape, Kind.SOURCE, np.uint8)
    kinds[at:] = Kind.SINK
    return kinds


# -- kinds ------------------------------------------------------------------------------------------------------------


def test_voxels_take_the_side_of_their_object() -> None:
    labels = np.array([[[0, 11, 12, 21, 31, 41]]], np.uint64)
    objects = {11: 1, 12: 1, 21: 2, 31: 3, 41: 4}

    def object_of(ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        assert len(set(ids.tolist())) == len(ids)
        return np.array([objects[i] for i in ids.tolist()], np.uint64)

    ids = [np.array(i, np.uint64) for i in ([3], [1], [2])]
    kinds = kinds_by_object(labels, object_of, *ids)
    assert kinds.ravel().tolist() == [
        Kind.BACKGROUND,
        Kind.SOURCE,
        Kind.SOURCE,
        Kind.SINK,
        Kind.OBJECT,
        Kind.OTHER,
    ]
    both = kinds_by_object(labels, object_of, ids[0], ids[1], ids[1])
    assert both.ravel()[1] == Kind.OBJECT


@given(
    start=st.tuples(*[st.integers(-8, 8)] * 3),
    cut_start=st.tuples(*[st.integers(-8, 8)] * 3),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    cut_shape=st.tuples(*[st.integers(1, 6)] * 3),
    seed=st.integers(0, 99),
)
def test_a_cut_of_voxels_is_laid_over_wherever_its_box_is(
    start: tuple[int, ...], cut_start: tuple[int, ...], shape: tuple[int, ...], cut_shape: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 5, shape).astype(np.uint8)
    sides = rng.integers(0, 3, cut_shape).astype(np.uint8)
    box, cut = Box.of(start, np.add(start, shape)), Box.of(cut_start, np.add(cut_start, cut_shape))
    untouched = kinds.copy()
    found = with_sides(kinds, box, cut, sides)
    for at in np.ndindex(*shape):
        in_cut = np.add(at, start) - cut_start
        inside = ((in_cut >= 0) & (in_cut < cut_shape)).all()
        side = sides[tuple(in_cut)] if inside else 0
        assert found[at] == {0: kinds[at], 1: Kind.SOURCE, 2: Kind.SINK}[int(side)]
    assert (kinds == untouched).all()


# -- where ------------------------------------------------------------------------------------------------------------


@given(shape=st.tuples(*[st.integers(1, 9)] * 3), density=st.floats(0.0, 0.6), seed=st.integers(0, 200))
def test_the_slices_meet_on_the_cut_wherever_there_is_one(
    shape: tuple[int, int, int], density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kinds = np.where(rng.random(shape) < density, rng.integers(2, 5, shape), Kind.OTHER).astype(np.uint8)
    scene = scene_of(kinds)
    at = cut_voxel(scene)
    assert all(0 <= v < s for v, s in zip(at, shape, strict=True))
    neighbours = {int(kinds[n]) for n in neighbours_of(at, shape)}
    touching = any(
        kinds[v] == Kind.SOURCE and any(kinds[n] == Kind.SINK for n in neighbours_of(v, shape))
        for v in np.ndindex(*shape)
    )
    if touching:
        assert {int(kinds[at])} | neighbours >= {Kind.SOURCE, Kind.SINK}
        assert kinds[at] in (Kind.SOURCE, Kind.SINK)
    elif (kinds >= Kind.OBJECT).any():
        assert kinds[at] >= Kind.OBJECT


def neighbours_of(at: tuple[int, ...], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    steps = [np.eye(3, dtype=int)[axis] * sign for axis in range(3) for sign in (1, -1)]
    found = [tuple(int(v) for v in np.add(at, step)) for step in steps]
    return [n for n in found if all(0 <= v < s for v, s in zip(n, shape, strict=True))]


def test_a_cut_is_looked_at_near_the_points_where_it_is_long() -> None:
    scene = scene_of(halves((20, 40, 30), at=8))
    x, _, _ = cut_voxel(scene)
    assert x in (7, 8)


# -- the sheet --------------------------------------------------------------------------------------------------------


def pixels_of(png: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def share_of(pixels: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> float:
    """How much of a picture has a hue, in any of its shades."""
    flat = pixels.reshape(-1, 3).astype(float)
    norm = np.linalg.norm(flat, axis=1) * np.linalg.norm(colour)
    same_hue = (flat @ np.array(colour, float)) > 0.9995 * np.maximum(norm, 1)
    return float((same_hue & (flat.max(axis=1) > 120)).mean())


def test_before_is_one_colour_and_after_is_two() -> None:
    pixels = pixels_of(render_cut(scene_of(halves((60, 60, 12), at=30))))
    top, bottom = pixels[120 : pixels.shape[0] // 2], pixels[pixels.shape[0] // 2 + 40 :]
    assert share_of(top, CREAM) > 0.5
    assert share_of(top, BLUE) < 0.01
    assert share_of(bottom, BLUE) > 0.2
    assert share_of(bottom, ORANGE) > 0.2
    assert share_of(bottom, CREAM) < 0.05


@pytest.mark.parametrize("resolution", [(8.0, 8.0, 40.0), (4.0, 4.0, 4.0), (30.0, 3.0, 3.0)])
@pytest.mark.parametrize("shape", [(40, 40, 8), (1, 1, 1), (90, 3, 2), (2, 3, 90)])
def test_any_box_fits_the_dialog_of_the_ui(shape: tuple[int, int, int], resolution: Resolution) -> None:
    for points in (True, False):
        height, width, _ = pixels_of(
            render_cut(scene_of(halves(shape, at=shape[0] // 2), resolution, points=points), width=DIALOG_WIDTH)
        ).shape
        assert width == DIALOG_WIDTH
        assert height <= 1.3 * DIALOG_WIDTH


def test_what_cannot_be_compared_is_one_row() -> None:
    scene = scene_of(halves((30, 30, 30), at=15), ISOTROPIC)
    both, one = (pixels_of(render_cut(s)) for s in (scene, replace(scene, after=None)))
    assert both.shape[1] == one.shape[1] == PUBLISHED_WIDTH
    assert 1.7 < both.shape[0] / one.shape[0] < 2
    assert share_of(one, CREAM) > 0.5
    assert share_of(one, BLUE) < 0.01


def test_the_place_of_another_point_is_marked() -> None:
    scene = scene_of(halves((30, 30, 30), at=15), ISOTROPIC)
    place = np.array([np.add(START, cut_voxel(scene))], np.int64)
    assert share_of(pixels_of(render_cut(replace(scene, deciding=place))), RED) > share_of(
        pixels_of(render_cut(scene)), RED
    )


def test_edited_objects_of_one_kind_side_by_side_differ() -> None:
    """For example the parts of an object that hold no points."""
    kinds = np.full((20, 20, 20), Kind.OBJECT, np.uint8)
    labels = np.ones(kinds.shape, np.uint64)
    labels[10:] = 2
    state = SceneState("before", kinds, labels, Objects(np.array([1, 2], np.uint64), np.array([11, 12], np.uint64)))
    scene = replace(scene_of(kinds, ISOTROPIC, points=False), before=state, after=None)
    joined = replace(state, objects=Objects(np.array([1, 2], np.uint64), np.array([11, 11], np.uint64)))
    two, one = (pixels_of(render_cut(replace(scene, before=s))).max(axis=-1) for s in (state, joined))
    dim = [float(((shown > 120) & (shown < 180)).mean()) for shown in (two, one)]
    assert dim[0] > 0.2 > 0.1 > dim[1]


def test_a_slice_can_be_asked_for() -> None:
    kinds = np.full((20, 20, 20), Kind.OTHER, np.uint8)
    kinds[5, 6, 7] = Kind.OBJECT
    scene = scene_of(kinds, points=False)
    assert render_cut(scene, at=(105, -34, 14), width=400) == render_cut(scene, width=400)
    assert render_cut(scene, at=(110, -30, 17), width=400) != render_cut(scene, width=400)


def test_pictures_are_the_same_each_time() -> None:
    scene = scene_of(halves((20, 20, 10), at=9))
    assert render_cut(scene, width=400) == render_cut(scene, width=400)
