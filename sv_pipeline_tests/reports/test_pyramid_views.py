"""The picture of all mips around an edit: wherever the edit is, and whatever the fork tells of it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from sv_pipeline.errors import NotFoundError
from sv_pipeline.grid import Box
from sv_pipeline.ingest.run import ingest
from sv_pipeline.pyramid.catch_up import CatchUp, catch_up
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.pyramid_views import catch_up_picture
from sv_pipeline.reports.sizes import DIALOG_WIDTH_OF_ROWS, PUBLISHED_WIDTH
from sv_pipeline_tests.defs.edited import edit
from sv_pipeline_tests.ingest.builds import raw_config, register


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder: Path = tmp_path_factory.mktemp("pictured")
    dataset = register(raw_config(folder / "data"), folder / "home")
    ingest(dataset, workers=1)
    return dataset


@pytest.fixture(scope="module")
def done(dataset: Dataset) -> CatchUp:
    edit(dataset, 1, at=(10, 10, 4))
    return catch_up(dataset)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(matplotlib.image.imread(io.BytesIO(png), format="png"))


def test_three_moments_one_below_the_other(dataset: Dataset, done: CatchUp) -> None:
    three = pixels(catch_up_picture(dataset, done))
    two = pixels(catch_up_picture(dataset, replace(done, unedited_generation=None)))
    assert three.shape[1] == PUBLISHED_WIDTH
    in_the_ui = pixels(catch_up_picture(dataset, done, width=DIALOG_WIDTH_OF_ROWS))
    assert in_the_ui.shape[1] == DIALOG_WIDTH_OF_ROWS
    assert 1.2 < three.shape[0] / two.shape[0] < 1.8


def test_each_moment_shows_what_was_stored_then(dataset: Dataset, done: CatchUp) -> None:
    """If nothing had happened in between, the rows would be the same."""
    real = pixels(catch_up_picture(dataset, done))
    still = replace(done, unedited_generation=done.generation_after, generation_before=done.generation_after)
    assert real.shape == pixels(catch_up_picture(dataset, still)).shape
    assert (real != pixels(catch_up_picture(dataset, still))).any()


@pytest.mark.parametrize("corner", [False, True])
def test_edits_at_the_border_and_of_one_voxel_are_shown(dataset: Dataset, done: CatchUp, corner: bool) -> None:
    bounds = dataset.base.info().volume.bounds
    last = Box.of(np.subtract(bounds.stop, 1), bounds.stop)
    for box in (last if corner else Box.of(bounds.start, np.add(bounds.start, 1)), bounds.grow(5)):
        assert catch_up_picture(dataset, replace(done, shown=box)).startswith(b"\x89PNG")


def test_without_anything_behind_there_is_no_picture(dataset: Dataset, done: CatchUp) -> None:
    idle = catch_up(dataset)
    assert (idle.shown, idle.before.entries, idle.report.complete) == (None, 0, True)
    with pytest.raises(NotFoundError, match="no mip of graph"):
        catch_up_picture(dataset, idle)
