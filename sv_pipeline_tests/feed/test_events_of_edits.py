"""What an event says of an edit, held against the graph as it was before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import EditRefused
from sv_pipeline.event_receivers import EventFormat
from sv_pipeline.feed.event import EditEvent
from sv_pipeline.feed.reading import events_after
from sv_pipeline.graph import queries
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.writing import OUTCOME, own_key
from sv_pipeline.table import columns, keys
from sv_pipeline.table.columns import Column
from sv_pipeline.table.interface import DeleteCells, RowMutation, SetCell
from sv_pipeline.testing.tables import Backend
from sv_pipeline.testing.volumes import cells
from sv_pipeline.testing.worlds import World, build
from sv_pipeline_tests.edits.conftest import Edited
from sv_pipeline_tests.edits.conftest import make_graph as make_graph


def layer2_at(graph: ChunkedGraph, supervoxels: UInt64Array, time: int) -> set[int]:
    """All layer 2 nodes that were in use at a time."""
    found = queries.roots(graph, supervoxels, at=time, stop_layer=2, missing_ok=True)
    return set(found[found > 0].tolist())


def check_nodes(graph: ChunkedGraph, supervoxels: Sequence[UInt64Array], event: EditEvent) -> None:
    """Layer 2 nodes and roots of an event are those that appeared and disappeared with it.

    Supervoxels are those that are leaves before it, and after it.
    """
    moments = list(zip(supervoxels, (event.time - 1, event.time), strict=True))
    before, after = (layer2_at(graph, leaves, time) for leaves, time in moments)
    assert event.new_layer2.tolist() == sorted(after - before)
    assert event.old_layer2.tolist() == sorted(before - after)
    roots = [set(queries.roots(graph, leaves, at=time, missing_ok=True).tolist()) - {0} for leaves, time in moments]
    assert event.new_roots.tolist() == sorted(roots[1] - roots[0])
    assert event.old_roots.tolist() == sorted(roots[0] - roots[1])


def test_merges_splits_undos_and_redos_tell_the_nodes_that_they_changed(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph((5, 2, 2), seed=6, objects=0.3, cross=0.03)
    made: list[edits.CommittedEdit] = []
    for seed in range(4):
        for same in (False, True):
            try:
                made.append((edited.split if same else edited.merge)(*edited.pairs(same=same, seed=seed)[0]))
            except EditRefused:
                continue
    made.append(edits.undo(edited.graph, made[-1].operation_id, "tester"))
    made.append(edits.redo(edited.graph, made[-2].operation_id, "tester"))
    events = list(events_after(edited.graph, 0))
    assert [(e.operation_id, e.kind, e.user) for e in events] == [(o.operation_id, o.kind, "tester") for o in made]
    assert [e.about for e in events[-2:]] == [made[-3].operation_id] * 2
    supervoxels = np.array(edited.world.supervoxels, np.uint64)
    for event, edit in zip(events, made, strict=True):
        assert event.old_roots.tolist() == np.unique(edit.old_roots).tolist()
        assert not len(event.supervoxels)
        assert event.boxes == ()
        check_nodes(edited.graph, (supervoxels, supervoxels), event)


def test_a_split_of_supervoxels_tells_them_its_boxes_and_whether_coarser_mips_are_behind(
    backend: Backend, tmp_path: Path
) -> None:
    with build(cells((24, 16, 16), 6, 3, labels_per_object=2), tmp_path).copied(backend) as tissue:
        graph, before = tissue.graph, tissue.voxels()
        split = edits.split(graph, _through_a_supervoxel(tissue), volume=tissue.volume)
        undo = edits.undo(graph, split.operation_id, "tester")
        after = tissue.voxels_at(split.logical_time)
        [event, undone] = events_after(graph, 0)
        replaced = {(int(a), int(b)) for a, b in zip(before[before != after], after[before != after], strict=True)}
        assert {tuple(pair) for pair in event.supervoxels.tolist()} == replaced
        changed = np.argwhere(before != after) + tissue.offset
        assert all(any(_inside(voxel, box) for box in event.boxes) for voxel in changed)
        states = [np.unique(voxels[voxels > 0]) for voxels in (before, after, tissue.voxels())]
        for i, one in enumerate((event, undone)):
            check_nodes(graph, states[i : i + 2], one)
            assert one.coarser_mips_behind
        assert undone.supervoxels[:, 1].tolist() == undo.supervoxels[:, 1].tolist()


def test_an_operation_that_was_refused_is_no_event(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph()
    one, other = edited.pairs(same=True)[0]
    with pytest.raises(EditRefused):
        edits.merge(edited.graph, edits.MergeRequest("tester", edits.Points.of([one]), edits.Points.of([other])))
    assert list(events_after(edited.graph, 0)) == []


LINEAGE = {"old_root_ids", "old_lvl2_ids"}
MADE = {"new_lvl2_ids"}
DAMAGE: dict[str, tuple[str, Column[Any], bytes, set[str]]] = {
    "no time": ("operation", columns.OPERATION_TIMESTAMP, b"abc", {"time"}),
    "after the last year": (
        "operation",
        columns.OPERATION_TIMESTAMP,
        columns.OPERATION_TIMESTAMP.encode(datetime.max),
        {"time"},
    ),
    "no status": ("operation", columns.OPERATION_STATUS, columns.OPERATION_STATUS.encode(17), set()),
    "no roots": ("operation", columns.ROOTS, b"abc", {"new_root_ids"} | LINEAGE | MADE),
    "no points": ("operation", columns.SINK_COORDINATES, b"12345678", {"sink"}),
    "undo of what": ("operation", columns.UNDO_OPERATION_ID, b"all", {"about"}),
    "no former roots": ("root", columns.FORMER_PARENTS, b"abc", LINEAGE),
    "no maker": ("root", columns.OPERATION_ID, b"all", set()),
    "no children": ("layer 2", columns.CHILDREN, b"abc", MADE),
    "no outcome": ("own", OUTCOME, b"{", {"still_one_object"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_stops_no_event_and_the_event_names_what_cannot_be_read(
    make_graph: Callable[..., Edited], damage: str
) -> None:
    where, column, value, lost = DAMAGE[damage]
    edited = make_graph((5, 2, 2), seed=6, objects=0.3, cross=0.03)
    graph, made = edited.graph, [edited.merge(*edited.pairs(same=False)[0])]
    for revert in (edits.undo, edits.redo):
        made.append(revert(graph, made[0].operation_id, "tester"))
    whole = [event.to_dict() for event in events_after(graph, 0)]
    undo = whole[1]
    # An operation whose status cannot be read has not ended, as far as the feed knows, unless the feed has it already.
    again = column is not columns.OPERATION_STATUS
    feed = [key for key, _ in graph.table.scan([keys.prefix_range(b"sv_pipeline:feed")]) if again]
    at = made[1].operation_id
    key = {
        "operation": keys.node_key(at),
        "own": own_key(at),
        "root": keys.node_key(undo["new_root_ids"][0]),
        "layer 2": keys.node_key(undo["new_lvl2_ids"][0]),
    }[where]
    created = next(iter(graph.table.read_rows([key], [column.key]).get(key, {}).values()), None)
    cell = SetCell(column.key, value, created[0].timestamp if created and where != "operation" else None)
    graph.table.mutate([RowMutation(key, [cell]), *(RowMutation(one, [DeleteCells()]) for one in feed)])

    found = list(events_after(graph, 0))  # the feed begins anew
    assert [event.operation_id for event in found] == [edit.operation_id for edit in made]
    hit = found[1]
    assert {name for event in found for name in event.unreadable if event is not hit} <= LINEAGE
    assert lost <= set(hit.unreadable) <= lost | LINEAGE
    for event, before in zip(found, whole, strict=True):
        told = event.to_dict()
        assert told["kind"] == before["kind"]
        kept = told.keys() - set(event.unreadable) - {"id", "unreadable"}
        assert {name: told[name] for name in kept} == {name: before[name] for name in kept}
        assert all(not told[name] for name in event.unreadable)
        assert all(name in str(event) for name in event.unreadable)
    attributes = hit.message(EventFormat.PYCHUNKEDGRAPH).attributes
    assert attributes.get("unreadable", "") == ",".join(hit.unreadable)


def test_an_operation_whose_row_is_lost_is_delivered_by_its_number(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph((5, 2, 2), seed=6, objects=0.3, cross=0.03)
    operation = edited.merge(*edited.pairs(same=False)[0]).operation_id
    assert len(list(events_after(edited.graph, 0))) == 1
    edited.graph.table.mutate([RowMutation(keys.node_key(operation), [DeleteCells()])])
    (event,) = events_after(edited.graph, 0)
    assert (event.operation_id, event.kind) == (operation, "unknown")
    assert {"time", "new_root_ids", "replaced_supervoxels", "boxes"} <= set(event.unreadable)


def _through_a_supervoxel(tissue: World) -> edits.SplitRequest:
    """A cut between the two ends of the largest supervoxel."""
    voxels = tissue.voxels()
    ids, counts = np.unique(voxels[voxels > 0], return_counts=True)
    inside = np.argwhere(voxels == ids[counts.argmax()])
    return tissue.split_request(inside[0], inside[-1])


def _inside(voxel: npt.NDArray[np.int64], box: Box) -> bool:
    return bool((voxel >= box.start).all() and (voxel < box.stop).all())
