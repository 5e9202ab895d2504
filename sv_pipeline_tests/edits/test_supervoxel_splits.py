"""Supervoxel splits by example: what is cut, what keeps its id, what becomes of edges, and what is refused whole."""

from __future__ import annotations

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.algorithms.edge_routing import LOW_AFFINITY
from sv_pipeline.algorithms.multicut.cut import Refusal
from sv_pipeline.edits import Reason
from sv_pipeline.edits.plan.split_box import BYTES_PER_VOXEL
from sv_pipeline.testing.invariants import edges_of
from sv_pipeline.testing.tables import but_operations
from sv_pipeline_tests.edits.bars import ALL, Make, at, bar, row, split
from sv_pipeline_tests.edits.bars import make as make


def test_an_object_of_one_supervoxel_without_any_edge(make: Make) -> None:
    tissue = make((8, 8, 8), {1: bar(1, 7)})
    edit = split(tissue, [at(1)], [at(6)])
    assert len(edit.supervoxels) == len(edit.roots) == 2
    assert np.bincount(row(tissue.voxels())[1:7])[1:].tolist() == [3, 3]


def test_at_the_border_of_a_volume_of_odd_size_and_offset(make: Make) -> None:
    tissue = make((13, 5, 5), {1: (ALL, ALL, ALL)}, voxel_offset=(5, 3, 101), chunk_size=(8, 4, 4))
    edit = split(tissue, [[0, 0, 0]], [[12, 4, 4]])
    assert len(edit.roots) == 2
    assert (tissue.voxels() > 0).all()


def test_a_cut_on_a_chunk_face_gives_one_piece_a_new_id(make: Make) -> None:
    """So the edge of affinity inf in the edge file ends, which nothing else could take back."""
    tissue = make((16, 5, 5), {1: bar(0, 16)})
    before = tissue.voxels()
    low, high = int(before[tuple(at(0))]), int(before[tuple(at(15))])
    assert np.isinf(edges_of(tissue.graph)[low, high].affinity)
    edit = split(tissue, [at(3)], [at(12)])
    ((old, new),) = edit.supervoxels.tolist()
    assert old in (low, high)
    assert row(tissue.voxels()) == [0] * 8 + [1] * 8
    other = high if old == low else low
    assert edges_of(tissue.graph)[tuple(sorted((new, other)))].affinity == LOW_AFFINITY


def test_more_than_two_parts_one_after_the_other(make: Make) -> None:
    tissue = make((24, 5, 5), {1: bar(0, 24)}, voxel_offset=(3, 0, 0))
    for source, sink in [(1, 20), (1, 8), (14, 20)]:
        split(tissue, [at(source)], [at(sink)])
    objects = tissue.objects(tissue.voxels())
    assert len(np.unique(objects[objects > 0])) == 4


def test_several_supervoxels_between_the_points_are_cut_in_one_plan(make: Make) -> None:
    """Two that lie side by side, with points of both sides on each."""
    boxes = {1: (ALL, slice(0, 3), slice(0, 3)), 2: (ALL, slice(3, 6), slice(0, 3))}
    tissue = make((8, 8, 8), boxes)
    edit = split(tissue, [[0, 1, 1], [0, 4, 1]], [[7, 1, 1], [7, 4, 1]])
    assert len(np.unique(edit.supervoxels[:, 0])) == 2
    assert len(edit.roots) == 2
    objects = tissue.objects(tissue.voxels())
    assert objects[0, 1, 1] == objects[0, 4, 1] != objects[7, 1, 1] == objects[7, 4, 1]


def test_members_in_several_chunks_are_cut_as_one(make: Make) -> None:
    """A plate over four chunks, cut across all of them; chunk by chunk, the two sides are what they are next door."""
    tissue = make((16, 16, 4), {1: (ALL, ALL, slice(0, 3))}, chunk_size=(8, 8, 8))
    edit = split(tissue, [[0, 0, 1]], [[15, 11, 1]])
    assert len(np.unique(edit.supervoxels[:, 0])) >= 3
    assert len(edit.roots) == 2


def test_pieces_that_lie_wholly_on_one_side_keep_their_ids(make: Make) -> None:
    tissue = make((24, 5, 5), {1: bar(0, 24)})
    before = tissue.voxels()
    edit = split(tissue, [at(1)], [at(5)])
    after = tissue.voxels()
    assert np.array_equal(before[8:], after[8:])
    assert edit.supervoxels[:, 0].tolist() == [before[tuple(at(0))]] * 2
    record = tissue.graph.fork.record(edit.operation_id)
    assert record is not None
    assert [box.start[0] for box in record.boxes] == [0], "only the storage chunk that changed was written"


def test_a_supervoxel_that_was_in_pieces_is_healed(make: Make) -> None:
    """As other software leaves some: one id on two pieces of a chunk. Each piece gets an id."""
    tissue = make((8, 8, 8), {1: bar(0, 8)})
    gap = tissue.voxels()
    gap[5] = 0
    tissue.volume[tissue.graph.grid.bounds.slices].write(gap).result()
    edit = edits.split(tissue.graph, tissue.split_request([at(0)], [at(4)]), volume=tissue.volume)
    found = {finding.check for finding in tissue.report().findings}
    assert found <= {"lineage"}, "no edit has made the gap, so the voxels there do not descend from those of the base"
    assert len(edit.supervoxels) == 3
    assert np.array_equal(tissue.voxels() == 0, gap == 0)


def test_a_partner_of_another_root_is_joined_to_every_fragment_in_contact(make: Make) -> None:
    boxes = {1: bar(0, 8), 2: (slice(0, 8), slice(4, 6), slice(1, 4))}
    tissue = make((8, 8, 8), boxes, objects={1: 1, 2: 2})
    (old, partner), ((_, edge),) = (
        sorted(set(np.unique(tissue.voxels()[4]).tolist()) - {0}),
        edges_of(tissue.graph).items(),
    )
    edit = split(tissue, [at(0)], [at(7)])
    after = edges_of(tissue.graph)
    for fragment in edit.supervoxels[:, 1].tolist():
        found = after[tuple(sorted((fragment, partner)))]
        assert found.affinity == edge.affinity
        assert not found.active
    assert old not in {end for pair in after for end in pair}
    merged = edits.merge(tissue.graph, tissue.merge_request(at(0), [0, 4, 2]), volume=tissue.volume)
    tissue.verify()
    assert len(merged.roots) == 1
    assert tissue.objects(tissue.voxels())[7, 4, 2] == merged.roots[0] != tissue.objects(tissue.voxels())[tuple(at(7))]


def test_what_the_minimum_cut_refuses_after_the_voxels_were_cut_leaves_nothing(make: Make) -> None:
    """Sources on both sides of the sink: voxels could be cut, but the sources not be kept together."""
    tissue = make((24, 5, 5), {1: bar(0, 8), 2: bar(8, 16), 3: bar(16, 24)})
    rows, generation = tissue.rows(), tissue.generation
    request = tissue.split_request([at(9), at(20)], [at(14)])
    with pytest.raises(edits.EditRefused) as caught:
        edits.split(tissue.graph, request, volume=tissue.volume)
    assert caught.value.reason in {Refusal.SIDE_NOT_CONNECTED, Refusal.PATHS_CROSS, Reason.SUPERVOXEL_SPLIT_REQUIRED}
    assert but_operations(tissue.rows()) == but_operations(rows)
    assert tissue.generation == generation
    assert split(tissue, [at(9)], [at(14)]).supervoxels[:, 1].min() & np.uint64((1 << 20) - 1) == 2, "no id was used up"


def test_a_preview_is_what_the_split_does_and_writes_nothing(make: Make) -> None:
    tissue = make((24, 5, 5), {1: bar(0, 24)})
    rows, generation = tissue.rows(), tissue.generation
    request = tissue.split_request([at(1)], [at(5)])
    preview = edits.preview_split(tissue.graph, request, volume=tissue.volume)
    assert tissue.rows() == rows
    assert tissue.generation == generation
    assert preview.supervoxels is not None
    split(tissue, [at(1)], [at(5)])
    objects = tissue.objects(tissue.voxels())
    box = preview.supervoxels.cut.box.shifted(-tissue.offset).slices
    for side, voxel in ((1, at(1)), (2, at(5))):
        cut = preview.supervoxels.cut.sides == side
        assert set(objects[box][cut].tolist()) == {int(objects[tuple(voxel)])}


def test_where_memory_is_short_only_the_chunks_of_the_points_are_cut(make: Make) -> None:
    """Pieces farther away keep their voxels, and each goes to the side that it touches."""
    tissue = make((24, 5, 5), {1: bar(0, 24)})
    before = tissue.voxels()
    one_chunk_and_a_voxel_around = 10 * 5 * 5
    edit = split(tissue, [at(9)], [at(14)], memory=one_chunk_and_a_voxel_around * BYTES_PER_VOXEL)
    after = tissue.voxels()
    assert np.array_equal(before[:8], after[:8])
    assert np.array_equal(before[16:], after[16:])
    assert edit.supervoxels[:, 0].tolist() == [before[tuple(at(8))]] * 2
    objects = tissue.objects(after)
    assert objects[tuple(at(0))] == objects[tuple(at(9))] != objects[tuple(at(14))] == objects[tuple(at(23))]
