"""A split that may leave one object, killed at any step, is healed as one, or leaves nothing that calls it so."""

from __future__ import annotations

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.operations import ownership
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.operations.writing import read_still_one_object
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.recovery import abandon, find_unfinished
from sv_pipeline.table import counters
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.harness.actors import DONE
from sv_pipeline.testing.harness.forkserver import ForkServer
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.editable import RING_POINTS, ring_graph
from sv_pipeline_tests.recovery.test_crash_matrix import AFTER, KILLED, OF_VOXELS


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> OpenGraph:
    """A ring whose first region does not reach around it; every test leaves it as it was."""
    folder = tmp_path_factory.mktemp("ring")
    return ring_graph(folder, folder / "home")


def killed(ring: OpenGraph, fork_server: ForkServer, step: str) -> int:
    """The number of a partial split that was killed at a step; 0 if it had none yet."""
    table = ring.dataset.table
    assert isinstance(table, SqliteTable)
    before = counters.last_operation_id(table)
    source, sink = RING_POINTS
    points = {"source": [list(source)], "sink": [list(sink)], "offset": (1, 1, 1), "partial": True}
    place = [ring.dataset.home, ring.dataset.graph_id]
    assert fork_server.do(do="split", graph=place, failpoint=f"{step}:kill", patience=0.1, **points) == KILLED
    return counters.last_operation_id(table) if counters.last_operation_id(table) > before else 0


def is_sound(ring: OpenGraph) -> bool:
    return verify_dataset(ring.dataset).ok and not find_unfinished(ring.dataset.graph)


@pytest.mark.parametrize("step", [step for step in AFTER if step not in OF_VOXELS])
def test_it_is_healed_as_a_partial_split(ring: OpenGraph, fork_server: ForkServer, step: str) -> None:
    table, graph = ring.dataset.table, ring.dataset.graph
    assert isinstance(table, SqliteTable)
    number = killed(ring, fork_server, step)
    assert fork_server.do(do="heal", graph=[ring.dataset.home, ring.dataset.graph_id]) == DONE
    assert is_sound(ring)
    assert read_operations(graph, [number])[0].status is OperationStatus.SUCCESS
    assert read_still_one_object(table, [number]) == {number}
    assert len(np.unique(ring.roots(RING_POINTS))) == 1
    edits.undo(graph, number, "tester")
    assert is_sound(ring)


@pytest.mark.parametrize("step", ["write started", "half switched", "half switched 1"])
def test_one_that_is_abandoned_is_not_called_one_object(
    ring: OpenGraph, fork_server: ForkServer, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)
    number = killed(ring, fork_server, step)
    assert read_still_one_object(ring.dataset.table, [number]) == {number}
    abandon(ring.dataset.graph, number, user="emma", reason="it is not wanted")
    assert not read_still_one_object(ring.dataset.table, [number])
    assert is_sound(ring)
