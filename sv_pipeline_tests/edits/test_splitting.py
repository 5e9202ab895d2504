"""Splits remove the edges of the cheapest cut and leave sound rows, whatever the object falls into."""

from __future__ import annotations

from collections.abc import Callable

import networkx
import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.algorithms.multicut.cut import Preview, SupervoxelSplitRequired
from sv_pipeline.graph.queries import leaves, roots
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.table import columns
from sv_pipeline_tests.edits.conftest import Edited, split_request
from sv_pipeline_tests.graph.compare import dump


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1), (3, 2, 2), (9, 2, 1)])
def test_split_objects_are_apart_and_all_rows_are_sound(make_graph: Callable[..., Edited], shape) -> None:
    edited = make_graph(shape, seed=2, per_chunk=3 if shape[0] > 1 else 12, objects=0.1, cross=0.02)
    done = 0
    for source, sink in edited.pairs(same=True)[:6]:
        if edited.model.component_of(source) == edited.model.component_of(sink):
            try:
                edited.split(source, sink)
            except edits.EditRefused:
                continue
            done += 1
            edited.prove()
            assert len(np.unique(roots(edited.graph, [source, sink]))) == 2
    assert done


def test_the_log_says_what_was_removed(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph(objects=0.1, cross=0)
    edit = edited.split(*edited.pairs(same=True)[0])
    (row,) = read_operations(edited.graph)
    assert (row.kind, row.status) == ("split", OperationStatus.SUCCESS)
    assert row.roots.tolist() == edit.roots.tolist()
    removed = columns.REMOVED_EDGES.newest(row.row)
    assert removed is not None
    assert removed.tolist() == edit.edges.tolist()
    assert columns.BOUNDING_BOX_OFFSET.newest(row.row) is not None


def test_one_cut_may_leave_more_than_two_objects(make_graph: Callable[..., Edited]) -> None:
    """A part that hangs on an edge of affinity 0 has no side: three supervoxels in a row of which both ends are cut."""
    edited = make_graph((2, 2, 1), seed=2, objects=0.05, cross=0)
    graph = networkx.Graph(edited.model.active)
    hub = max(graph, key=graph.degree)
    for neighbour in sorted(graph[hub])[:4]:
        if neighbour in edited.model.component_of(hub):
            edited.split(hub, neighbour)
    edited.prove()


def test_a_preview_writes_nothing_and_is_what_a_split_does(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph(objects=0.1, cross=0)
    source, sink = edited.pairs(same=True)[0]
    before = dump(edited.graph.table)
    preview = edits.preview_split(edited.graph, split_request([source], [sink])).outcome
    assert dump(edited.graph.table) == before
    assert isinstance(preview, Preview)
    edit = edited.split(source, sink)
    assert edit.edges.tolist() == preview.cut.removed_edges.tolist()
    found = {frozenset(part.tolist()) for part in np.split(*_ragged(leaves(edited.graph, edit.roots)))}
    assert found == {frozenset(part.tolist()) for part in preview.components}


def test_a_preview_says_when_voxels_must_be_cut(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph()
    source, sink = next((a, b) for a, b, kind in edited.world.edges if kind == "cross")
    assert isinstance(
        edits.preview_split(edited.graph, split_request([source], [sink])).outcome, SupervoxelSplitRequired
    )


def test_the_past_of_a_split_object_does_not_change(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph(objects=0.1, cross=0)
    source, sink = edited.pairs(same=True)[0]
    (old,) = np.unique(roots(edited.graph, [source, sink])).tolist()
    edit = edited.split(source, sink)
    assert roots(edited.graph, [source, sink], at=edit.logical_time - 1).tolist() == [old, old]
    assert set(roots(edited.graph, [source, sink], at=edit.logical_time).tolist()) <= set(edit.roots.tolist())


def _ragged(ragged):  # type: ignore[no-untyped-def]
    return ragged.values, ragged.offsets[1:-1]
