"""What a reader can see of a graph, as one value: two of them are equal where nothing has changed for readers."""

from __future__ import annotations

from typing import Any

import numpy as np

from sv_pipeline.edits import EditRefused, SettledGraph, settled
from sv_pipeline.graph import queries
from sv_pipeline.graph.lineage import latest_roots
from sv_pipeline.grid import Box
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.reports.cut_scenes import scene_of_points
from sv_pipeline_tests.recovery.conftest import Theatre


def opened(play: Theatre) -> OpenGraph:
    """The graph of a scene, as a user opens it."""
    return play.scene.world.open()


def seen(graph: OpenGraph, task: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    """All that readers see, around the points of a task and of all voxels; of roots that were known once."""
    found: dict[str, Any] = settled(graph.dataset.graph, _whole)
    points = np.concatenate([task.get("source", np.zeros((0, 3))), task.get("sink", np.zeros((0, 3)))])
    rng = np.random.default_rng(1)
    bounds = graph.dataset.graph.grid.bounds
    some = rng.integers(bounds.start, bounds.stop, (40, 3))
    some = some[graph.supervoxels(some) > 0]
    points = np.concatenate([points, some]).astype(np.int64)
    found["roots of points"] = graph.roots(points).tolist()
    found["leaves of points"] = [leaves.tolist() for leaves in graph.leaves(points)]
    found["lineage"] = graph.lineage(ids).edges.tolist()
    if "source" in task:
        table = graph.look_up(task["source"], task["sink"])
        found["looked up"] = table.to_dict("list")
        scene = scene_of_points(graph.dataset, *(np.asarray(task[side], np.int64) for side in ("source", "sink")))
        found["picture"] = scene.before.kinds.tobytes(), scene.before.labels.tobytes()
        try:
            found["preview"] = graph.preview_split(task["source"], task["sink"]).numbers
        except EditRefused as refusal:
            found["preview"] = str(refusal.reason)
    return found


def _whole(graph: SettledGraph) -> dict[str, Any]:
    bounds = graph.grid.bounds
    _, voxels = graph.read_voxels(Box.of(bounds.start, bounds.stop))
    supervoxels = np.unique(voxels[voxels > 0])
    roots = queries.roots(graph, supervoxels)
    distinct = np.unique(roots)
    leaves = queries.leaves(graph, distinct)
    # Sound by itself, whatever moment it is.
    owners = np.repeat(distinct, leaves.lengths)
    order = np.argsort(leaves.values)
    assert leaves.values[order].tolist() == supervoxels.tolist()
    assert owners[order].tolist() == roots.tolist()
    assert latest_roots(graph, distinct).tolist() == distinct.tolist()
    return {"voxels": voxels.tobytes(), "roots": roots.tolist()}
