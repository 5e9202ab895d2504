"""Undo of a supervoxel split brings voxels, objects and affinities back, under new ids; redo splits again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import CommittedEdit, Reason
from sv_pipeline.testing.invariants import edges_of
from sv_pipeline.testing.models import canonical
from sv_pipeline.testing.volumes import cells
from sv_pipeline.testing.worlds import World, build
from sv_pipeline_tests.edits.bars import ALL, Make, at, bar, split
from sv_pipeline_tests.edits.bars import make as make

State = tuple[np.ndarray, np.ndarray, dict[tuple[int, int], object]]


def state(tissue: World) -> State:
    """Voxels, objects and edges, independent of ids: a supervoxel is called by its first voxel."""
    tissue.verify()
    voxels = tissue.voxels()
    ids, first = np.unique(voxels, return_index=True)
    name = dict(zip(ids.tolist(), first.tolist(), strict=True))
    edges = {tuple(sorted((name[a], name[b]))): edge for (a, b), edge in edges_of(tissue.graph).items()}
    return canonical(voxels), canonical(tissue.objects(voxels)), edges


def same(one: State, other: State) -> bool:
    return np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1]) and one[2] == other[2]


def undo(tissue: World, edit: CommittedEdit) -> CommittedEdit:
    return edits.undo(tissue.graph, edit.operation_id, "tester")


def redo(tissue: World, edit: CommittedEdit) -> CommittedEdit:
    return edits.redo(tissue.graph, edit.operation_id, "tester")


def test_voxels_objects_and_affinities_come_back(make: Make) -> None:
    boxes = {1: bar(0, 16), 2: bar(16, 24), 3: (slice(0, 24), slice(4, 6), slice(1, 4))}
    tissue = make((24, 8, 5), boxes, objects={1: 1, 2: 1, 3: 2})
    before = state(tissue)
    edit = split(tissue, [at(2)], [at(10)])
    after = state(tissue)
    undone = undo(tissue, edit)
    assert same(state(tissue), before)
    assert not same(after, before)
    redone = redo(tissue, edit)
    assert same(state(tissue), after)
    again = undo(tissue, redone)
    assert same(state(tissue), before)
    undo(tissue, again)
    assert same(state(tissue), after), "the undo of an undo is a redo"
    assert undone.kind == again.kind == "undo"
    assert redone.kind == "redo"


@pytest.mark.parametrize("seed", range(4))
def test_every_split_of_random_tissue_is_undone_with_its_affinities(seed: int, tmp_path: Path) -> None:
    """On chunk faces and across several chunks, with inactive partners around."""
    rng = np.random.default_rng(seed)
    with build(cells((20, 17, 9), 7, seed, voxel_offset=(16, 8, 3)), tmp_path).copied() as tissue:
        done = 0
        for _ in range(8):
            before, voxels = state(tissue), tissue.voxels()
            ids, sizes = np.unique(voxels[voxels > 0], return_counts=True)
            source, sink = rng.permutation(np.argwhere(voxels == rng.choice(ids[sizes > 1])))[:2].tolist()
            try:
                edit = split(tissue, [source], [sink])
            except edits.EditRefused:
                continue
            undo(tissue, edit)
            assert same(state(tissue), before)
            done += 1
        assert done > 3


def test_later_edits_that_overlap_are_named(make: Make) -> None:
    tissue = make((24, 5, 5), {1: bar(0, 24)}, chunk_size=(24, 8, 8))
    first = split(tissue, [at(1)], [at(22)])
    second = split(tissue, [at(1)], [at(8)])
    third = split(tissue, [at(15)], [at(22)])
    with pytest.raises(edits.EditRefused, match=rf"since by operations {second.id}, {third.id}\b") as caught:
        undo(tissue, first)
    assert caught.value.reason is Reason.OVERLAPPED
    assert "Undo what came later first" in str(caught.value)


def test_from_the_last_to_the_first_everything_can_be_undone(make: Make) -> None:
    """What was split and joined again has other ids; that is no edit that overlaps."""
    tissue = make((24, 5, 5), {1: bar(0, 12), 2: bar(12, 24)})
    states, done = [state(tissue)], []
    for source, sink in [(1, 9), (1, 4), (14, 22), (10, 14)]:
        done.append(split(tissue, [at(source)], [at(sink)]))
        states.append(state(tissue))
    done.append(edits.merge(tissue.graph, tissue.merge_request(at(10), at(14)), volume=tissue.volume))
    for edit in reversed(done):
        undo(tissue, edit)
        assert same(state(tissue), states.pop())


def test_edits_elsewhere_are_kept(make: Make) -> None:
    tissue = make((24, 8, 5), {1: bar(0, 12), 2: bar(12, 24), 3: (ALL, slice(4, 6), slice(1, 4))})
    first = split(tissue, [at(1)], [at(9)])
    second = split(tissue, [[2, 5, 2]], [[20, 5, 2]])
    voxels = tissue.voxels()
    undo(tissue, first)
    tissue.verify()
    assert np.array_equal(tissue.voxels()[:, 4:], voxels[:, 4:])
    objects = tissue.objects(tissue.voxels())
    assert objects[2, 5, 2] == objects[tuple(at(1))] or objects[20, 5, 2] == objects[tuple(at(1))]
    assert len(second.supervoxels)


def test_an_edge_of_what_has_come_back_can_be_undone(make: Make) -> None:
    """A merge, then a split of one of its ends that is undone: the merge knows the end under its old id only."""
    tissue = make((16, 5, 5), {1: bar(0, 8), 2: bar(8, 16)}, objects={1: 1, 2: 2})
    apart = state(tissue)
    merge = edits.merge(tissue.graph, tissue.merge_request(at(7), at(8)), volume=tissue.volume)
    whole = state(tissue)
    undo(tissue, split(tissue, [at(1)], [at(6)]))
    assert same(state(tissue), whole)
    undo(tissue, merge)
    assert same(state(tissue), apart)
    redo(tissue, merge)
    assert same(state(tissue), whole)


def test_a_split_made_again_without_a_supervoxel_can_be_undone(make: Make) -> None:
    """Its supervoxel was split at the same place meanwhile, and merged: now an edge is all there is to cut."""
    tissue = make((8, 5, 5), {1: bar(0, 8)})
    first = split(tissue, [at(1)], [at(6)])
    undo(tissue, first)
    split(tissue, [at(0)], [at(7)])
    edits.merge(tissue.graph, tissue.merge_request(at(3), at(4)), volume=tissue.volume)
    merged = state(tissue)
    again = redo(tissue, first)
    assert not len(again.supervoxels)
    parted = state(tissue)
    assert not same(parted, merged)
    undo(tissue, again)
    assert same(state(tissue), merged)
    redo(tissue, again)
    assert same(state(tissue), parted)


@pytest.mark.parametrize("chunk_size", [(8, 8, 8), (8, 8, 2), (8, 8, 1), (4, 4, 2)])
@pytest.mark.parametrize("fragment", ["source", "sink"])
def test_an_edge_of_one_fragment_to_the_object_of_another_is_active_again(
    make: Make, chunk_size: tuple[int, int, int], fragment: str
) -> None:
    """A ring touches both fragments and is merged with one of them; the other one's edge to it was never asked for."""
    ring = np.zeros((16, 16, 3), np.bool_)
    ring[:3, 8:] = ring[:, 12:] = ring[12:] = ring[8:, :3] = True
    tissue = make((16, 16, 3), {1: np.s_[0:8, 0:8], 2: np.where(ring)}, objects={1: 1, 2: 2}, chunk_size=chunk_size)
    source, sink = ([1, 6, 1], [2, 9, 1]), ([6, 1, 1], [9, 2, 1])
    merge = edits.merge(tissue.graph, tissue.merge_request(*source), volume=tissue.volume)
    whole = state(tissue)
    undo(tissue, merge)
    parted = split(tissue, [source[0]], [sink[0]])
    assert len(parted.supervoxels)
    ends = source if fragment == "source" else sink
    edits.merge(tissue.graph, tissue.merge_request(*ends), volume=tissue.volume)
    tissue.verify()
    undo(tissue, parted)
    assert same(state(tissue), whole)


def test_edges_inside_a_chunk_that_a_merge_made_active_by_its_nodes_are_inactive_again(make: Make) -> None:
    """Two arms of one object touch, but are joined elsewhere only; what is merged with them touches both."""
    boxes = {1: np.s_[0:16, 0:3, 0:3], 2: np.s_[0:16, 4:7, 0:3], 3: np.s_[16:20, 0:7, 0:3], 4: np.s_[0:8, 0:7, 3:5]}
    arms = np.zeros((20, 7, 5), np.bool_)
    arms[boxes[1]] = arms[0:8, 3, 0:3] = True
    tissue = make((20, 7, 5), {**boxes, 1: np.where(arms)}, objects={1: 1, 3: 1, 2: 2, 4: 3})
    near = {"offset": (0, 0, 0)}
    edits.merge(tissue.graph, tissue.merge_request([15, 5, 1], [16, 5, 1], **near), volume=tissue.volume)
    voxels, before = tissue.voxels(), state(tissue)
    assert not edges_of(tissue.graph)[int(voxels[3, 3, 1]), int(voxels[3, 4, 1])].active
    merge = edits.merge(tissue.graph, tissue.merge_request([3, 2, 2], [3, 2, 3]), volume=tissue.volume)
    merged = state(tissue)
    assert edges_of(tissue.graph)[int(voxels[3, 3, 1]), int(voxels[3, 4, 1])].active
    undo(tissue, merge)
    assert same(state(tissue), before)
    redo(tissue, merge)
    assert same(state(tissue), merged)
