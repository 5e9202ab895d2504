"""The proof at the end of a recovery finds around an operation what `verify` finds in all of the graph, and no more."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from sv_pipeline.errors import CorruptionError
from sv_pipeline.operations import ownership
from sv_pipeline.operations.log import read_operations
from sv_pipeline.operations.ownership import open_key
from sv_pipeline.operations.unfinished import read_unfinished
from sv_pipeline.recovery import list_stuck, recover
from sv_pipeline.recovery.dry_run import dry_run
from sv_pipeline.recovery.orphans import EVERYTHING
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import Cell, DeleteCells, RowMutation, SetCell
from sv_pipeline.verify import postcheck
from sv_pipeline.verify.neighbourhood import verify_around
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.stage import KINDS
from sv_pipeline_tests.recovery.test_crash_matrix import DONE, KILLED, newest

HALF = ("new rows written", "voxels written", "half switched", "half switched 2", "switch written", "succeeded")


def is_sound(play: Theatre) -> bool:
    """Whether all rows and voxels are sound; locks and the log aside."""
    graph = play.scene.graph
    report = verify(graph.table, graph.fork)
    return not {*report.failed} - {"operations"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sound_is_proven_from_any_chunk(theatre: Callable[[str], Theatre], kind: str) -> None:
    play = theatre("sqlite")
    assert play.do(**play.request(kind)) == DONE
    graph = play.scene.graph
    assert "not proven" not in postcheck.prove_ended(graph, newest(play))
    for coordinate in graph.grid.coordinates(2)[::5]:
        report = verify_around(graph.table, graph.fork, [coordinate])
        assert report.ok, report.summary()
        assert report["edges"].checked


@pytest.mark.parametrize("step", HALF)
@pytest.mark.parametrize("kind", ["merge", "split", "supervoxel split", "undo of a merge"])
def test_what_an_edit_left_half_done_is_not_proven(
    theatre: Callable[[str], Theatre], monkeypatch: pytest.MonkeyPatch, kind: str, step: str
) -> None:
    if step == "voxels written" and "supervoxel" not in kind:
        pytest.skip("it writes no voxels")
    play = theatre("sqlite")
    assert play.do(**play.request(kind), failpoint=f"{step}:kill") == KILLED
    graph, operation = play.scene.graph, newest(play)
    found = read_unfinished(graph, operation)
    # As a recovery would leave it that frees the locks of what it has not healed.
    lock_columns = [columns.LOCK.key, columns.INDEFINITE_LOCK.key]
    held = [key for key, _ in play.scene.table.scan([EVERYTHING], lock_columns)]
    play.scene.table.mutate([RowMutation(key, [DeleteCells(one) for one in lock_columns]) for key in held])
    play.scene.table.mutate([RowMutation(keys.node_key(operation), [DeleteCells(columns.CHUNK_LOCK_SCOPE.key)])])
    play.scene.table.mutate([RowMutation(open_key(operation), [DeleteCells()])])
    monkeypatch.setattr(postcheck, "SECONDS_BETWEEN_LOOKS", 0.0)
    for known in (found, None):
        expected = contextlib.nullcontext() if is_sound(play) else pytest.raises(CorruptionError, match="not sound")
        with expected:
            postcheck.prove_ended(graph, operation, known)


def test_what_is_not_proven_stays_in_the_list_until_it_is(
    theatre: Callable[[str], Theatre], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(postcheck, "SECONDS_BETWEEN_LOOKS", 0.0)
    play = theatre("sqlite")
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    graph, operation = play.scene.graph, newest(play)
    chunk = play.scene.graph.layout.chunk_ids(
        2, postcheck.chunks_around(graph, read_operations(graph, [operation])[0])[:1]
    )
    victims = [k for k, _ in graph.table.scan(keys.chunk_ranges(graph.layout, chunk), [columns.CHILDREN.key])]
    spoiled: dict[bytes, list[Cell]] = {}

    def spoil(stage: str, _what: dict[str, Any]) -> None:
        """Somebody loses a cell of another object of the chunk while the edit is made again."""
        if stage == "make again":
            for key in victims:
                row = graph.table.read_rows([key], [columns.CHILDREN.key]).get(key, {})
                spoiled[key] = row.get(columns.CHILDREN.key, [])
            graph.table.mutate([RowMutation(key, [DeleteCells(columns.CHILDREN.key)]) for key in victims])

    with pytest.raises(CorruptionError, match="has ended, but the graph around it is not sound"):
        recover(graph, operation, tell=spoil)
    (listed,) = list_stuck(graph)
    assert listed.outlook == "prove"
    assert "not sound" in listed.progress.error
    assert "prove" in dry_run(graph, operation).to_dict()["would"]
    with pytest.raises(CorruptionError, match="not sound"):
        recover(graph, operation)
    graph.table.mutate(
        [
            RowMutation(key, [SetCell(columns.CHILDREN.key, cell.value, cell.timestamp) for cell in cells])
            for key, cells in spoiled.items()
            if cells
        ]
    )
    assert recover(graph, operation).replay.outcome == "proven"
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")
