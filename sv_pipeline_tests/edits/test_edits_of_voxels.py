"""Edits of a graph with voxels: points are looked up in its fork, and every check of ``verify`` passes afterwards."""

from __future__ import annotations

import networkx
import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import Points
from sv_pipeline.graph.chunked_graph import ChunkedGraph, open_chunked_graph
from sv_pipeline.graph.queries import roots, supervoxels_at
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.volumes import cells
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.edits.bars import Make
from sv_pipeline_tests.edits.bars import make as make
from sv_pipeline_tests.reference_data import ReferenceDataset, build_dataset, contacts

OFFSET = (6, 6, 6)


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReferenceDataset, ChunkedGraph]:
    folder = tmp_path_factory.mktemp("tissue")
    table = SqliteTable("tissue", folder)
    table.create()
    labels = cells((48, 40, 36), 90, seed=3).labels
    objects = {label: label // 4 for label in range(1, 91)}
    data = build_dataset(folder / "ws", table, labels, objects, chunk_size=(8, 8, 8), voxel_offset=(16, 8, 3))
    return data, open_chunked_graph(table)


def voxel_of(data: ReferenceDataset, supervoxel: int) -> list[int]:
    return (np.argwhere(data.voxels == supervoxel)[0] + data.grid.bounds.start).tolist()


def test_points_on_touching_objects_merge_and_on_one_object_split(
    tissue: tuple[ReferenceDataset, ChunkedGraph],
) -> None:
    data, graph = tissue
    volume = data.fork.open()
    touching = sorted(contacts(data.voxels))
    rng = np.random.default_rng(4)
    outcomes = []
    for index in rng.permutation(len(touching))[:30].tolist():
        source, sink = touching[index]
        one, other = (Points.of([], [voxel_of(data, sv)]) for sv in (source, sink))
        before = roots(graph, supervoxels_at(graph, volume, [voxel_of(data, sv) for sv in (source, sink)]))
        try:
            if before[0] == before[1]:
                split = edits.SplitRequest("tester", one, other, OFFSET, disallow_isolating_cut=False)
                edit = edits.split(graph, split, volume=volume)
            else:
                edit = edits.merge(graph, edits.MergeRequest("tester", one, other, OFFSET), volume=volume)
        except edits.EditRefused as refusal:
            outcomes.append(str(refusal.reason))
            continue
        outcomes.append(edit.kind)
        after = roots(graph, supervoxels_at(graph, volume, [voxel_of(data, sv) for sv in (source, sink)]))
        assert set(after.tolist()) <= set(edit.roots.tolist())
        assert set(edit.old_roots.tolist()) == set(before.tolist())
        assert edit.kind == "split" or after[0] == after[1]
    assert {"merge", "split"} <= set(outcomes)
    report = verify(graph.table, data.fork)
    assert report.ok, report.summary()
    assert not report.findings, report.summary()


def test_a_chain_of_merges_makes_one_object(tissue: tuple[ReferenceDataset, ChunkedGraph]) -> None:
    data, graph = tissue
    volume = data.fork.open()
    touching = networkx.Graph(list(contacts(data.voxels)))
    for pair in list(networkx.bfs_edges(touching, min(touching)))[:60]:
        # Others have split some supervoxels meanwhile: they are what is at their places now.
        places = [voxel_of(data, supervoxel) for supervoxel in pair]
        source, sink = supervoxels_at(graph, volume, places).tolist()
        if len(np.unique(roots(graph, [source, sink]))) == 2:
            request = edits.MergeRequest("tester", Points.of([source]), Points.of([sink]), OFFSET)
            edits.merge(graph, request)
        assert len(np.unique(roots(graph, [source, sink]))) == 1
    report = verify(
        graph.table,
        data.fork,
        checks=["hierarchy", "skip_connections", "cross_edges", "connectivity", "inf_edges", "operations"],
    )
    assert report.ok, report.summary()


def test_an_edge_that_a_user_has_drawn_far_away_becomes_active_again_by_itself(make: Make) -> None:
    """Its ends are in chunks that do not touch; it was undone, and then other merges joined the two objects."""
    boxes = {
        1: (slice(0, 8), slice(0, 3), slice(0, 8)),
        2: (slice(24, 32), slice(0, 3), slice(0, 8)),
        3: (slice(0, 32), slice(4, 7), slice(0, 8)),
    }
    tissue = make((32, 8, 8), boxes, objects={1: 1, 2: 2, 3: 3})

    def merge(source: list[int], sink: list[int], offset: tuple[int, int, int]) -> edits.CommittedEdit:
        edit = edits.merge(tissue.graph, tissue.merge_request(source, sink, offset=offset), volume=tissue.volume)
        tissue.verify()
        return edit

    drawn = merge([2, 1, 1], [25, 1, 1], OFFSET)
    edits.undo(tissue.graph, drawn.operation_id, "tester")
    merge([2, 1, 1], [2, 5, 1], OFFSET)
    merge([25, 1, 1], [25, 5, 1], (3, 3, 3))
