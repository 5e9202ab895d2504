"""What a picture of an edit shows, held against the graph: sides, moments, and the box that is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.algorithms.multicut import cut as multicut
from sv_pipeline.graph import queries
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.reports import cut_scenes
from sv_pipeline.reports.cut_pictures import CutScene, Kind, SceneState
from sv_pipeline.reports.cut_scenes import scene_of_merge, scene_of_operation, scene_of_points, scene_of_preview
from sv_pipeline_tests.editable import (
    SHAPE,
    Point,
    editable_graph,
    ingested,
    neighbours_of_two_objects,
    two_parts_of_an_object,
)
from sv_pipeline_tests.properties import examples


@pytest.fixture
def graph(tmp_path: Path) -> OpenGraph:
    return editable_graph(tmp_path, tmp_path / "home")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> OpenGraph:
    folder = tmp_path_factory.mktemp("untouched")
    return editable_graph(folder, folder / "home")


def as_array(*points: Point) -> npt.NDArray[np.int64]:
    return np.array(points, np.int64)


def is_at(scene: CutScene, state: SceneState, point: Point) -> Kind:
    return Kind(int(state.kinds[tuple(np.subtract(point, scene.box.start))]))


def roots_of(graph: OpenGraph, labels: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Root of each voxel now."""
    distinct, inverse = np.unique(labels, return_inverse=True)
    roots = np.zeros_like(distinct)
    roots[distinct != 0] = queries.roots(graph.dataset.graph, distinct[distinct != 0])
    return roots[inverse].reshape(labels.shape)


@pytest.mark.parametrize("of_a_supervoxel", [False, True])
def test_a_split_shows_one_object_before_and_its_sides_after(graph: OpenGraph, of_a_supervoxel: bool) -> None:
    one, other = two_parts_of_an_object(graph, of_a_supervoxel=of_a_supervoxel)
    previewed = scene_of_preview(graph.dataset, graph.preview_split([one], [other]), as_array(one), as_array(other))
    old_root = graph.roots([one])
    cut = graph.split([one], [other])
    scene = scene_of_operation(graph.dataset, cut.id)
    assert scene.before.kinds.tolist() == previewed.before.kinds.tolist()

    now = roots_of(graph, scene.after.labels)
    source, sink = graph.roots([one, other])
    assert ((scene.after.kinds == Kind.SOURCE) == (now == source)).all()
    assert ((scene.after.kinds == Kind.SINK) == (now == sink)).all()
    assert ((scene.after.kinds == Kind.BACKGROUND) == (scene.after.labels == 0)).all()
    assert ((scene.before.kinds == Kind.OBJECT) == np.isin(now, [source, sink])).all()
    assert previewed.after is not None
    assert (previewed.after.kinds == scene.after.kinds).all()
    assert (scene.before.labels == scene.after.labels).all() is np.bool_(not of_a_supervoxel)
    assert str(old_root[0]) in scene.subtitle

    undone = scene_of_operation(graph.dataset, graph.undo(cut.id).id)
    assert (undone.before.kinds == scene.after.kinds).all()
    assert (undone.after.kinds == scene.before.kinds).all()


def test_a_preview_shows_what_the_split_makes_of_the_object_beyond_the_region(tmp_path: Path) -> None:
    """A rod of many supervoxels is longer than the region around the points in which the cut is searched."""
    slabs = np.broadcast_to(np.arange(160, dtype=np.uint32) // 8 + 1, (8, 8, 160))
    graph = ingested(tmp_path, tmp_path / "home", "rod", slabs, (slabs > 0).astype(np.uint32), (8.0, 8.0, 8.0))
    one, other = (4, 4, 74), (4, 4, 86)
    preview = graph.preview_split([one], [other])
    assert isinstance(preview.outcome, multicut.Preview)
    cut = preview.outcome.cut
    previewed = scene_of_preview(graph.dataset, preview, as_array(one), as_array(other))
    made = scene_of_operation(graph.dataset, graph.split([one], [other]).id)
    assert made.after is not None
    assert previewed.after is not None
    assert (previewed.after.kinds == made.after.kinds).all()
    assert set(np.unique(made.after.kinds)) == {Kind.SOURCE, Kind.SINK}
    assert not np.isin(made.after.labels, np.concatenate([cut.source_side, cut.sink_side])).all()


def test_a_merge_shows_two_objects_before_and_one_after(graph: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(graph)
    asked = scene_of_merge(graph.dataset, as_array(one), as_array(other))
    scene = scene_of_operation(graph.dataset, graph.merge([one], [other]).id)
    assert (asked.before.kinds == scene.before.kinds).all()
    assert (asked.after.kinds == scene.after.kinds).all()
    assert [is_at(scene, scene.before, p) for p in (one, other)] == [Kind.SOURCE, Kind.SINK]
    assert [is_at(scene, scene.after, p) for p in (one, other)] == [Kind.OBJECT, Kind.OBJECT]


points = st.lists(st.tuples(*[st.integers(0, s - 1) for s in SHAPE]), min_size=1, max_size=4)


@examples(20)
@given(sources=points, sinks=points, limit=st.sampled_from([1, 500, 20_000, 10**9]))
def test_the_box_is_in_the_volume_and_never_too_large(
    untouched: OpenGraph, sources: list[Point], sinks: list[Point], limit: int
) -> None:
    before, cut_scenes.MAX_VOXELS = cut_scenes.MAX_VOXELS, limit
    try:
        scene = scene_of_points(untouched.dataset, as_array(*sources), as_array(*sinks))
    finally:
        cut_scenes.MAX_VOXELS = before
    assert scene.box.clip(untouched.dataset.volume.bounds) == scene.box
    assert 1 <= scene.box.volume <= limit
    if limit == 10**9:
        inside = [tuple(np.subtract(p, scene.box.start)) for p in (*sources, *sinks)]
        assert all(0 <= v < s for p in inside for v, s in zip(p, scene.box.shape, strict=True))
