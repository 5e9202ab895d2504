"""What cannot be done is refused with a reason: the operation's row says so, and nothing else is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.algorithms.multicut.cut import Refusal
from sv_pipeline.edits import Points, Reason
from sv_pipeline.graph.queries import parents
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.table import keys
from sv_pipeline.table.interface import Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.tables import but_operations
from sv_pipeline_tests.edits.conftest import Edited, merge_request, split_request
from sv_pipeline_tests.graph.compare import dump


@pytest.fixture
def new_table(tmp_path: Path) -> Iterator[Table]:
    """One backend is enough: what is refused is decided above the tables."""
    table = SqliteTable("t", tmp_path)
    yield table
    table.close()


class Volume:
    """A segmentation in memory, as far as points are looked up in it."""

    def __init__(self, voxels: dict[tuple[int, int, int], int]) -> None:
        self.voxels = voxels

    @property
    def vindex(self) -> Volume:
        return self

    def __getitem__(self, index: tuple[Any, ...]) -> Volume:
        if isinstance(index[0], slice):
            self.asked = np.zeros([axis.stop - axis.start for axis in index], np.uint64)
            for voxel, supervoxel in self.voxels.items():
                relative = tuple(at - axis.start for at, axis in zip(voxel, index, strict=True))
                if all(0 <= at < size for at, size in zip(relative, self.asked.shape, strict=True)):
                    self.asked[relative] = supervoxel
            return self
        self.asked = [self.voxels.get(voxel, 0) for voxel in zip(*(axis.tolist() for axis in index), strict=True)]
        return self

    def read(self) -> Volume:
        return self

    def result(self) -> np.ndarray:
        return np.array(self.asked, np.uint64)


def rows_but_operations(table: Table) -> dict[bytes, object]:
    return {**but_operations(dump(table))}


@pytest.fixture
def refused(make_graph: Callable[..., Edited]) -> Callable[..., edits.EditRefused]:
    """Assert that a request is refused, that the log says so, and that nothing else was written."""
    edited = make_graph(objects=0.6, cross=0.15, seed=4)

    def act(make_request: Callable[[Edited], object], options: dict[str, object]) -> None:
        request = make_request(edited)
        edit = edits.merge if isinstance(request, edits.MergeRequest) else edits.split
        edit(edited.graph, request, **options)  # type: ignore[operator]

    def check(make_request: Callable[[Edited], object], reason: object, **options: object) -> edits.EditRefused:
        before = rows_but_operations(edited.graph.table)
        with pytest.raises(edits.EditRefused) as caught:
            act(make_request, options)
        assert caught.value.reason == reason
        assert rows_but_operations(edited.graph.table) == before
        operation = caught.value.operation_id
        if operation is not None:
            (row,) = read_operations(edited.graph, [operation])
            assert row.status is OperationStatus.EXCEPTION
            assert (row.exception or "").startswith(f"refused:{reason}: ")
            assert caught.value.message in (row.exception or "")
        return caught.value

    return check


def two_objects(edited: Edited) -> tuple[int, int]:
    return edited.pairs(same=False)[0]


REQUESTS: dict[str, tuple[Callable[[Edited], object], object]] = {
    "merge of one object": (lambda e: merge_request(*[[sv] for sv in e.pairs(same=True)[0]]), Reason.SAME_ROOT),
    "split of two objects": (lambda e: split_request(*[[sv] for sv in two_objects(e)]), Reason.SEVERAL_ROOTS),
    "sources on two objects": (lambda e: merge_request([*two_objects(e)], [third(e)]), Reason.SEVERAL_ROOTS),
    "the same twice": (lambda e: merge_request([first(e)] * 2, [first(e)]), Reason.SAME_POINT),
    "no source": (lambda e: split_request([], [first(e)]), Reason.NO_POINTS),
    "nothing": (lambda e: merge_request([], []), Reason.NO_POINTS),
    "background": (lambda e: merge_request([0], [first(e)]), Reason.BACKGROUND),
    "an id that is not there": (lambda e: merge_request([first(e)], [unused(e)]), Reason.NOT_FOUND),
    "an id outside the grid": (lambda e: merge_request([(1 << 56) | (99 << 46) | 1], [first(e)]), Reason.NOT_FOUND),
    "a layer 2 node": (lambda e: split_request([layer2(e)], [first(e)]), Reason.NOT_A_SUPERVOXEL),
    "thousands of points": (lambda e: split_request(list(range(1, 5000)), [1]), Reason.TOO_MANY_POINTS),
    "no author": (lambda e: replace(merge_request(*[[sv] for sv in two_objects(e)]), user=" "), Reason.BAD_REQUEST),
    "text for ids": (lambda e: split_request(["a"], [1]), Reason.BAD_REQUEST),  # type: ignore[list-item]
    "negative ids": (lambda e: split_request([-1], [1]), Reason.BAD_REQUEST),
    "voxels that do not correspond": (
        lambda e: edits.MergeRequest("tester", Points.of([1, 2], [[0, 0, 0]]), Points.of([3])),
        Reason.BAD_REQUEST,
    ),
    "a negative offset": (lambda e: split_request([first(e)], [last(e)], offset=(-1, 0, 0)), Reason.BAD_REQUEST),
    "voxels without a volume": (
        lambda e: edits.SplitRequest("tester", Points.of([], [[20, 10, 30]]), Points.of([], [[21, 10, 30]])),
        Reason.BAD_REQUEST,
    ),
}  # fmt: skip


def first(edited: Edited) -> int:
    return int(edited.world.supervoxels[0])


def last(edited: Edited) -> int:
    return int(edited.world.supervoxels[-1])


def third(edited: Edited) -> int:
    pieces = [edited.model.component_of(sv) for sv in two_objects(edited)]
    return next(int(sv) for sv in edited.world.supervoxels if edited.model.component_of(int(sv)) not in pieces)


def unused(edited: Edited) -> int:
    return int(edited.graph.layout.chunks(edited.world.supervoxels[0])) + edited.graph.layout.max_segment(1)


def layer2(edited: Edited) -> int:
    return int(parents(edited.graph, edited.world.supervoxels[:1])[0])


@pytest.mark.parametrize("name", REQUESTS)
def test_bad_requests_are_refused_and_nothing_is_written(refused: Callable[..., edits.EditRefused], name: str) -> None:
    make_request, reason = REQUESTS[name]
    refused(make_request, reason)


def test_points_outside_and_on_background_are_refused(refused: Callable[..., edits.EditRefused]) -> None:
    def at(voxel: tuple[int, int, int]) -> Callable[[Edited], object]:
        return lambda e: edits.SplitRequest("tester", Points.of([], [voxel]), Points.of([], [voxel]))

    refused(at((-5, 0, 0)), Reason.OUTSIDE, volume=Volume({}))
    refused(at((20, 10, 30)), Reason.BACKGROUND, volume=Volume({}))


def test_what_voxels_would_have_to_part_is_refused(refused: Callable[..., edits.EditRefused]) -> None:
    def ends_of_an_inf_edge(edited: Edited) -> object:
        a, b = next((a, b) for a, b, kind in edited.world.edges if kind == "cross")
        return split_request([a], [b])

    refused(ends_of_an_inf_edge, Reason.SUPERVOXEL_SPLIT_REQUIRED)


def test_the_reason_of_a_minimum_cut_is_passed_on(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph(objects=0.05, cross=0)
    graph = networkx.Graph(edited.model.active)
    leaf, sink = next(
        (leaf, sink)
        for leaf in graph
        if graph.degree(leaf) == 1
        for sink in networkx.node_connected_component(graph, leaf) - {leaf, *graph[leaf]}
        if graph.degree(sink) > 1
    )
    request = split_request([leaf], [sink], disallow_isolating_cut=True)
    with pytest.raises(edits.EditRefused) as caught:
        edits.split(edited.graph, request)
    assert caught.value.reason is Refusal.ISOLATING_CUT


def test_a_read_only_graph_is_not_touched_at_all(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph()
    request = merge_request(*[[sv] for sv in edited.pairs(same=False)[0]])
    edited.graph.table.read_only = True
    before = dump(edited.graph.table)
    with pytest.raises(edits.EditRefused) as caught:
        edits.merge(edited.graph, request)
    assert caught.value.reason is Reason.READ_ONLY
    assert dump(edited.graph.table) == before
    edited.graph.table.read_only = False


def test_points_are_looked_up_in_the_volume(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph(objects=1.0, cross=0.1)
    source, sink = edited.pairs(same=False)[0]
    start = np.asarray(edited.graph.grid.bounds.start)
    voxels = {}
    for supervoxel in (source, sink):
        corner = start + edited.graph.layout.coordinates(np.uint64(supervoxel)) * edited.graph.grid.chunk_size
        voxels[tuple(corner.tolist())] = supervoxel
    one, other = voxels
    request = edits.MergeRequest("tester", Points.of([], [one]), Points.of([], [other]))
    edit = edits.merge(edited.graph, request, volume=Volume(voxels))
    assert edit.edges.tolist() == [[source, sink]]
    (row,) = read_operations(edited.graph)
    assert keys.node_key(edit.operation_id) in dict(edited.graph.table.scan([keys.operation_range()]))
    assert row.roots.tolist() == edit.roots.tolist()
