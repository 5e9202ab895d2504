"""Kills at random moments, while three workers edit and somebody recovers beside them; and somebody kills that, too."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import pytest

from sv_pipeline.edits.as_of import segmentation_at
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.queries import roots, supervoxels_at
from sv_pipeline.grid import Box
from sv_pipeline.operations.log import Operation, OperationStatus, read_operations
from sv_pipeline.operations.writing import read_still_one_object
from sv_pipeline.recovery import find_unfinished
from sv_pipeline.recovery.replay import request_of
from sv_pipeline.table import columns, meta
from sv_pipeline.testing.harness.actors import BROKEN, DONE, OFFSET, REFUSED
from sv_pipeline_tests.recovery.conftest import Theatre

KILLS = int(os.environ.get("SV_PIPELINE_SOAK_KILLS", "150" if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else "25"))
"""In each backend."""
LOG = logging.getLogger(__name__)
WORKERS, SEED, KILLED = 3, 20, -9


@dataclass
class Soak:
    """Who is at work, and what has happened."""

    play: Theatre
    rng: np.random.Generator
    seed: int = 0
    workers: dict[int, float | None] = field(default_factory=dict)
    """Process, and when it is killed."""
    healer: tuple[int, float | None] | None = None
    ends: Counter[int] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    healed: Counter[str] = field(default_factory=Counter)

    def step(self) -> None:
        while len(self.workers) < WORKERS:
            self.seed += 1
            # Half of them at any moment, half while they write, which does not take long.
            writing = f"scope:kill:{self.rng.uniform(0, 0.2):.3f}" if self.rng.random() < 0.5 else ""
            pid = self.play.start(do="random", seed=self.seed, patience=1.0, beat=0.2, failpoint=writing)
            self.workers[pid] = None if writing else self._moment(0.8, of=1.2)
        if self.healer is None:
            said = self.play.folder / "healed"
            if said.exists():
                self._note(said.read_text())
                said.unlink()
            self.healer = self.play.start(do="heal", beat=0.2, result=str(said)), self._moment(0.2, of=2.0)
        for pid, moment in list(self.workers.items()):
            if self._ended(pid, moment, "worker"):
                del self.workers[pid]
        if self._ended(*self.healer, "recovery"):
            self.healer = None

    def _note(self, said: str) -> None:
        try:
            reports = json.loads(said)
        except ValueError:
            LOG.warning("a recovery failed: %s", said[-600:])
            reports = [{"outcome": "failed"}]
        self.healed += Counter(f"{one.get('found', '')} {one['outcome']}" for one in reports)

    def _moment(self, share: float, of: float) -> float | None:
        return time.monotonic() + self.rng.uniform(0, of) if self.rng.random() < share else None

    def _ended(self, pid: int, moment: float | None, who: str) -> bool:
        code = self.play.fork_server.poll(pid)
        if code is None and moment is not None and time.monotonic() >= moment:
            os.kill(pid, signal.SIGKILL)
            code = self.play.fork_server.wait(pid)
            self.kills[who] += code == KILLED
        if code is None:
            return False
        if who == "worker":
            self.ends[code] += 1
            self.kills[who] += code == KILLED and moment is None
        assert code != BROKEN or who == "recovery", f"seed {self.seed}"
        return True


def expire_soon(play: Theatre) -> None:
    """Who is killed while it plans keeps its objects locked until the lock expires: not for minutes, here."""
    known = play.scene.graph.meta
    config = known.graph_config._replace(ROOT_LOCK_EXPIRY=timedelta(seconds=4))
    meta.write_meta(play.scene.table, dataclasses.replace(known, graph_config=config), overwrite=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
def test_nothing_is_lost_by_kills_at_random_moments(theatre: Callable[..., Theatre], backend: str) -> None:
    play = theatre(backend)
    expire_soon(play)
    first = max(one.operation_id for one in read_operations(play.scene.graph))
    soak = Soak(play, np.random.default_rng(SEED))
    while soak.kills.total() < KILLS:
        soak.step()
        time.sleep(0.005)
    for pid in soak.workers:
        play.fork_server.wait(pid)
    if soak.healer is not None:
        play.fork_server.wait(soak.healer[0], 300)  # it has all that is stuck to recover
    deadline = time.monotonic() + 300
    while find_unfinished(play.scene.graph) and time.monotonic() < deadline:
        assert play.fork_server.wait(play.start(do="heal"), 300) == DONE
    play.scene.prove()
    log = [one for one in read_operations(play.scene.graph) if one.operation_id > first]
    ended = Counter(one.status.name for one in log if one.status is not None)
    assert set(ended) <= {"SUCCESS", "EXCEPTION"}
    assert ended["SUCCESS"] >= soak.ends[DONE], "what was reported as done is done"
    why = Counter(_why(one) for one in log)
    LOG.warning("%s: %s; workers %s; healed %s; log %s", backend, *map(dict, (soak.kills, soak.ends, soak.healed, why)))
    assert soak.ends[REFUSED] < len(log)

    done = sorted((one for one in log if one.status is OperationStatus.SUCCESS), key=_logical_time)
    assert_parted(play.scene.graph, [one for one in done if one.kind == "split"])
    twin = play.stage.copy()
    try:
        still = read_still_one_object(play.scene.graph.table, [one.operation_id for one in done])
        for one in done:
            task = _task(one, partial=one.operation_id in still)
            assert play.do(graph=[twin.world.dataset.home, twin.world.dataset.graph_id], **task) == 0
        twin.prove()
        assert twin.objects() == play.scene.objects()
    finally:
        twin.remove()


def assert_parted(graph: ChunkedGraph, splits: list[Operation]) -> None:
    """Just after a split no source shares a root with a sink, unless it says so."""
    still = read_still_one_object(graph.table, [one.operation_id for one in splits])
    LOG.warning("%d splits, %d of which have left one object and say so", len(splits), len(still))
    for one in splits:
        points = [columns.SOURCE_COORDINATES.newest(one.row), columns.SINK_COORDINATES.newest(one.row)]
        where = np.concatenate([side for side in points if side is not None]).astype(np.int64)
        around = Box.of(where.min(axis=0), where.max(axis=0) + 1)
        then = segmentation_at(graph, one.operation_id, within=around)
        source, sink = roots(graph, supervoxels_at(graph, then, where), at=one.timestamp).tolist()
        assert (source == sink) is (one.operation_id in still), one


def _logical_time(one: Operation) -> float:
    assert one.timestamp is not None
    return one.timestamp.timestamp()


def _task(one: Operation, *, partial: bool) -> dict[str, object]:
    stored = columns.BOUNDING_BOX_OFFSET.newest(one.row)
    request = request_of(one, {"offset": OFFSET})
    assert request.sources.coordinates is not None
    assert request.sinks.coordinates is not None
    return {
        "do": one.kind,
        "source": request.sources.coordinates.tolist(),
        "sink": request.sinks.coordinates.tolist(),
        "offset": OFFSET if stored is None else stored.ravel().tolist(),
        "partial": partial,
    }


def _why(one: Operation) -> str:
    return ":".join((one.exception or "done").split(":")[:2])
