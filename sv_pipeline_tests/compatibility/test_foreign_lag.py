"""Supervoxel splits that PyChunkedGraph makes in a fork of ours: coarser mips are known to be behind, and catch up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.pyramid.catch_up import catch_up
from sv_pipeline.pyramid.foreign import note_foreign_edits, note_foreign_edits_of
from sv_pipeline.pyramid.lag import lag_of_graph, lags
from sv_pipeline.registry import Registry
from sv_pipeline.table import columns, keys, meta
from sv_pipeline.table.interface import DeleteCells, RowMutation, SetCell
from sv_pipeline.testing import worlds
from sv_pipeline.testing.tables import EVERYTHING, Backend
from sv_pipeline.testing.volumes import drawn
from sv_pipeline.testing.worlds import World
from sv_pipeline_tests.compatibility.their_voxels import Theirs

ALL = slice(None)
BARS = {1: (ALL, slice(1, 5), slice(1, 5)), 2: (ALL, slice(5, 9), slice(1, 5)), 3: (ALL, slice(10, 14), slice(1, 5))}


@pytest.fixture(scope="module")
def split_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A graph with a split through a supervoxel."""
    volume = drawn((48, 16, 16), BARS, {1: 1, 2: 1, 3: 2}, voxel_offset=(8, -8, 16))
    world = worlds.build(
        volume,
        tmp_path_factory.mktemp("split"),
        ocdbt_config={"populate_layer": 3, "mips": 3, "populate_method": "parts"},
    )
    edit = edits.split(world.graph, world.split_request([4, 2, 2], [28, 2, 2]), volume=world.volume)
    assert len(edit.supervoxels)
    return world


@pytest.fixture
def theirs(backend: Backend, split_world: World, tmp_path: Path) -> World:
    """The same split, made by their software: rows and voxels of mip 0 without anything of ours."""
    copy = split_world.copied_to(tmp_path, backend)
    ours = [key for key, _ in copy.table.scan([EVERYTHING]) if key.startswith(b"sv_pipeline:")]
    kept = b"sv_pipeline:ingest"
    copy.table.mutate([RowMutation(key, [DeleteCells()]) for key in ours if not key.startswith(kept)])
    copy.dataset.fork.remove(force=True)
    copy.dataset.fork.create()
    stored = meta.read_meta(copy.table)
    Theirs.of(stored).write(split_world.voxels())
    np.testing.assert_array_equal(copy.voxels(), split_world.voxels())
    return copy


def test_a_split_of_theirs_is_behind_until_it_is_caught_up(theirs: World) -> None:
    dataset = theirs.dataset
    assert not dataset.fork.pending()
    before = dataset.fork.generation()
    found = lag_of_graph(dataset)
    assert found.entries == 1
    assert found.oldest_seconds is not None
    [entry] = dataset.fork.pending()
    changed = np.argwhere(theirs.voxels() != np.asarray(dataset.fork.open(version=before - 1).read().result()))
    inside = np.zeros(len(changed), bool)
    for box in entry.boxes:
        at = changed + theirs.offset
        inside |= ((at >= box.start) & (at < box.stop)).all(axis=1)
    assert inside.all()
    assert dataset.fork.generation() == before + 1
    assert lag_of_graph(dataset).entries == 1
    assert dataset.fork.generation() == before + 1, "a second look writes nothing"
    assert catch_up(dataset).after.entries == 0
    assert not note_foreign_edits(dataset)
    assert lag_of_graph(dataset).entries == 0
    report = theirs.report()
    [pyramid] = [result for result in report.results if result.name == "pyramid"]
    assert pyramid.passed, report.summary()


def test_a_damaged_row_of_theirs_stops_nothing_and_a_place_that_it_hides_is_told(
    theirs: World, caplog: pytest.LogCaptureFixture
) -> None:
    [operation] = [key for key, _ in theirs.table.scan([keys.operation_range()])]
    theirs.table.mutate([RowMutation(operation, [SetCell(columns.OPERATION_TIMESTAMP.key, b"abc", None)])])
    assert note_foreign_edits_of(theirs.graph, enter=False) == (int(operation),)
    assert not caplog.records
    theirs.table.mutate([RowMutation(operation, [SetCell(columns.ROOTS.key, b"abc", None)])])
    found = lag_of_graph(theirs.dataset)
    assert found.entries == 0
    [record] = caplog.records
    assert f"operation {int(operation)} " in record.getMessage()
    assert not note_foreign_edits(theirs.dataset)
    assert len(caplog.records) == 1, "it is told once"


def test_the_age_of_an_edit_whose_time_cannot_be_read_counts_from_its_discovery(theirs: World) -> None:
    [operation] = [key for key, _ in theirs.table.scan([keys.operation_range()])]
    theirs.table.mutate([RowMutation(operation, [SetCell(columns.OPERATION_TIMESTAMP.key, b"abc", None)])])
    found = lag_of_graph(theirs.dataset)
    assert found.entries == 1
    assert found.oldest_seconds is not None
    assert found.oldest_seconds < 3600


def test_catching_up_alone_is_enough(theirs: World) -> None:
    done = catch_up(theirs.dataset)
    assert (done.before.entries, done.after.entries) == (1, 0)
    assert done.report.work.chunks_written
    [pyramid] = [result for result in theirs.report().results if result.name == "pyramid"]
    assert pyramid.passed


def test_the_lag_of_all_graphs_shows_it(theirs: World) -> None:
    [found] = lags(Registry(theirs.dataset.home))
    assert found.behind, str(found)
    assert len(found.operations) == 1


def test_edits_of_ours_are_not_entered_twice(split_world: World, tmp_path: Path) -> None:
    copy = split_world.copied_to(tmp_path)
    catch_up(copy.dataset)
    before = copy.generation
    assert lag_of_graph(copy.dataset).entries == 0
    assert copy.generation == before
