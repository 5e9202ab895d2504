"""The layers of a viewer, compared with the graph itself: objects at every mip, the past, and sides of a preview."""

from __future__ import annotations

import numpy as np
import pytest

from sv_pipeline.errors import InputError, NotFoundError
from sv_pipeline.grid import Box
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.testing.worlds import World
from sv_pipeline.viewer import labels
from sv_pipeline.viewer.labels import SINK, SOURCE, View
from sv_pipeline.viewer.places import place_of, view_at
from sv_pipeline.viewer.pyramids import Pyramid
from sv_pipeline_tests.editable import neighbours_of_two_objects, two_parts_of_an_object


def everything(volume: Pyramid) -> np.ndarray:
    return volume.read(Box((0, 0, 0), volume.bounds.shape))


def test_each_voxel_shows_the_root_of_its_supervoxel_at_every_mip(graph: OpenGraph) -> None:
    world, view = World(graph.dataset), View(graph.graph)
    supervoxels, objects = labels.supervoxels(view), labels.objects(view)
    assert np.array_equal(everything(supervoxels), world.voxels())
    assert np.array_equal(everything(objects), world.objects(world.voxels()))
    assert len(objects.mips) == len(graph.dataset.base.info().volume.scales) > 1
    for mip, stored in enumerate(supervoxels.mips):
        voxels = np.asarray(graph.dataset.fork.open(mip)[stored.bounds.slices].read(order="F").result())
        shown = objects.read(Box((0, 0, 0), stored.bounds.shape), stored.factor)
        assert np.array_equal(shown, world.objects(voxels))


@pytest.mark.parametrize("of_a_supervoxel", [False, True])
def test_a_preview_shows_the_sides_that_the_split_makes(graph: OpenGraph, of_a_supervoxel: bool) -> None:
    one, other = two_parts_of_an_object(graph, of_a_supervoxel=of_a_supervoxel)
    shown = everything(labels.sides_of(View(graph.graph), graph.preview_split([one], [other])))
    assert (shown[one], shown[other]) == (SOURCE, SINK)
    graph.split([one], [other])
    objects = everything(labels.objects(View(graph.graph)))
    assert set(np.unique(objects[shown == SOURCE])) == {objects[one]}
    assert set(np.unique(objects[shown == SINK])) == {objects[other]}


def test_the_past_is_shown_as_it_was(graph: OpenGraph) -> None:
    one, other = two_parts_of_an_object(graph, of_a_supervoxel=True)
    near, far = neighbours_of_two_objects(graph)
    states = [everything(labels.objects(View(graph.graph)))]
    split = graph.split([one], [other])
    states.append(everything(labels.objects(View(graph.graph))))
    merge = graph.merge([near], [far])
    states.append(everything(labels.objects(View(graph.graph))))

    assert np.array_equal(everything(labels.objects(view_at(graph.graph, split.id))), states[1])
    assert np.array_equal(everything(labels.objects(view_at(graph.graph, merge.id))), states[2])
    for number, edit, points in ((0, split, (one, other)), (1, merge, (near, far))):
        place = place_of(graph, edit.id)
        assert np.array_equal(everything(labels.objects(place.before)), states[number])
        assert np.array_equal(everything(labels.objects(place.after)), states[number + 1])
        assert (place.sources, place.sinks) == ([points[0]], [points[1]])
        assert (place.old_roots, place.new_roots) == (edit.old_roots.tolist(), edit.roots.tolist())
        assert (np.abs(np.asarray(place.centre) - points) <= 32).all()


def test_an_undo_is_shown_at_the_points_of_what_it_undoes(graph: OpenGraph) -> None:
    near, far = neighbours_of_two_objects(graph)
    undone = graph.undo(graph.merge([near], [far]).id)
    place = place_of(graph, undone.id)
    assert (place.sources, place.sinks) == ([near], [far])
    assert place.title.startswith("Operation 2: undo by ")


def test_an_operation_that_was_not_made_has_no_place(graph: OpenGraph) -> None:
    with pytest.raises(NotFoundError, match="operation 7"):
        place_of(graph, 7)
    with pytest.raises(NotFoundError, match="operation 7"):
        view_at(graph.graph, 7)
    near, far = neighbours_of_two_objects(graph)
    with pytest.raises(Exception, match="object"):
        graph.split([near], [far])
    with pytest.raises(InputError):
        place_of(graph, 1)
