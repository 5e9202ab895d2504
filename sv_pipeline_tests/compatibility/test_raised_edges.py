"""Edits where cross edges lead to the parents of the partners: they are as sound as without, and so are the objects."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import CommittedEdit, EditRefused
from sv_pipeline.recovery import mend
from sv_pipeline.testing import worlds
from sv_pipeline.testing.volumes import cells, drawn
from sv_pipeline.testing.worlds import USER, World
from sv_pipeline_tests.compatibility.raised_edges import Rows, raise_all

ALL = slice(None)
BARS = {
    1: (ALL, slice(1, 5), slice(1, 5)),
    2: (ALL, slice(5, 9), slice(1, 5)),
    3: (slice(0, 48), slice(1, 9), slice(6, 10)),
}
every_form = pytest.mark.parametrize("of", get_args(Rows))


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two objects of six layers that lie side by side through many chunks."""
    volume = drawn((80, 16, 16), BARS, {1: 1, 2: 1, 3: 2}, voxel_offset=(8, -8, 16))
    return worlds.build(volume, tmp_path_factory.mktemp("bars"))


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Objects that branch, touch, and have several pieces in a chunk."""
    return worlds.build(cells((80, 32, 16), 60, seed=1), tmp_path_factory.mktemp("tissue"))


def check(world: World) -> None:
    """The graph is sound; cross edges in the other form are no fault."""
    report = world.report()
    assert report.ok, report.summary()


@every_form
@pytest.mark.parametrize("again", [False, True], ids=["raised once", "raised before each edit"])
def test_merge_split_and_undo(bars: World, of: Rows, again: bool) -> None:
    with bars.copied() as world:
        graph, volume = world.graph, world.volume
        made: list[CommittedEdit] = []

        def raise_edges() -> None:
            if again or not made:
                assert raise_all(world, of) or made
                check(world)

        raise_edges()
        made.append(edits.merge(graph, world.merge_request([4, 2, 7], [4, 2, 2]), volume=volume))
        check(world)
        raise_edges()
        made.append(edits.split(graph, world.split_request([4, 2, 2], [60, 2, 2]), volume=volume))
        check(world)
        for edit in reversed(made):
            raise_edges()
            edits.undo(graph, edit.operation_id, USER)
            check(world)
        mend(graph, apply=True)
        check(world)
        assert not mend(graph).found


@every_form
@pytest.mark.parametrize("seed", range(2))
def test_edits_at_random_are_those_of_a_graph_without_such_edges(tissue: World, of: Rows, seed: int) -> None:
    """The same edits are made in a twin whose cross edges lead to the partners: the same objects, the same refusals."""
    with tissue.copied() as world, tissue.copied() as twin:
        random = np.random.default_rng(seed)
        done: tuple[list[CommittedEdit], list[CommittedEdit]] = ([], [])
        places = np.argwhere(world.voxels())
        for step in range(8):
            if not step % 3:
                raise_all(world, of)
            points, which = places[random.integers(len(places), size=2)].tolist(), int(random.integers(8))
            kind = str(random.choice(["merge", "merge", "split", "undo"]))
            said = [act(one, kind, points, made, which) for one, made in zip((world, twin), done, strict=True)]
            assert said[0] == said[1], (kind, points)
            check(world)
            objects = [one.objects(one.voxels()).ravel() for one in (world, twin)]
            pairs = len(np.unique(np.stack(objects), axis=1).T)
            assert pairs == len(np.unique(objects[0])) == len(np.unique(objects[1])), (kind, points)
        assert done[0]


def act(world: World, kind: str, points: list[list[int]], made: list[CommittedEdit], which: int) -> str:
    """Make an edit; "" or the reason of a refusal."""
    graph, volume, (source, sink) = world.graph, world.volume, points
    try:
        if kind == "merge":
            made.append(edits.merge(graph, world.merge_request(source, sink), volume=volume))
        elif kind == "split":
            made.append(edits.split(graph, world.split_request(source, sink), volume=volume))
        elif made:
            edits.undo(graph, made[which % len(made)].operation_id, USER)
    except EditRefused as refusal:
        return str(refusal.reason)
    return ""
