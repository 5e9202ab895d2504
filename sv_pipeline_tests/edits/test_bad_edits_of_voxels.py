"""Requests of voxels that cannot be met: each is one clear refusal, and neither rows nor voxels change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import Points, Reason
from sv_pipeline.errors import NotFoundError
from sv_pipeline.graph.chunked_graph import open_chunked_graph
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.tables import but_operations
from sv_pipeline.testing.worlds import World
from sv_pipeline_tests.edits.bars import Make, at, bar
from sv_pipeline_tests.edits.bars import make as make


@pytest.fixture
def tissue(make: Make) -> Iterator[World]:
    return make((24, 5, 5), {1: bar(0, 16), 2: bar(16, 24)}, objects={1: 1, 2: 2}, voxel_offset=(5, 3, 1))


def refused(tissue: World, edit: Callable[[], object], reason: object, *, logged: bool = True) -> str:
    """What the user is told; the log says it too."""
    rows, generation = tissue.rows(), tissue.generation
    with pytest.raises(edits.EditRefused) as caught:
        edit()
    assert caught.value.reason == reason, caught.value
    assert but_operations(tissue.rows()) == but_operations(rows)
    assert tissue.generation == generation
    operations = read_operations(tissue.graph)
    assert len(operations) == logged
    if logged:
        assert operations[-1].status is OperationStatus.EXCEPTION
        assert caught.value.message in (operations[-1].exception or "")
    return str(caught.value)


def split(tissue: World, sources: Points, sinks: Points, **options: object) -> Callable[[], object]:
    request = edits.SplitRequest("tester", sources, sinks, **options)  # type: ignore[arg-type]
    return lambda: edits.split(tissue.graph, request, volume=tissue.volume)


def merge(tissue: World, sources: Points, sinks: Points, **options: object) -> Callable[[], object]:
    request = edits.MergeRequest("tester", sources, sinks, **options)  # type: ignore[arg-type]
    return lambda: edits.merge(tissue.graph, request, volume=tissue.volume)


PLACES: dict[str, tuple[list[list[int]], list[list[int]], Reason]] = {
    "below the volume": ([at(1)], [[-1, 2, 2]], Reason.OUTSIDE),
    "behind the volume": ([at(1)], [[24, 2, 2]], Reason.OUTSIDE),
    "very far away": ([at(1)], [[2**62, 2, 2]], Reason.OUTSIDE),
    "on another object": ([at(1)], [at(20)], Reason.SEVERAL_ROOTS),
    "sinks on two objects": ([at(1)], [at(5), at(20)], Reason.SEVERAL_ROOTS),
    "the same voxel": ([at(1)], [at(1)], Reason.SAME_POINT),
    "one voxel of several": ([at(1), at(5)], [at(6), at(5)], Reason.SAME_POINT),
    "no source": ([], [at(5)], Reason.NO_POINTS),
    "no sink": ([at(5)], [], Reason.NO_POINTS),
    "thousands": ([at(1)] * 3000, [at(5)], Reason.TOO_MANY_POINTS),
}


@pytest.mark.parametrize("name", PLACES)
def test_points_in_wrong_places_are_refused(tissue: World, name: str) -> None:
    sources, sinks, reason = PLACES[name]
    refused(tissue, split(tissue, tissue.points(*sources), tissue.points(*sinks)), reason)


@pytest.mark.parametrize("name", PLACES)
def test_merges_in_wrong_places_are_refused(tissue: World, name: str) -> None:
    sources, sinks, reason = PLACES[name]
    if name == "on another object":
        sinks, reason = [at(5)], Reason.SAME_POINT
    if name == "sinks on two objects":
        sources, sinks = sinks, [at(10)]
    refused(tissue, merge(tissue, tissue.points(*sources), tissue.points(*sinks)), reason)


NOT_NUMBERS: dict[str, object] = {
    "text": [["a", "b", "c"]],
    "two numbers": [[1, 2]],
    "nothing": [[1, 2, None]],
    "not a number": [[np.nan, 1, 1]],
    "infinity": [[np.inf, 1, 1]],
    "a huge float": [[1e30, 1, 1]],
    "a huge int": [[2**70, 1, 1]],
    "complex": [[True, 1j, 1]],
    "a word": "nowhere",
    "an object": [object()],
}


@pytest.mark.parametrize("name", NOT_NUMBERS)
def test_what_is_no_voxel_is_refused_when_it_is_read(name: str) -> None:
    with pytest.raises(edits.EditRefused) as caught:
        Points.of([], NOT_NUMBERS[name])  # type: ignore[arg-type]
    assert caught.value.reason is Reason.BAD_REQUEST


def test_a_fraction_of_a_voxel_lies_in_that_voxel() -> None:
    points = Points.of([], [[1.9, 0.0, -0.5]])
    assert points.coordinates is not None
    assert points.coordinates.tolist() == [[1, 0, -1]]


def test_a_box_that_is_too_large_says_how_large_and_what_would_fit(tissue: World) -> None:
    edit = split(tissue, tissue.points(at(1)), tissue.points(at(6)), memory=1000)
    said = refused(tissue, edit, Reason.TOO_LARGE)
    assert "9 x 5 x 5 voxels" in said
    assert "3 x 3 x 3 voxels" in said
    assert "closer together" in said


def test_a_graph_without_a_fork_is_told_to_make_one(tissue: World) -> None:
    graph = tissue.graph
    voxels = tissue.voxels()
    nodes = int(voxels[tuple(at(1))])
    folder = Path(graph.watershed_url.removeprefix("file://")) / "ocdbt" / graph.graph_id
    aside = folder.with_name(folder.name + "_aside")
    folder.rename(aside)
    points = [Points.of([nodes], (np.array([place]) + tissue.offset).tolist()) for place in (at(1), at(6))]
    try:
        with pytest.raises(edits.EditRefused, match="fork") as caught:
            edits.split(graph, edits.SplitRequest("tester", *points))
    finally:
        aside.rename(folder)
    assert caught.value.reason is Reason.SUPERVOXEL_SPLIT_REQUIRED
    assert tissue.voxels()[tuple(at(1))] == nodes


def test_a_read_only_graph_is_not_touched(tissue: World) -> None:
    tissue.graph.table.read_only = True
    rows = tissue.rows()
    try:
        for make_edit in (split, merge):
            with pytest.raises(edits.EditRefused) as caught:
                make_edit(tissue, tissue.points(at(1)), tissue.points(at(6)))()
            assert caught.value.reason is Reason.READ_ONLY
        for revert in (edits.undo, edits.redo):
            with pytest.raises(edits.EditRefused):
                revert(tissue.graph, 1, "tester")
    finally:
        tissue.graph.table.read_only = False
    assert tissue.rows() == rows


def test_an_unknown_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        open_chunked_graph(SqliteTable("nobody", tmp_path))


def test_supervoxels_without_voxels_cannot_be_split(tissue: World) -> None:
    """Ids on two pieces of one supervoxel: nobody knows where the cut should be."""
    voxels = tissue.voxels()
    ids = [int(voxels[tuple(place)]) for place in (at(1), at(12))]
    said = refused(tissue, split(tissue, *[Points.of([i]) for i in ids]), Reason.SUPERVOXEL_SPLIT_REQUIRED)
    assert "voxels" in said
