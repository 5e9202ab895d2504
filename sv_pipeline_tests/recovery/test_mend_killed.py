"""A mend that is killed at any step, or beside which edits are made: a second run ends it, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.graph.hierarchy import read_parents
from sv_pipeline.graph.queries import roots
from sv_pipeline.recovery import mend
from sv_pipeline.segmentation.fork.pending import PendingEntry
from sv_pipeline.table import columns, keys, meta
from sv_pipeline.table.interface import DeleteCells, RowMutation
from sv_pipeline.testing import worlds
from sv_pipeline.testing.harness.actors import DONE, OFFSET
from sv_pipeline.testing.harness.forkserver import ForkServer
from sv_pipeline.testing.harness.recovery import RecoveryHarness
from sv_pipeline.testing.tables import EVERYTHING, Backend
from sv_pipeline.testing.volumes import drawn
from sv_pipeline.testing.worlds import World
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.compatibility.raised_edges import raise_all
from sv_pipeline_tests.compatibility.their_voxels import Theirs

KILLED = -9
ALL = slice(None)
LONE = [(4, 11, 2), (20, 11, 2), (36, 11, 2)]
"""Places of supervoxels without an edge."""
BARS = {
    1: (ALL, slice(1, 5), slice(1, 5)),
    2: (ALL, slice(5, 9), slice(1, 5)),
    3: (slice(0, 48), slice(1, 9), slice(6, 10)),
    **{4 + i: tuple(slice(c - 1, c + 2) for c in place) for i, place in enumerate(LONE)},
}
STEPS = [
    "mend found", "mend partners found", "mend edges written", "mend half the nodes", "mend half the roots",
    "mend roots written", "mend nodes have roots", "mend parents written", "mend locks released",
    "foreign edits entered",
]  # fmt: skip
Make = Callable[..., RecoveryHarness]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A graph with a split through a supervoxel, and supervoxels that touch nothing."""
    world = worlds.build(
        drawn((80, 16, 16), BARS, {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5}, voxel_offset=(8, -8, 16)),
        tmp_path_factory.mktemp("mend"),
        ocdbt_config={"populate_layer": 3, "mips": 3, "populate_method": "parts"},
    )
    edit = edits.split(world.graph, world.split_request([4, 2, 2], [60, 2, 2]), volume=world.volume)
    assert len(edit.supervoxels)
    return world


@pytest.fixture
def theirs(source: World, fork_server: ForkServer, tmp_path: Path, request: pytest.FixtureRequest) -> Make:
    """The same graph as other software leaves it, with one thing of each kind that a mend changes."""

    def make(backend: Backend = "sqlite") -> RecoveryHarness:
        if backend == "bigtable":
            request.getfixturevalue("bigtable_emulator")
        world = source.copied_to(tmp_path, backend)
        table, graph = world.table, world.graph
        ours = [k for k, _ in table.scan([EVERYTHING]) if k.startswith(b"sv_pipeline:")]
        table.mutate([RowMutation(k, [DeleteCells()]) for k in ours if not k.startswith(b"sv_pipeline:ingest")])
        voxels = world.voxels()
        world.dataset.fork.remove(force=True)
        world.dataset.fork.create()
        Theirs.of(meta.read_meta(table)).write(voxels)
        for place in LONE:
            supervoxel = np.array([voxels[place]], np.uint64)
            node = read_parents(graph, supervoxel)
            rows = keys.node_keys(np.concatenate([supervoxel, node, read_parents(graph, node)]))
            table.mutate([RowMutation(key, [DeleteCells()]) for key in rows])
        assert raise_all(world)
        lock = keys.chunk_lock_key(int(graph.layout.chunk_ids(2, [7, 0, 0])))
        table.mutate([RowMutation(lock, [columns.INDEFINITE_LOCK.set(1)])])
        return RecoveryHarness(world, fork_server, tmp_path)

    return make


def prove(world: World) -> list[PendingEntry]:
    """Everything is sound and in our form; what the ledger holds."""
    report = verify(world.graph.table, world.graph.fork)
    assert report.ok, report.summary()
    assert not any(result.foreign for result in report.results), report.summary()
    assert not mend(world.graph).found
    lone = world.voxels()[tuple(np.array(LONE).T)]
    assert len(np.unique(roots(world.graph, lone))) == len(LONE)
    return world.dataset.fork.pending()


@pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
def test_a_mend_shows_and_changes_one_thing_of_each_kind(theirs: Make, backend: Backend) -> None:
    play = theirs(backend)
    before = {k: row for k, row in play.world.table.scan([EVERYTHING]) if not k.startswith(b"sv_pipeline:")}
    shown = mend(play.world.graph)
    after = {k: row for k, row in play.world.table.scan([EVERYTHING]) if not k.startswith(b"sv_pipeline:")}
    assert before == after
    assert not play.world.dataset.fork.pending()
    assert (shown.supervoxels, shown.locks, shown.splits) == (len(LONE), (1,), (1,))
    assert shown.cross_edges
    assert "1 supervoxel splits that the ledger of coarser mips lacks" in str(shown)
    done = mend(play.world.graph, apply=True)
    assert (done.to_dict() | {"applied": False}) == shown.to_dict()
    [entry] = prove(play.world)
    assert entry.operation_id == 1


@pytest.mark.parametrize("step", STEPS)
def test_a_second_run_ends_what_a_killed_one_has_begun(theirs: Make, step: str) -> None:
    play = theirs()
    before = faults(play.world)
    assert play.do(do="mend", failpoint=f"{step}:kill") == KILLED
    assert faults(play.world) <= before
    made = len(all_roots(play.world))
    code, said = play.said(do="mend")
    assert code == DONE, said
    assert json.loads(said)["skipped"] == 0
    assert [entry.operation_id for entry in prove(play.world)] == [1]
    if step in STEPS[5:8]:
        assert len(all_roots(play.world)) == made, "the second run continues with the nodes of the first"


def faults(world: World) -> set[str]:
    """Names of the checks that find faults."""
    return {result.name for result in verify(world.graph.table, world.graph.fork).results if not result.passed}


def numbered(world: World) -> list[int]:
    """Of the supervoxels that have an edge, the number of their object, in order of their first voxels."""
    voxels = world.voxels()
    kept = ~np.isin(voxels, [0, *voxels[tuple(np.array(LONE).T)]])
    found, inverse = np.unique(voxels[kept], return_inverse=True)
    of = roots(world.graph, found)[inverse]
    _, first, inverse = np.unique(of, return_index=True, return_inverse=True)
    numbers: list[int] = np.argsort(np.argsort(first))[inverse].tolist()
    return numbers


def all_roots(world: World) -> list[bytes]:
    return [key for key, _ in world.table.scan([keys.layer_range(world.graph.n_layers)])]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["merge", "supervoxel split"])
def test_an_edit_beside_a_mend_is_not_lost(theirs: Make, step: str, kind: str) -> None:
    """The mend stops at the step, an edit changes the rows that it is about to change, and the mend goes on."""
    play = theirs()
    world = play.world
    pid = play.stop(do="mend", failpoint=f"{step}:stop")
    points = ([4, 2, 7], [4, 2, 2]) if kind == "merge" else ([4, 2, 7], [40, 2, 7])
    source, sink = ([(np.array(p) + world.offset).tolist()] for p in points)
    code, said = play.said(do=kind.split()[-1], source=source, sink=sink, offset=OFFSET)
    assert code == DONE, said
    made, objects = json.loads(said)["operation"], numbered(world)
    assert play.wake(pid) == DONE, play.word_of(pid)
    assert not faults(world)
    code, said = play.said(do="mend")
    assert code == DONE, said
    ledger = prove(world)
    assert numbered(world) == objects
    assert {entry.operation_id for entry in ledger} == ({1} if kind == "merge" else {1, made})


@pytest.mark.parametrize("step", STEPS[3:8])
def test_two_mends_at_once_are_one(theirs: Make, step: str) -> None:
    play = theirs()
    pid = play.stop(do="mend", failpoint=f"{step}:stop")
    code, said = play.said(do="mend")
    assert code == DONE, said
    assert play.wake(pid) == DONE, play.word_of(pid)
    assert [entry.operation_id for entry in prove(play.world)] == [1]
