"""The edits of a viewer's user, step by step, without a browser: each step answers with a text."""

from __future__ import annotations

from pathlib import Path

from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.viewer.session import EditSession
from sv_pipeline_tests.editable import (
    BACKGROUND,
    RING_POINTS,
    neighbours_of_two_objects,
    ring_graph,
    two_parts_of_an_object,
)


def test_a_split_is_made_as_previewed_and_undone(graph: OpenGraph) -> None:
    one, other = two_parts_of_an_object(graph, of_a_supervoxel=True)
    before = graph.roots([one, other]).tolist()
    session = EditSession(graph, "somebody")
    assert session.add_source(one).startswith("1 source point and 0 sink points")
    session.add_sink(other)
    said = session.preview_split()
    assert said.startswith("Preview: 2 objects")
    assert "voxels on the source side" in said
    assert len(graph.operations()) == 0
    assert session.commit().startswith(f"Operation 1 (split) is made: {before[0]} became ")
    assert (session.sources, session.sinks, session.preview) == ([], [], None)
    assert len(set(graph.roots([one, other]).tolist())) == 2
    assert session.commit().startswith("There is nothing to commit")  # the key pressed twice
    assert session.undo().startswith("Operation 1 is undone.")
    assert len(set(graph.roots([one, other]).tolist())) == 1
    assert session.undo().startswith("There is nothing to undo")
    assert graph.operations()["user"].tolist() == ["somebody"] * 2


def test_an_edit_that_somebody_else_has_undone_does_not_bar_the_undo_of_those_before(graph: OpenGraph) -> None:
    session = EditSession(graph)
    one, other = two_parts_of_an_object(graph)
    near, far = neighbours_of_two_objects(graph)
    for source, sink, preview in ((one, other, session.preview_split), (near, far, session.preview_merge)):
        session.add_source(source)
        session.add_sink(sink)
        preview()
        assert "is made" in session.commit()
    graph.undo(2, user="somebody else")
    assert session.undo().startswith("Refused: ")
    assert session.undo().startswith("Operation 1 is undone.")


def test_a_merge_is_made_as_previewed(graph: OpenGraph) -> None:
    near, far = neighbours_of_two_objects(graph)
    session = EditSession(graph)
    session.add_source(near)
    session.add_sink(far)
    for root in graph.roots([near, far]).tolist():
        assert str(root) in session.preview_merge()
    assert "(merge) is made" in session.commit()
    assert len(set(graph.roots([near, far]).tolist())) == 1


def test_only_what_was_previewed_can_be_committed(graph: OpenGraph) -> None:
    one, other = two_parts_of_an_object(graph)
    session = EditSession(graph)
    session.add_source(one)
    assert session.preview_split() == "There is no sink point: each side needs at least one."
    session.add_sink(other)
    session.preview_split()
    session.add_sink((other[0], other[1], other[2] + 1))  # one more point: another edit
    assert session.commit().startswith("There is nothing to commit")
    assert len(graph.operations()) == 0


def test_a_point_placed_twice_is_taken_away(graph: OpenGraph) -> None:
    session = EditSession(graph)
    session.add_source((1, 2, 3))
    session.add_source((1, 2, 4))
    session.add_source((1, 2, 3))
    assert session.sources == [(1, 2, 4)]
    assert session.clear() == "Points are cleared."
    assert session.sources == []


def test_a_refusal_is_a_text_and_changes_nothing(graph: OpenGraph) -> None:
    near, far = neighbours_of_two_objects(graph)
    session = EditSession(graph)
    session.add_source(near)
    session.add_sink(far)
    said = session.preview_split()
    assert "the points are on 2 objects" in said
    assert session.commit().startswith("There is nothing to commit")
    session.clear()
    session.add_source(BACKGROUND)
    session.add_sink(far)
    assert session.preview_merge().startswith(("Refused: ", "The merge would be refused: "))
    assert session.sources == [BACKGROUND]
    assert len(graph.operations()) == 0


def test_an_edit_that_others_have_overtaken_is_refused_when_it_is_committed(graph: OpenGraph) -> None:
    one, other = two_parts_of_an_object(graph)
    session = EditSession(graph)
    session.add_source(one)
    session.add_sink(other)
    session.preview_split()
    graph.split([one], [other], user="somebody else")
    assert session.commit().startswith("Refused: ")
    assert session.sources == [one]
    assert session.undo().startswith("There is nothing to undo")  # the edit of somebody else stays


def test_a_cut_that_had_to_look_further_says_so(tmp_path: Path) -> None:
    session = EditSession(ring_graph(tmp_path, tmp_path / "home"))
    session.add_source(RING_POINTS[0])
    session.add_sink(RING_POINTS[1])
    assert "Warning: the sides are also connected further away" in session.preview_split()
