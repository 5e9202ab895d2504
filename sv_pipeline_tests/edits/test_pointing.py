"""Clicks that miss mean the nearest supervoxel, in nm, of the object that is meant, or are refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import EditRefused, Points, Reason
from sv_pipeline.edits.given_points import given_points
from sv_pipeline.edits.plan.unknown import refusal_of_unknown
from sv_pipeline.edits.pointing import resolved
from sv_pipeline.edits.requests import options_of
from sv_pipeline.failpoints import FailpointError
from sv_pipeline.graph.queries import roots
from sv_pipeline.operations.log import read_operations
from sv_pipeline.recovery.replay import request_of
from sv_pipeline.testing.worlds import World
from sv_pipeline_tests.edits.bars import Make
from sv_pipeline_tests.edits.bars import make as make

A, B, C = 1, 2, 3


@pytest.fixture
def tissue(make: Make) -> World:
    """A bar of A and B, one object; beside it, in y, a bar of C; then nothing for long::

    z = 4   A A A A B B B B     8 x 8 x 40 nm: the next section is farther than four voxels in the plane
    z = 2   C C C C C C C C     at y = 20
    """
    boxes = {A: np.s_[0:12, 2:6, 4:8], B: np.s_[12:24, 2:6, 4:8], C: np.s_[0:24, 20:24, 2:8]}
    return make((70, 30, 12), boxes, objects={A: 1, B: 1, C: 2}, voxel_offset=(5, 3, 1))


def at(tissue: World, *place: int) -> list[int]:
    return (np.asarray(place) + tissue.offset).tolist()


def ids(tissue: World, *places: tuple[int, int, int]) -> list[int]:
    where = np.array([at(tissue, *place) for place in places])
    return [int(tissue.volume[tuple(place)].read().result()) for place in where]


def looked_up(tissue: World, sources: Points, sinks: Points, *, merge: bool = False) -> Any:
    kind = edits.MergeRequest if merge else edits.SplitRequest
    return resolved(tissue.graph, kind("me", sources, sinks), tissue.volume)  # type: ignore[type-var]


def refused(tissue: World, sources: Points, sinks: Points, reason: Reason) -> str:
    with pytest.raises(EditRefused) as error:
        looked_up(tissue, sources, sinks)
    assert error.value.reason is reason, error.value
    return str(error.value)


def test_the_nearest_counts_in_nanometres_and_not_in_voxels(tissue: World) -> None:
    """From y = 9, z = 3 the bar of A is 4 voxels in y and 1 in z away (51 nm); C is 11 in y (88 nm)."""
    points = looked_up(tissue, tissue.points((3, 9, 3)), tissue.points((20, 3, 5))).sources
    assert points.ids.tolist() == ids(tissue, (3, 5, 4))
    assert points.coordinates.tolist() == [at(tissue, 3, 5, 4)]
    assert points.pointed.tolist() == [at(tissue, 3, 9, 3)]
    # In voxels the one above is nearer, in nm the one beside it.
    merge = looked_up(tissue, tissue.points((3, 3, 9)), tissue.points((3, 16, 9)), merge=True)
    assert merge.sources.ids.tolist() == ids(tissue, (3, 3, 7))
    assert merge.sinks.ids.tolist() == ids(tissue, (3, 20, 7))


def test_a_click_that_misses_means_the_object_that_the_other_clicks_are_on(tissue: World) -> None:
    """At y = 15 the other object is nearer, but no split could be of both."""
    alone = looked_up(tissue, tissue.points((3, 15, 5)), tissue.points((3, 21, 5)), merge=True)
    assert alone.sources.ids.tolist() == ids(tissue, (3, 20, 5))
    split = looked_up(tissue, tissue.points((3, 15, 5)), tissue.points((20, 3, 5)))
    assert split.sources.ids.tolist() == ids(tissue, (3, 5, 5))


def test_a_root_beside_a_point_names_the_object_that_is_meant(tissue: World) -> None:
    (root,) = roots(tissue.graph, ids(tissue, (3, 3, 5))).tolist()
    for place in ((3, 15, 5), (3, 21, 5), (3, 3, 5)):  # between, on the other object, on it
        sources = given_points([[root, *at(tissue, *place)]], "source")
        found = looked_up(tissue, sources, tissue.points((3, 21, 5)), merge=True).sources
        assert found.ids.tolist() == ids(tissue, (3, 5, 5))
    said = refused(
        tissue, given_points([[root, *at(tissue, 66, 3, 5)]], "source"), tissue.points((3, 3, 5)), Reason.BAD_REQUEST
    )
    assert f"nothing of {root} is within 300 nm" in said


def test_a_root_that_was_replaced_stands_for_those_that_it_became(tissue: World) -> None:
    (old,) = roots(tissue.graph, ids(tissue, (3, 3, 5))).tolist()
    edits.split(tissue.graph, tissue.split_request([(3, 3, 5)], [(20, 3, 5)]), volume=tissue.volume)
    sources, sinks = (given_points([[old, *at(tissue, x, 9, 5)]], "source") for x in (3, 20))
    found = looked_up(tissue, sources, sinks, merge=True)
    assert [*found.sources.ids, *found.sinks.ids] == ids(tissue, (3, 5, 5), (20, 5, 5))


def test_an_id_that_is_not_at_its_voxel_is_refused_unless_it_was_replaced(tissue: World) -> None:
    a, b = ids(tissue, (3, 3, 5), (20, 3, 5))
    wrong = Points.of([b], [at(tissue, 3, 3, 5)])
    assert f"lies on supervoxel {a}, not on {b}" in refused(
        tissue, wrong, tissue.points((20, 3, 5)), Reason.BAD_REQUEST
    )
    for far in ([66, 3, 5], [69, 29, 11]):
        said = refused(tissue, Points.of([a], [at(tissue, *far)]), tissue.points((20, 3, 5)), Reason.BAD_REQUEST)
        assert f"nothing of {a}" in said
    near = looked_up(tissue, Points.of([b], [at(tissue, 11, 9, 5)]), tissue.points((3, 3, 5))).sources
    assert (near.ids.tolist(), near.coordinates.tolist()) == ([b], [at(tissue, 16, 5, 5)])
    # Split A: its id is stale then, and the voxel decides.
    edits.split(tissue.graph, tissue.split_request([(2, 3, 5)], [(9, 3, 5)]), volume=tissue.volume)
    for place in ((1, 3, 5), (10, 3, 5)):
        stale = looked_up(tissue, Points.of([a], [at(tissue, *place)]), tissue.points((20, 3, 5))).sources
        assert stale.ids.tolist() == ids(tissue, place) != [a]


def test_a_point_on_a_piece_that_an_edit_is_just_making_is_refused_until_it_is_made(
    tissue: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the commit of its voxels and that of its rows, a piece of a supervoxel is in the fork only."""
    split, elsewhere = tissue.split_request([(2, 3, 5)], [(9, 3, 5)]), tissue.split_request([(2, 3, 5)], [(20, 3, 5)])
    monkeypatch.setenv("SV_PIPELINE_FAILPOINT", "voxels written:raise")
    with pytest.raises(FailpointError):
        edits.split(tissue.graph, split, volume=tissue.volume)
    for ask in (edits.split, edits.preview_split):
        with pytest.raises(EditRefused, match=r"an edit is in progress.*operation 1,.*Try again in a moment") as caught:
            ask(tissue.graph, elsewhere, volume=tissue.volume)
        assert caught.value.reason is Reason.LOCKED
    unknown = np.array([tissue.graph.layout.node_ids(tissue.graph.layout.chunk_ids(1, [0, 0, 0]), 1 << 20)], np.uint64)
    assert refusal_of_unknown(tissue.graph, unknown).reason is Reason.NOT_FOUND
    there = np.array(ids(tissue, (20, 3, 5)), np.uint64)
    assert "has just ended" in str(refusal_of_unknown(tissue.graph, there)), "it came to be while it was looked up"


def test_a_refusal_names_the_point_and_what_is_near(tissue: World) -> None:
    said = refused(tissue, tissue.points((66, 3, 5)), tissue.points((3, 3, 5)), Reason.BACKGROUND)
    assert f"the source point {tuple(at(tissue, 66, 3, 5))} lies on background" in said
    assert "within 300 nm" in said
    assert "near it: supervoxel" in said, "further than a point is moved"
    assert "nm away at (" in said
    said = refused(tissue, tissue.points((3, 3, 5)), tissue.points((59, 21, 5)), Reason.BACKGROUND)
    near, root = ids(tissue, (23, 21, 5))[0], int(roots(tissue.graph, ids(tissue, (23, 21, 5)))[0])
    assert f"supervoxel {near} of root {root}, 288 nm away" in said


@pytest.mark.parametrize("merge", [False, True])
def test_an_edit_of_clicks_that_miss_is_made_and_logged_as_it_was_asked_for(tissue: World, merge: bool) -> None:
    """80 nm off, outside of the chunks of what is meant: the box is chosen after the points were moved."""
    (root,) = roots(tissue.graph, ids(tissue, (3, 3, 5))).tolist()
    if merge:
        edits.split(tissue.graph, tissue.split_request([(3, 3, 5)], [(20, 3, 5)]), volume=tissue.volume)
    places = (
        [at(tissue, 5, 15, 5), at(tissue, 7, 15, 5)] if not merge else [at(tissue, 5, 15, 5), at(tissue, 20, 15, 5)]
    )
    sides = [given_points([[root, *place]], "point") for place in places]
    kind, make_it = (edits.MergeRequest, edits.merge) if merge else (edits.SplitRequest, edits.split)
    asked: Any = kind("me", *sides)
    made = make_it(tissue.graph, asked, volume=tissue.volume)  # type: ignore[operator]
    assert (len(made.roots), len(made.supervoxels) > 0) == ((1, False) if merge else (2, True))
    tissue.verify()
    (operation,) = read_operations(tissue.graph, [made.id])
    again = request_of(operation, json.loads(json.dumps(options_of(asked))))
    assert [again.sources.pointed.tolist(), again.sinks.pointed.tolist()] == [[place] for place in places]
    assert [again.sources.ids.tolist(), again.sinks.ids.tolist()] == [[root], [root]]


GIVEN_WRONG: dict[str, Any] = {
    "two columns": [[1, 2]],
    "five columns": [[1, 2, 3, 4, 5]],
    "a flat row of five": [1, 2, 3, 4, 5],
    "floats as ids": [[1.0, 2, 3, 4]],
    "an array of floats": np.array([[72057594037927937.0, 1, 2, 3]]),
    "a negative id": [[-1, 2, 3, 4]],
    "an id that is too large": [[1 << 64, 2, 3, 4]],
    "a true id": [[True, 2, 3, 4]],
    "text": [["1", "2", "3", "4"]],
    "nothing beside": [[None, 1, 2, 3]],
    "not a number": [[1, float("nan"), 2, 3]],
    "half a voxel": [[1, 0.5, 2, 3]],
    "infinite": [[float("inf"), 2, 3]],
    "three dimensions": np.zeros((1, 1, 3), np.int64),
    "a number": 7,
    "none": None,
    "words": "abc",
    "a mapping": {"x": 1},
    "ragged": [[1, 2, 3], [1]],
    "too large": [[1, 1 << 70, 2, 3]],
}


@pytest.mark.parametrize("name", GIVEN_WRONG)
def test_points_that_are_none_are_one_refusal(name: str) -> None:
    with pytest.raises(EditRefused, match="voxels") as error:
        given_points(GIVEN_WRONG[name], "source")
    assert error.value.reason is Reason.BAD_REQUEST


def test_points_may_name_an_id_or_none() -> None:
    large = (1 << 64) - 1
    points = given_points([(large, 1, 2, 3), (4, 5, -6)], "source")
    assert (points.ids.tolist(), points.pointed.tolist()) == ([large, 0], [[1, 2, 3], [4, 5, -6]])
    assert given_points((7, 1, 2, 3), "source").ids.tolist() == [7]
    assert given_points(np.array([[7, 1, 2, 3]]), "source").ids.tolist() == [7]
    assert not len(given_points([(1.0, 2, 3)], "source").ids)
    with pytest.raises(EditRefused, match="1,000 are possible"):
        given_points([[7, 1, 2, 3]] * 1001, "source")


@pytest.mark.parametrize("layer", [2, 3])
def test_ids_that_are_neither_supervoxels_nor_roots_are_refused(tissue: World, layer: int) -> None:
    if layer == tissue.graph.n_layers:
        node = int(tissue.graph.layout.chunk_ids(layer, (0, 0, 0))) | 999_999
        said = refused(
            tissue, given_points([[node, *at(tissue, 3, 3, 5)]], "source"), tissue.points((3, 3, 5)), Reason.NOT_FOUND
        )
        assert f"root {node} is not in the graph" in said
        return
    node = int(tissue.graph.layout.chunk_ids(layer, (0, 0, 0))) | 1
    refused(
        tissue,
        given_points([[node, *at(tissue, 3, 3, 5)]], "source"),
        tissue.points((3, 3, 5)),
        Reason.NOT_A_SUPERVOXEL,
    )
