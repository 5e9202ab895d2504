"""Further tasks of forked processes: clean up, hold pinned reads, edit until told to stop."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from sv_pipeline import edits
from sv_pipeline.edits import LockPatience, Points
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.registry import Registry, open_dataset
from sv_pipeline.retention import Retention
from sv_pipeline.testing.harness.actors import ACTIONS, at_random
from sv_pipeline.upkeep.backup import back_up
from sv_pipeline.upkeep.garbage import clean_up
from sv_pipeline.upkeep.reconciling import reconcile
from sv_pipeline.upkeep.restore import restore
from sv_pipeline.upkeep.retirement import retire


def clean(_: ChunkedGraph, task: dict[str, Any]) -> dict[str, Any]:
    """Prune and collect, once."""
    dataset = open_dataset(task["graph"][1], task["graph"][0])
    policy, grace = Retention(generations=task["generations"]), timedelta(seconds=task["grace"])
    return clean_up(dataset, policy=policy, grace=grace).to_dict()


def read_pinned(graph: ChunkedGraph, task: dict[str, Any]) -> int:
    """Pin the latest generation for a while, again and again; each read of it has to give the same voxels.

    A read that ends after the grace period may fail, because the policy does not keep its generation any more.
    """
    rounds, stop = 0, Path(task["stop"])
    while not stop.exists():
        began, generation = time.monotonic(), graph.fork.generation()
        try:
            first = _voxels(graph, generation)
            while time.monotonic() - began < task["hold"] and not stop.exists():
                time.sleep(0.05)
                np.testing.assert_array_equal(_voxels(graph, generation), first)
        except Exception:
            if time.monotonic() - began < task["grace"]:
                raise
        rounds += 1
    return rounds


def _voxels(graph: ChunkedGraph, generation: int) -> Any:
    return graph.fork.open(version=generation).read().result()


def edit_on(graph: ChunkedGraph, task: dict[str, Any]) -> int:
    """Make random edits until the file ``stop`` exists; return the number of those that were made."""
    made, seed, stop = 0, task["seed"], Path(task["stop"])
    volume, patience = graph.fork.open(), LockPatience(1.0, 0.01)
    while not stop.exists():
        seed += 1
        what, one = at_random(graph, volume, {**task, "seed": seed})
        sides = Points.of(coordinates=one["source"]), Points.of(coordinates=one["sink"])
        try:
            if what == "merge":
                edits.merge(
                    graph, edits.MergeRequest("tester", *sides, one["offset"]), volume=volume, patience=patience
                )
            else:
                request = edits.SplitRequest("tester", *sides, one["offset"], disallow_isolating_cut=False)
                edits.split(graph, request, volume=volume, patience=patience)
            made += 1
        except edits.EditRefused:
            pass
    return made


def retire_graph(_: ChunkedGraph, task: dict[str, Any]) -> dict[str, Any]:
    """Retire the graph ``target``; the graph of the task is another one."""
    home, graph_id = task["target"]
    return retire(Registry(home), graph_id).to_dict()


def make_backup(_: ChunkedGraph, task: dict[str, Any]) -> dict[str, Any]:
    """Back the graph of the task up."""
    return asdict(back_up(open_dataset(task["graph"][1], task["graph"][0]), task["place"]))


def restore_graph(_: ChunkedGraph, task: dict[str, Any]) -> str:
    """Restore a backup as the graph ``target``, with the backend of the graph of the task."""
    home, graph_id = task["target"]
    return restore(Registry(home), task["place"], graph_id, moment=task.get("moment")).graph_id


def reconcile_graph(_: ChunkedGraph, task: dict[str, Any]) -> dict[str, Any]:
    """Roll the newer of table and fork back."""
    return reconcile(open_dataset(task["graph"][1], task["graph"][0]), apply=True).to_dict()


ACTIONS.update(
    {
        "back up": make_backup,
        "restore": restore_graph,
        "reconcile": reconcile_graph,
        "retire": retire_graph,
        "clean up": clean,
        "read pinned": read_pinned,
        "edit on": edit_on,
    }
)
