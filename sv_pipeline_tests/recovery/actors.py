"""What a forked process does: one edit, or one recovery, of a graph that it opens itself; told as JSON.

A task::

    {"table": ["sqlite", name, folder] | ["bigtable", name],
     "do": "merge" | "split" | "undo" | "redo" | "recover" | "abandon" | "heal" | "random" | "job",
     "source": [...], "sink": [...], "offset": [...], "partial": bool, "operation": ..., "user": ...,
     "theirs": {"die" or "fail": step of `their_worker`, "scope": bool, "seed": ...}: as PyChunkedGraph does it,
     "quiet": seconds for which a worker of theirs may show no sign of life,
     "failpoint": "step:action", "beat": seconds, "clock": seconds ahead, "result": file}

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
from pathlib import Path
from typing import Any

# All that children need, so that they need not load it: none of it starts a thread.
import grpc  # noqa: F401
import numpy as np
import tensorstore  # noqa: F401

from sv_pipeline import edits, failpoints
from sv_pipeline.edits import LockPatience, Points
from sv_pipeline.graph.chunked_graph import ChunkedGraph, open_chunked_graph
from sv_pipeline.graph.queries import roots
from sv_pipeline.operations import other_software, ownership
from sv_pipeline.recovery import NotStuckError, RecoveryStoppedError, abandon, claiming, find_unfinished, recover
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.interface import Table
from sv_pipeline.table.sqlite.table import SqliteTable

DONE, REFUSED, LOST, NOTHING, STOPPED, BROKEN = 0, 3, 4, 5, 6, 7
OFFSET = (64, 64, 64)
NEAR = (2, 2, 2)
"""A region that has to grow where an object goes around it."""


def open_named(place: list[str]) -> Table:
    """The table of a task."""
    if place[0] == "sqlite":
        return SqliteTable(place[1], Path(place[2]))
    return BigtableTable(place[1], "project", "instance", patience=60.0)


class Ended(BaseException):
    """An edit that a worker of other software has brought to its end."""


def act(task: dict[str, Any]) -> int:
    """Do it; the exit code."""
    logging.basicConfig(level=logging.CRITICAL)
    os.environ.pop(failpoints.VARIABLE, None)
    if task.get("failpoint"):
        os.environ[failpoints.VARIABLE] = task["failpoint"]
    os.environ.update(task.get("environment", {}))
    ownership.BEAT_SECONDS = task.get("beat", 0.05)
    if task.get("clock"):
        set_clock(task["clock"])
    stop_between_writes()
    if "quiet" in task:
        claiming.quiet_seconds = other_software.quiet_seconds = lambda _graph: task["quiet"]
    if task.get("theirs"):
        write_as_they_do(task["theirs"])
    code, said = BROKEN, ""
    try:
        said = json.dumps(_do(open_chunked_graph(open_named(task["table"])), task))
        code = DONE
    except Ended as end:
        code, said = DONE, json.dumps({"operation": end.args[0]})
    except edits.EditRefused as error:
        code, said = REFUSED, str(error)
    except edits.OwnershipLostError as error:
        code, said = LOST, str(error)
    except NotStuckError as error:
        code, said = NOTHING, str(error)
    except RecoveryStoppedError as error:
        code, said = STOPPED, str(error)
    except BaseException:  # noqa: BLE001 - told to whoever asked
        said = traceback.format_exc()
    if task.get("result"):
        Path(task["result"]).write_text(said)
    return code


def write_as_they_do(task: dict[str, Any]) -> None:
    """From now on edits of this process are planned by us, and written as a worker of PyChunkedGraph writes them."""
    from sv_pipeline.edits import session
    from sv_pipeline_tests.recovery import their_worker

    session.commit = their_worker.commit(task)  # type: ignore[assignment]


def stop_between_writes() -> None:
    """A process that stops while it holds the lock of the SQLite file keeps everybody out: no beat while it stops."""
    guard, beat, real = threading.Lock(), ownership.Ownership._beat, os.kill

    def guarded(own: ownership.Ownership) -> None:
        with guard:
            beat(own)

    def kill(pid: int, number: int) -> None:
        with guard if number == signal.SIGSTOP else contextlib.nullcontext():
            real(pid, number)

    ownership.Ownership._beat = guarded  # type: ignore[method-assign]
    os.kill = kill


def set_clock(seconds: float) -> None:
    """From now on all that this process writes is of a clock that is ahead; gRPC's deadlines are of the other one."""
    real = time.time_ns
    time.time_ns = lambda: real() + int(seconds * 1e9)


def _do(graph: ChunkedGraph, task: dict[str, Any]) -> Any:
    what, patience = task["do"], LockPatience(task.get("patience", 20.0), 0.01)
    user = task.get("user", "tester")
    if what == "job":
        return run_job(task)
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


def run_job(task: dict[str, Any]) -> str:
    """Run recover_operation_job in this process, as the worker of a run does; the status of the run."""
    import dagster as dg

    from sv_pipeline.defs.recovery import recover_operation_job
    from sv_pipeline.defs.resources import PipelineResource

    config = {"graph_id": task["graph"], "operation_id": task["operation"]}
    resources = {"pipeline": PipelineResource(home=task["home"])}
    with dg.DagsterInstance.ephemeral() as instance:
        run = recover_operation_job.execute_in_process(
            run_config=config, instance=instance, resources=resources, raise_on_error=False
        )
        return str(run.dagster_run.status.value)


def at_random(graph: ChunkedGraph, volume: Any, task: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A merge or a split between two voxels that are not far from each other; the seed says which."""
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
    """Recover all that is unfinished, as a tick of the sensor and its runs do."""
    done = []
    for one in find_unfinished(graph):
        try:
            done.append(recover(graph, one.operation_id).to_dict())
        except (NotStuckError, edits.EditRefused, edits.OwnershipLostError) as error:
            done.append({"operation": one.operation_id, "outcome": "left alone", "reason": str(error)})
    return done
