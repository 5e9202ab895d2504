"""Colours of labels: neighbours differ, a label has one colour in all slices, and mostly that of other pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sv_pipeline.reports.colours import GREYS, VIVID, Palette, colours_of
from sv_pipeline.reports.pictures import Panel, render
from sv_pipeline.reports.sizes import PUBLISHED_WIDTH
from sv_pipeline_tests.properties import examples

FEW = Palette(np.eye(3), 0.1, by_id=False)


@examples(60)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3),
    ids=st.lists(st.integers(1, 2**64 - 1), min_size=1, max_size=40, unique=True),
    palette=st.sampled_from([VIVID, GREYS, FEW]),
    seed=st.integers(0, 999),
)
def test_neighbours_never_share_a_colour(
    shapes: list[tuple[int, int]], ids: list[int], palette: Palette, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    slices = [rng.choice(np.array([0, *ids], np.uint64), shape) for shape in shapes]
    colours = colours_of(slices, palette)
    of_label: dict[int, tuple[float, ...]] = {}
    for labels, rgb in zip(slices, colours, strict=True):
        assert rgb.shape == (*labels.shape, 3)
        assert ((rgb >= 0) & (rgb <= 1)).all()
        for at in np.ndindex(*labels.shape):
            assert of_label.setdefault(int(labels[at]), tuple(rgb[at])) == tuple(rgb[at])
            for other in ((at[0] + 1, at[1]), (at[0], at[1] + 1), (at[0] + 1, at[1] + 1), (at[0] + 1, at[1] - 1)):
                if all(0 <= v < n for v, n in zip(other, labels.shape, strict=True)) and labels[at] != labels[other]:
                    assert tuple(rgb[at]) != tuple(rgb[other])


def test_neighbours_look_different_while_the_palette_suffices() -> None:
    labels = np.arange(1, 401, dtype=np.uint64).reshape(20, 20).repeat(3, 0).repeat(3, 1)
    (rgb,) = colours_of([labels])
    apart = np.linalg.norm(rgb[3:] - rgb[:-3], axis=-1), np.linalg.norm(rgb[:, 3:] - rgb[:, :-3], axis=-1)
    assert min(float(one.min()) for one in apart) > 0.1


def test_a_label_alone_has_the_colour_of_its_id() -> None:
    one, other = (colours_of([np.full((2, 2), label, np.uint64)])[0][0, 0] for label in (17, 18))
    assert (colours_of([np.array([[17, 0, 0, 0, 18]], np.uint64)])[0][0, [0, 4]] == [one, other]).all()


@pytest.mark.parametrize("shape", [(90, 30), (30, 90)])
def test_all_slices_of_a_picture_have_one_scale(shape: tuple[int, int]) -> None:
    panels = [
        Panel("x-y", np.full(shape, 5, np.uint64), (10, 10)),
        Panel("x-z", np.full((90, 12), 5, np.uint64), (10, 40)),
    ]
    image = np.asarray(Image.open(io.BytesIO(render(panels))).convert("RGB")).astype(int)
    assert image.shape[1] == PUBLISHED_WIDTH
    colour = (colours_of([np.array([[5]], np.uint64)])[0][0, 0] * 255).astype(int)
    there = (np.abs(image - colour).max(axis=-1) <= 1).mean(axis=0) > 0.1
    edges = np.flatnonzero(np.diff(np.concatenate([[0], there, [0]])))
    first, second = np.diff(edges.reshape(-1, 2)).ravel()[:2]
    assert first / second == pytest.approx(shape[0] * 10 / 900, rel=0.02)
