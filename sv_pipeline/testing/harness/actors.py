"""The task of a forked process, given as JSON: one edit or one recovery of a graph that the process opens itself.

A task::

    {"graph": [home folder, graph id],
     "do": "merge" | "split" | "undo" | "redo" | "recover" | "abandon" | "heal" | "random",
     "source": [...], "sink": [...], "offset": [...], "partial": bool, "operation": ..., "user": ...,
     "failpoint": "step:action", "beat": seconds, "clock": seconds ahead, "result": file}

``failpoint`` names the step at which the process is killed, stopped or paused; see :mod:`sv_pipeline.failpoints`.
``random`` is a merge or split chosen by ``seed``; ``heal`` recovers all unfinished operations. Further actions can be
added to `ACTIONS`.

Exit codes: 0 done, 3 refused, 4 ownership lost, 5 nothing to recover, 6 stopped, 7 anything else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# These modules are imported here so that children need not load them; none of them starts a thread.
import grpc  # type: ignore[import-untyped]  # noqa: F401
import numpy as np
import tensorstore  # noqa: F401

from sv_pipeline import edits, failpoints
from sv_pipeline.edits import LockPatience, Points
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.queries import roots
from sv_pipeline.operations import ownership
from sv_pipeline.recovery import NotStuckError, RecoveryStoppedError, abandon, find_unfinished, recover
from sv_pipeline.registry import open_dataset
from sv_pipeline.table.sqlite.table import SqliteTable

DONE, REFUSED, LOST, NOTHING, STOPPED, BROKEN = 0, 3, 4, 5, 6, 7
OFFSET = (64, 64, 64)
"""Margin around the points of a request, in voxels, unless the task gives another."""
NEAR = (2, 2, 2)
"""A margin so small that the region has to grow if a path around it connects the sides."""
ACTIONS: dict[str, Callable[[ChunkedGraph, dict[str, Any]], Any]] = {}
"""Further actions by name, which modules that a fork server imports can add."""


def act(task: dict[str, Any]) -> int:
    """Run a task; return the exit code for the process."""
    logging.basicConfig(level=logging.CRITICAL)
    os.environ.pop(failpoints.VARIABLE, None)
    if task.get("failpoint"):
        os.environ[failpoints.VARIABLE] = task["failpoint"]
    os.environ.update(task.get("environment", {}))
    ownership.BEAT_SECONDS = task.get("beat", 0.05)
    if task.get("clock"):
        set_clock(task["clock"])
    stop_between_writes()
    code, said = BROKEN, ""
    try:
        said = json.dumps(_do(open_dataset(task["graph"][1], task["graph"][0]).graph, task))
        code = DONE
    except edits.EditRefused as error:
        code, said = REFUSED, str(error)
    except edits.OwnershipLostError as error:
        code, said = LOST, str(error)
    except NotStuckError as error:
        code, said = NOTHING, str(error)
    except RecoveryStoppedError as error:
        code, said = STOPPED, str(error)
    except BaseException:  # noqa: BLE001 - told to the process that asked
        said = traceback.format_exc()
    if task.get("result"):
        Path(task["result"]).write_text(said)
    return code


def stop_between_writes() -> None:
    """Ensure that nothing is being written to SQLite when the process stops: its lock of the file would block all.

    Other threads write, too: heartbeats, and changes that an edit sends at the same time.
    """
    guard, write, real = threading.RLock(), SqliteTable._write, os.kill

    def guarded(table: SqliteTable, action: Callable[[Any], Any]) -> Any:
        with guard:
            return write(table, action)

    def kill(pid: int, number: int) -> None:
        with guard if number == signal.SIGSTOP else contextlib.nullcontext():
            real(pid, number)

    SqliteTable._write = guarded  # type: ignore[method-assign,assignment]
    os.kill = kill


def set_clock(seconds: float) -> None:
    """Set the clock for timestamps of this process ahead; deadlines of gRPC use another clock."""
    real = time.time_ns
    time.time_ns = lambda: real() + int(seconds * 1e9)


def _do(graph: ChunkedGraph, task: dict[str, Any]) -> Any:
    what, patience = task["do"], LockPatience(task.get("patience", 20.0), 0.01)
    user = task.get("user", "tester")
    if what in ACTIONS:
        return ACTIONS[what](graph, task)
    if what == "recover":
        return recover(graph, task["operation"], token=task.get("token")).to_dict()
    if what == "abandon":
        return abandon(graph, task["operation"], user=user, reason="it fails for ever").to_dict()
    if what == "heal":
        return heal(graph)
    if what in ("undo", "redo"):
        revert = edits.undo if what == "undo" else edits.redo
        edit = revert(graph, task["operation"], user, patience=patience)
        return {"operation": edit.operation_id, "time": edit.logical_time}
    volume = graph.fork.open()
    if what == "random":
        what, task = at_random(graph, volume, task)
    sides = Points.of(coordinates=task["source"]), Points.of(coordinates=task["sink"])
    offset, partial = tuple(task.get("offset", OFFSET)), task.get("partial", False)
    if what == "merge":
        edit = edits.merge(graph, edits.MergeRequest(user, *sides, offset), volume=volume, patience=patience)
    else:
        request = edits.SplitRequest(user, *sides, offset, disallow_isolating_cut=False, allow_partial=partial)
        edit = edits.split(graph, request, volume=volume, patience=patience)
    return {"operation": edit.operation_id, "time": edit.logical_time}


def at_random(graph: ChunkedGraph, volume: Any, task: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Choose, by the seed, a merge or split between two voxels that are not far from each other."""
    rng = np.random.default_rng(task["seed"])
    start, stop = (np.asarray(corner) for corner in (volume.domain.inclusive_min, volume.domain.exclusive_max))
    while True:
        source = rng.integers(start, stop)
        sink = np.clip(source + rng.integers(-12, 13, 3), start, stop - 1)
        found = [int(volume[tuple(p)].read().result()) for p in (source, sink)]
        if 0 in found or (source == sink).all():
            continue
        one, other = roots(graph, np.array(found, np.uint64), missing_ok=True).tolist()
        kind = "split" if one == other else "merge"
        offset = NEAR if kind == "split" and rng.random() < 0.5 else OFFSET
        partial = bool(offset == NEAR and rng.random() < 0.3)
        sides = {"source": [source.tolist()], "sink": [sink.tolist()]}
        return kind, {**task, **sides, "offset": offset, "partial": partial}


def heal(graph: ChunkedGraph) -> list[dict[str, Any]]:
    """Recover all unfinished operations, as a tick of the sensor and its runs do."""
    done = []
    for one in find_unfinished(graph):
        try:
            done.append(recover(graph, one.operation_id).to_dict())
        except (NotStuckError, edits.EditRefused, edits.OwnershipLostError) as error:
            done.append({"operation": one.operation_id, "outcome": "left alone", "reason": str(error)})
    return done
