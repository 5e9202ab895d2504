"""What other software writes in a form of its own: readable, told from what is not sound, and brought into ours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import Points
from sv_pipeline.graph.hierarchy import read_parents
from sv_pipeline.operations.refusal import Reason
from sv_pipeline.recovery import mend
from sv_pipeline.table import columns, keys, locks
from sv_pipeline.table.interface import RowMutation
from sv_pipeline.testing.harness.actors import DONE, OFFSET
from sv_pipeline.verify.dataset_under_test import Subject
from sv_pipeline.verify.report import VerifyReport
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.recovery.conftest import Theatre

both = pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
Make = Callable[..., Theatre]


def raise_partners(play: Theatre, limit: int = 6) -> int:
    """Let cross edges of layer 2 nodes lead to the parents of their partners; in how many cells."""
    graph, table, done = play.scene.graph, play.scene.table, 0
    for key, row in list(table.scan([keys.layer_range(2)])):
        for layer in range(3, graph.n_layers):
            column = columns.cross_edges(layer)
            if not column.cells(row) or done == limit:
                continue
            edges = column.newest(row)
            assert edges is not None
            parents = read_parents(graph, edges[:, 1])
            fits = (parents > 0) & (graph.layout.layers(parents) <= layer)
            if fits.any():
                edges = np.where(np.stack([np.zeros_like(fits), fits], axis=-1), parents[:, None], edges)
                table.mutate([RowMutation(key, [column.set(np.unique(edges, axis=0), column.cells(row)[0].timestamp)])])
                done += 1
    assert done
    return done


def checked(play: Theatre) -> VerifyReport:
    return verify(play.scene.graph.table, play.scene.graph.fork)


@both
def test_edges_to_ancestors_are_readable_and_mended(theatre: Make, backend: str) -> None:
    play = theatre(backend)
    raise_partners(play)
    report = checked(play)
    assert report.ok, report.summary()
    assert report["cross_edges"].foreign
    assert "can be normalised" in report.summary()
    before = play.scene.rows()
    found = mend(play.scene.graph)
    assert found.cross_edges > 0
    assert not found.applied
    assert play.scene.rows() == before
    mended = mend(play.scene.graph, apply=True)
    assert (mended.cross_edges, mended.skipped) == (found.cross_edges, 0)
    report = checked(play)
    assert report.ok, report.summary()
    assert not report["cross_edges"].foreign
    assert not mend(play.scene.graph).found


def test_an_edge_that_leads_elsewhere_is_still_a_fault(theatre: Make) -> None:
    play = theatre("sqlite")
    graph, table, column = play.scene.graph, play.scene.table, columns.cross_edges(2)
    nodes = Subject(table, graph.fork).nodes
    used = {*nodes.ids[nodes.is_reached].tolist()}
    rows = [(k, r) for k, r in table.scan([keys.layer_range(2)]) if column.cells(r) and int(k) in used]
    (key, row), (other, _) = rows[0], rows[-1]
    edges = column.newest(row)
    assert edges is not None
    wrong = np.concatenate([edges, np.array([[edges[0, 0], int(other)]], np.uint64)])
    table.mutate([RowMutation(key, [column.set(wrong, column.cells(row)[0].timestamp)])])
    assert not checked(play).ok
    assert not mend(graph).cross_edges


@both
@pytest.mark.parametrize("kind", ["merge", "split", "supervoxel split", "undo of a merge"])
def test_edits_work_on_edges_to_ancestors(theatre: Make, backend: str, kind: str) -> None:
    play = theatre(backend)
    raise_partners(play, 1_000)
    assert play.do(**play.request(kind)) == DONE, kind
    report = checked(play)
    assert report.ok, report.summary()
    mend(play.scene.graph, apply=True)
    report = checked(play)
    assert report.ok, report.summary()
    assert not report["cross_edges"].foreign
    assert play.scene.objects() == play.twin(kind)


def test_locks_of_operations_that_have_ended_are_released(theatre: Make) -> None:
    play = theatre("sqlite")
    graph, done = play.scene.graph, play.stage.requests["undo of a merge"]["operation"]
    key = keys.chunk_lock_key(int(graph.layout.chunk_ids(2, [0, 0, 0])))
    play.scene.table.mutate([RowMutation(key, [columns.INDEFINITE_LOCK.set(done)])])
    assert mend(graph).locks == (done,)
    assert locks.holders(play.scene.table, key) == (None, done)
    mend(graph, apply=True)
    assert locks.holders(play.scene.table, key) == (None, None)


def test_ids_that_are_not_at_the_coordinates_named_with_them_are_a_bad_request(theatre: Make) -> None:
    """They come from the log of other software, or from a viewer whose ids are outdated."""
    graph = theatre("sqlite").scene.graph
    volume = graph.fork.open()
    voxels = np.asarray(volume.read().result(), np.uint64)
    found = np.unique(voxels[voxels > 0])
    origin = np.asarray(graph.grid.bounds.start)
    near, far = (np.argwhere(voxels == sv)[0] + origin for sv in (found[0], found[-1]))
    sides = Points(found[-1:], far[None]), Points(found[:1], far[None] * 0 + near)
    swapped = Points(found[:1], far[None]), Points(found[-1:], near[None])
    for source, sink in (swapped, (swapped[0], sides[1])):
        request = edits.SplitRequest("tester", source, sink, OFFSET)
        with pytest.raises(edits.EditRefused) as refused:
            edits.split(graph, request, volume=volume)
        assert refused.value.reason in (Reason.BAD_REQUEST, Reason.SEVERAL_ROOTS), refused.value


def test_without_a_volume_voxels_of_another_supervoxel_are_a_bad_request_as_well(theatre: Make) -> None:
    graph = theatre("sqlite").scene.graph
    voxels = np.asarray(graph.fork.open().read().result(), np.uint64)
    found, counts = np.unique(voxels[voxels > 0], return_counts=True)
    origin = np.asarray(graph.grid.bounds.start)
    big = found[counts.argmax()]
    on_it, elsewhere = np.argwhere(voxels == big), np.argwhere((voxels != big) & (voxels > 0))
    far = elsewhere[np.abs(elsewhere - on_it[0]).max(axis=1).argmax()]
    sides = (Points(np.array([big]), (place + origin)[None]) for place in (on_it[0], far))
    request = edits.SplitRequest("tester", *sides, (200, 200, 200), disallow_isolating_cut=False)
    with pytest.raises(edits.EditRefused) as refused:
        edits.split(graph, request)
    assert refused.value.reason is Reason.BAD_REQUEST, refused.value
