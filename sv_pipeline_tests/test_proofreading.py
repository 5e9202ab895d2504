"""An open graph as a proofreader uses it, in Python."""

from __future__ import annotations

import getpass
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sv_pipeline
from sv_pipeline.edits import EditRefused
from sv_pipeline.errors import InputError, NotFoundError
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.reports.sizes import PUBLISHED_WIDTH
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.editable import (
    BACKGROUND,
    editable_graph,
    neighbours_of_two_objects,
    two_parts_of_an_object,
)
from sv_pipeline_tests.graph.compare import dump


@pytest.fixture
def graph(tmp_path: Path) -> OpenGraph:
    return editable_graph(tmp_path, tmp_path / "home")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> OpenGraph:
    """A graph that no test changes."""
    folder = tmp_path_factory.mktemp("untouched")
    return editable_graph(folder, folder / "home")


def n_roots(graph: OpenGraph, *points: tuple[int, int, int]) -> int:
    return len(set(graph.roots(points).tolist()))


# -- editing ----------------------------------------------------------------------------------------------------------


def test_merge_then_undo_gives_the_objects_back(graph: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(graph)
    before = graph.roots([one, other])
    merged = graph.merge([one], [other], user="me")
    assert n_roots(graph, one, other) == 1
    undone = graph.undo(merged.id, user="me")
    assert n_roots(graph, one, other) == 2
    graph.redo(merged.id, user="me")
    assert n_roots(graph, one, other) == 1
    table = graph.operations()
    assert table["kind"].tolist() == ["merge", "undo", "redo"]
    assert set(table["status"]) == {"SUCCESS"}
    assert set(merged.old_roots.tolist()) == set(before.tolist())
    assert undone.id == 2
    assert verify_dataset(graph.dataset).ok


def test_split_then_undo_gives_the_object_back(graph: OpenGraph) -> None:
    one, other = two_parts_of_an_object(graph)
    assert len(graph.operations()) == 0  # previews leave no trace
    cut = graph.split([one], [other], user="me")
    assert n_roots(graph, one, other) == 2
    assert verify_dataset(graph.dataset).ok
    graph.undo(cut.id, user="me")
    assert n_roots(graph, one, other) == 1
    assert verify_dataset(graph.dataset).ok


def test_the_user_is_who_runs_it_unless_named(graph: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(graph)
    merged = graph.merge([one], [other])
    graph.undo(merged.id)
    graph.redo(merged.id, user="somebody else")
    assert graph.operations()["user"].tolist() == [getpass.getuser(), getpass.getuser(), "somebody else"]


def test_a_user_without_a_name_is_asked_for_one(untouched: OpenGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as in a container whose user has no entry
    with pytest.raises(EditRefused, match="Name the user"):
        untouched.undo(1)


def test_the_log_names_points_and_what_an_undo_is_about(graph: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(graph)
    merged = graph.merge([one], [other])
    graph.undo(merged.id)
    table = graph.operations()
    assert table.loc[1, "source"] == [list(one)]
    assert table.loc[1, "sink"] == [list(other)]
    assert len(table.loc[1, "source_ids"]) == 1
    assert table["about"].tolist() == [0, 1]
    assert graph.operations(last=1).index.tolist() == [2]
    assert graph.operations(last=9).index.tolist() == [1, 2]


# -- previews and pictures --------------------------------------------------------------------------------------------


def size_of(png: bytes) -> tuple[int, int]:
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return image.size


@pytest.mark.parametrize("of_a_supervoxel", [False, True])
def test_a_preview_says_what_the_split_then_does(graph: OpenGraph, of_a_supervoxel: bool) -> None:
    one, other = two_parts_of_an_object(graph, of_a_supervoxel=of_a_supervoxel)
    rows, generation = dump(graph.dataset.table), Fork(graph.dataset.watershed_url, "small").generation()
    preview = graph.preview_split([one], [other])
    width, _ = size_of(preview.picture())
    assert width == PUBLISHED_WIDTH
    assert size_of(preview.picture(width=700))[0] == 700
    assert preview._repr_png_() == preview.picture()
    assert dump(graph.dataset.table) == rows
    assert Fork(graph.dataset.watershed_url, "small").generation() == generation

    numbers = preview.numbers
    cut = graph.split([one], [other])
    assert numbers["removed_edges"] == len(cut.edges)
    assert numbers.get("new_supervoxels", 0) == len(np.unique(cut.supervoxels[:, 1]))
    assert (numbers.get("cut_voxels_source", 0) > 0) is of_a_supervoxel


def test_any_operation_can_be_pictured_at_any_time(graph: OpenGraph) -> None:
    one, other = two_parts_of_an_object(graph, of_a_supervoxel=True)
    cut = graph.split([one], [other])
    first = graph.picture(cut.id)
    graph.undo(cut.id)
    graph.merge(*([p] for p in neighbours_of_two_objects(graph)))
    assert graph.picture(cut.id) == first  # as it was then, whatever happened since
    for number in (2, 3):
        size_of(graph.picture(number))


def test_only_what_was_made_can_be_pictured(graph: OpenGraph) -> None:
    with pytest.raises(NotFoundError, match="no operation 7"):
        graph.picture(7)
    one, other = neighbours_of_two_objects(graph)
    with pytest.raises(EditRefused) as refused:
        graph.split([one], [other])
    assert refused.value.operation_id
    with pytest.raises(InputError, match="was not made"):
        graph.picture(refused.value.operation_id)


# -- bad input --------------------------------------------------------------------------------------------------------

GOOD = (30, 30, 16)
BAD_POINTS: dict[str, tuple[Any, str]] = {
    "outside": ([(10**6, 0, 0)], "outside"),
    "just outside": ([(64, 0, 0)], "outside"),
    "negative": ([(-1, 0, 0)], "outside"),
    "background": ([BACKGROUND], "background"),
    "none": ([], "no_points"),
    "thousands": ([(i % 60, 30, 16) for i in range(5000)], "too_many_points"),
    "the same point": ([GOOD], "same_point"),
    "words": ([("a", "b", "c")], "bad_request"),
    "a word": ("here", "bad_request"),
    "two numbers": ([(1, 2)], "bad_request"),
    "six numbers in threes": ([(1, 2), (3, 4), (5, 6)], "bad_request"),
    "fractions": ([(1.5, 2, 3)], "bad_request"),
    "not a number": ([(float("nan"), 2, 3)], "bad_request"),
    "infinite": ([(float("inf"), 2, 3)], "bad_request"),
    "too large for any integer": ([(10**30, 2, 3)], "bad_request"),
    "ragged": ([(1, 2, 3), (4, 5)], "bad_request"),
    "truths": ([(True, False, True)], "bad_request"),
    "None": (None, "bad_request"),
    "an object": (object(), "bad_request"),
}


@pytest.mark.parametrize("name", BAD_POINTS)
@pytest.mark.parametrize("edit", ["merge", "split", "preview_merge", "preview_split"])
def test_bad_points_are_refused_with_a_reason_and_change_nothing(untouched: OpenGraph, edit: str, name: str) -> None:
    points, reason = BAD_POINTS[name]
    before = state(untouched)
    for sides in (([GOOD], points), (points, [GOOD])):
        with pytest.raises(EditRefused) as refused:
            getattr(untouched, edit)(*sides)
        assert str(refused.value.reason) == reason
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 400
    assert state(untouched) == before


def state(graph: OpenGraph) -> tuple[object, ...]:
    """All rows but those of operations, their counter, and the generation of the fork."""
    rows = {key: row for key, row in dump(graph.dataset.table).items() if not key.startswith((b"000", b"i"))}
    return rows, graph.dataset.fork.generation()


def test_no_points_give_no_answers(untouched: OpenGraph) -> None:
    assert len(untouched.roots([])) == len(untouched.supervoxels([])) == len(untouched.leaves([])) == 0


def test_only_voxels_are_looked_up(untouched: OpenGraph) -> None:
    for points in ([(1, 2)], [("a", "b", "c")], None, [(1.5, 2, 3)]):
        with pytest.raises(EditRefused, match=r"cannot use .* as points"):
            untouched.roots(points)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="outside the volume"):
        untouched.roots([(0, 0, 640)])
    assert len(untouched.roots([(i % 60, 30, 16) for i in range(5000)])) == 5000


@pytest.mark.parametrize("number", [0, -1, 99, 10**30, "1", 1.5, None])
@pytest.mark.parametrize("edit", ["undo", "redo"])
def test_what_is_no_operation_cannot_be_undone(untouched: OpenGraph, edit: str, number: Any) -> None:
    with pytest.raises(EditRefused) as refused:
        getattr(untouched, edit)(number)
    assert str(refused.value.reason) in ("bad_request", "nothing_to_undo")


def test_objects_that_are_two_cannot_be_split_and_one_cannot_be_merged(untouched: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(untouched)
    with pytest.raises(EditRefused) as refused:
        untouched.split([one], [other])
    assert str(refused.value.reason) == "several_roots"
    with pytest.raises(EditRefused) as refused:
        untouched.merge(*([p] for p in two_parts_of_an_object(untouched)))
    assert str(refused.value.reason) == "same_root"


def test_an_unknown_graph_is_not_found(untouched: OpenGraph) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        sv_pipeline.open_graph("nowhere", untouched.dataset.home)


@pytest.mark.parametrize("token", [None, "once"])
def test_a_read_only_graph_is_not_even_logged_to(graph: OpenGraph, token: str | None) -> None:
    one, other = neighbours_of_two_objects(graph)
    before = dump(graph.dataset.table)
    graph.dataset.graph.meta.custom_data["READ_ONLY"] = True
    attempts: list[Callable[[], object]] = [
        lambda: graph.merge([one], [other], token=token),
        lambda: graph.split([one], [other], token=token),
        lambda: graph.undo(1, token=token),
    ]
    for attempt in attempts:
        with pytest.raises(EditRefused) as refused:
            attempt()
        assert str(refused.value.reason) in ("read_only", "nothing_to_undo")
    assert dump(graph.dataset.table) == before
