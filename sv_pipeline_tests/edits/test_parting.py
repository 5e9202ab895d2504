"""A split parts its points, or is refused, or says that it has not: objects that hang together by a way around."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import EditRefused, Reason, SplitRequest
from sv_pipeline.edits.made import read_edit
from sv_pipeline.graph.queries import roots
from sv_pipeline.operations import ownership
from sv_pipeline.operations.log import read_operations
from sv_pipeline.recovery import find_unfinished, recover
from sv_pipeline.recovery.replay import request_of
from sv_pipeline.reports.edit_numbers import operations_table, preview_numbers
from sv_pipeline.testing.tables import but_operations
from sv_pipeline.testing.worlds import World
from sv_pipeline_tests.edits.bars import Make
from sv_pipeline_tests.edits.bars import make as make
from sv_pipeline_tests.edits.conftest import Edited, split_request
from sv_pipeline_tests.edits.test_killed_edits import killed_after

LENGTH = 64
NEAR = {"offset": (1, 1, 1)}
Y_OF = {"low": 1, "high": 6}


FLAT = slice(0, 3)


def ring(make: Make) -> World:
    """Two bars along x through eight chunks, in a label for each chunk, and joined at both ends."""
    boxes = {1 + i: (slice(8 * i, 8 * i + 8), slice(0, 3), FLAT) for i in range(8)}
    boxes |= {11 + i: (slice(8 * i, 8 * i + 8), slice(5, 8), FLAT) for i in range(8)}
    boxes |= {21: (slice(0, 2), slice(3, 5), FLAT), 22: (slice(62, 64), slice(3, 5), FLAT)}
    return make((LENGTH, 8, 8), boxes)


def ring_of_one_label(make: Make) -> World:
    """The same, of one watershed supervoxel that chunk faces have cut."""
    boxes = {1: (slice(None), slice(None), FLAT), 2: (slice(2, 62), slice(3, 5), FLAT)}
    return make((LENGTH, 8, 8), boxes, {1: 1, 2: 2})


def voxel(x: int, bar: str) -> list[int]:
    return [x, Y_OF[bar], 1]


def request(tissue: World, source: list[int], sink: list[int], **options: object) -> SplitRequest:
    return tissue.split_request([source], [sink], **{**NEAR, **options})


def split(tissue: World, source: list[int], sink: list[int], **options: object) -> edits.CommittedEdit:
    """A split that does what its preview says, and says what it has done."""
    asked = request(tissue, source, sink, **options)
    rows = tissue.rows()
    preview = edits.preview_split(tissue.graph, asked, volume=tissue.volume)
    assert tissue.rows() == rows
    if preview.refusal is not None:
        assert preview.objects == 0
        with pytest.raises(EditRefused, match=re.escape(str(preview.refusal))) as caught:
            edits.split(tissue.graph, asked, volume=tissue.volume)
        assert but_operations(tissue.rows()) == but_operations(rows)
        raise caught.value
    edit = edits.split(tissue.graph, asked, volume=tissue.volume)
    tissue.verify()
    assert (preview.objects, preview.still_one_object) == (len(edit.roots), edit.still_one_object)
    objects = tissue.objects(tissue.voxels())
    assert bool(objects[tuple(source)] == objects[tuple(sink)]) is edit.still_one_object
    return edit


def test_the_region_grows_until_the_points_are_parted(make: Make) -> None:
    tissue = ring(make)
    edit = split(tissue, voxel(28, "low"), voxel(36, "low"))
    assert (len(edit.roots), len(edit.edges), edit.still_one_object) == (2, 2, False)


def test_a_region_that_suffices_does_not_grow(make: Make) -> None:
    tissue = make((LENGTH, 8, 8), {1 + i: (slice(8 * i, 8 * i + 8), slice(0, 3), slice(0, 3)) for i in range(8)})
    table = tissue.graph.table
    asked = request(tissue, voxel(28, "low"), voxel(36, "low"))
    preview = edits.preview_split(tissue.graph, asked, volume=tissue.volume)
    assert preview.enlarged == 0
    before = table.round_trips
    edits.split(tissue.graph, asked, volume=tissue.volume)
    assert table.round_trips - before < 40


def test_it_is_refused_where_the_region_may_not_grow_and_names_what_joins_the_sides(make: Make) -> None:
    tissue = ring(make)
    with pytest.raises(EditRefused) as caught:
        split(tissue, voxel(28, "low"), voxel(36, "low"), region_memory=0)
    refusal = caught.value
    assert refusal.reason is Reason.STILL_CONNECTED
    assert refusal.remedy is not None
    assert "--partial" in refusal.remedy
    named = re.findall(r"\((\d+), (\d+), (\d+)\) \(supervoxels (\d+) and (\d+)\)", refusal.message)
    assert len(named) == 2, "where the way leaves the region, and where it comes back"
    for *where, one, other in named:
        place = tuple(int(i) - o for i, o in zip(where, tissue.offset.tolist(), strict=True))
        assert tissue.voxels()[place] == int(one)
        assert np.unique(roots(tissue.graph, np.array([one, other], np.uint64))).size == 1
        assert place[0] in {24, 40}, "it is at the border of the region"
    log = operations_table(tissue.graph)
    assert log["refused"].tolist() == ["still_connected"]


def test_one_bridge_at_a_time_and_everybody_says_so(make: Make) -> None:
    tissue = ring(make)
    first = split(tissue, voxel(20, "low"), voxel(28, "low"), allow_partial=True)
    assert (len(first.roots), len(first.edges), first.still_one_object) == (1, 1, True)
    preview = edits.preview_split(
        tissue.graph, request(tissue, voxel(20, "high"), voxel(28, "high"), allow_partial=True), volume=tissue.volume
    )
    assert preview_numbers(preview)["objects"] == 2
    second = split(tissue, voxel(20, "high"), voxel(28, "high"), allow_partial=True)
    assert (len(second.roots), second.still_one_object) == (2, False)
    log = operations_table(tissue.graph)
    assert log["still_one_object"].tolist() == [True, False]
    assert [read_edit(tissue.graph, edit.operation_id).still_one_object for edit in (first, second)] == [True, False]


def test_a_bridge_that_cannot_be_cut_alone_is_refused(make: Make) -> None:
    """Only the root joins the two halves of the volume, so an edge between them is active while they are one object."""
    with pytest.raises(EditRefused, match="while both sides are one object") as caught:
        split(ring(make), voxel(28, "low"), voxel(36, "low"), allow_partial=True)
    assert caught.value.reason is Reason.STILL_CONNECTED


def test_what_parted_nothing_is_taken_back_and_made_again_as_it_was(make: Make) -> None:
    tissue = ring(make)
    first = split(tissue, voxel(20, "low"), voxel(28, "low"), allow_partial=True)
    undone = edits.undo(tissue.graph, first.operation_id, "tester")
    assert not undone.still_one_object
    again = edits.redo(tissue.graph, first.operation_id, "tester")
    assert again.still_one_object
    assert read_edit(tissue.graph, again.operation_id).still_one_object
    tissue.verify()


def test_an_undo_that_parts_nothing_is_refused_unless_that_is_wanted(make: Make) -> None:
    """Two bars that touch all along, merged at one end, then at the other, each by the edge that is there."""
    boxes = {i: (slice(8 * i - 8, 8 * i), slice(0, 4), slice(0, 3)) for i in range(1, 9)}
    boxes |= {8 + i: (slice(8 * i - 8, 8 * i), slice(4, 8), slice(0, 3)) for i in range(1, 9)}
    tissue = make((LENGTH, 8, 8), boxes, {i: 1 if i < 9 else 2 for i in boxes})

    def merge(x: int) -> edits.CommittedEdit:
        asked = tissue.merge_request(voxel(x, "low"), voxel(x, "high"), offset=(0, 0, 0))
        return edits.merge(tissue.graph, asked, volume=tissue.volume)

    first = merge(4)
    edits.undo(tissue.graph, first.operation_id, "tester")
    merge(60)
    edits.redo(tissue.graph, first.operation_id, "tester")
    rows = tissue.rows()
    with pytest.raises(EditRefused) as caught:
        edits.undo(tissue.graph, first.operation_id, "tester")
    assert caught.value.reason is Reason.STILL_CONNECTED
    assert re.search(r"\(\d+, \d+, \d+\)", caught.value.message)
    assert but_operations(tissue.rows()) == but_operations(rows)
    undone = edits.undo(tissue.graph, first.operation_id, "tester", allow_partial=True)
    assert undone.still_one_object
    tissue.verify()


@pytest.mark.parametrize("offset", [(1, 1, 1), (10, 1, 1), (100, 100, 100)], ids=str)
def test_a_supervoxel_that_is_a_ring_is_cut_until_its_points_are_apart(make: Make, offset: tuple[int, ...]) -> None:
    edit = split(ring_of_one_label(make), voxel(28, "low"), voxel(36, "low"), offset=offset)
    assert len(edit.supervoxels)
    assert not edit.still_one_object


@pytest.mark.parametrize("options", [{}, {"region_memory": 0}, {"allow_partial": True}], ids=str)
def test_a_success_is_one_whatever_the_region(make_graph: Callable[..., Edited], options: dict[str, object]) -> None:
    """Random worlds full of ways around, and regions of one chunk around the points."""
    edited = make_graph((6, 4, 3), seed=11, objects=0.02, cross=0.02)
    outcomes = set()
    for source, sink in edited.pairs(same=True, seed=5)[:40]:
        if edited.model.component_of(source) != edited.model.component_of(sink):
            continue
        asked = split_request([source], [sink], offset=(0, 0, 0), **options)
        preview = edits.preview_split(edited.graph, asked)
        if preview.refusal is not None:
            outcomes.add(str(preview.refusal.reason))
            with pytest.raises(EditRefused, match=re.escape(str(preview.refusal))):
                edits.split(edited.graph, asked)
            continue
        edit = edits.split(edited.graph, asked)
        edited.model.remove(edit.edges)
        outcomes.add("still one object" if edit.still_one_object else "parted")
        one, other = roots(edited.graph, [source, sink]).tolist()
        assert (one == other) is edit.still_one_object
        assert (preview.objects, preview.still_one_object) == (len(edit.roots), edit.still_one_object)
    edited.prove()
    assert "parted" in outcomes
    assert ("still_connected" in outcomes) is bool(options)
    assert ("still one object" in outcomes) is ("allow_partial" in options)


def test_a_split_that_died_is_made_again_with_what_it_was_allowed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)
    tissue = ring(make)
    asked = request(tissue, voxel(20, "low"), voxel(28, "low"), allow_partial=True)
    assert killed_after(tissue.graph, 6, lambda graph: edits.split(graph, asked, volume=tissue.volume))
    (one,) = find_unfinished(tissue.graph)
    assert recover(tissue.graph, one.operation_id).replay.outcome == "replayed"
    tissue.verify()
    assert read_edit(tissue.graph, one.operation_id).still_one_object


@pytest.mark.parametrize(("options", "partial"), [({}, True), ({"allow_partial": False}, False)])
def test_what_older_software_has_logged_is_made_again_as_it_made_it(
    make: Make, options: dict[str, object], partial: bool
) -> None:
    tissue = ring(make)
    edit = split(tissue, voxel(20, "low"), voxel(28, "low"), allow_partial=True)
    (operation,) = read_operations(tissue.graph, [edit.operation_id])
    again = request_of(operation, options)
    assert isinstance(again, SplitRequest)
    assert again.allow_partial is partial
