"""The content of a picture of an edit: voxels around its points, before and after. Reads the fork and the graph.

Both states are read from the history, the voxels at a generation and the roots at a timestamp, so that a picture of an
operation can be made at any later time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import fastremap
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.multicut.cut import Preview
from sv_pipeline.edits import SettledGraph, SplitPreview, settled
from sv_pipeline.edits.made import read_edit
from sv_pipeline.errors import InputError
from sv_pipeline.graph import queries
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import Operation, asked_for
from sv_pipeline.operations.writing import read_supervoxels
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.cut_pictures import CutScene, Kind, Kinds, Objects, SceneState, kinds_by_object, with_sides
from sv_pipeline.table import columns

__all__ = ["scene_of_merge", "scene_of_operation", "scene_of_points", "scene_of_preview"]

IntArray = npt.NDArray[np.int64]

MAX_VOXELS = 200**3
"""Maximum number of voxels of a scene; all its arrays together need less than 300 MB."""
MIN_VOXELS = 110
"""Minimum size of a scene along the finest axis, in voxels; smaller scenes would show no surroundings."""
MIN_SLICES = 14
"""Minimum size of a scene along the coarsest axis, in voxels."""
NAMED_ROOTS = 3


def scene_of_operation(dataset: Dataset, operation_id: int) -> CutScene:
    """Return the scene before and after an operation that was made.

    Raises
    ------
    NotFoundError
        If there is no such operation, or the fork does not keep the generations of its time any more.
    InputError
        If there is nothing to show, because the operation was not made or names no voxels.
    """
    edit = read_edit(dataset.graph, operation_id)
    sources, sinks = _points_of(asked_for(dataset.graph, operation_id))
    box = _box_around(dataset, np.concatenate([sources, sinks]), [edit.edges])

    def state(name: str, moment: int, touched: UInt64Array) -> SceneState:
        generation = dataset.fork.generation_at(moment, within=box)
        return settled(
            dataset.graph, lambda graph: _Moment(graph, generation, moment).state(name, box, sources, sinks, touched)
        )

    time = edit.logical_time
    before, after = state("before", time - 1, edit.old_roots), state("after", time, edit.roots)
    links = read_supervoxels(dataset.graph.table, operation_id)
    if len(links) and not (after.kinds == Kind.SOURCE).any():
        # Both sides are still one object, connected elsewhere; the links of the new supervoxels hold their side.
        for side, kind in ((1, Kind.SOURCE), (2, Kind.SINK)):
            after.kinds[np.isin(after.labels, links[links[:, 2] == side, 1])] = kind
    return CutScene(
        title=f"{dataset.graph_id}: {edit.kind} by {edit.user}, operation {operation_id}",
        subtitle=f"{_named(edit.old_roots)} → {_named(edit.roots)}",
        box=box,
        resolution=dataset.volume.scales[0].resolution,
        before=before,
        after=after,
        sources=sources,
        sinks=sinks,
    )


def scene_of_preview(dataset: Dataset, preview: SplitPreview, sources: IntArray, sinks: IntArray) -> CutScene:
    """Return the scene before and after a split that was previewed."""
    outcome, doubt = preview.outcome, preview.doubt
    removed = [outcome.cut.removed_edges] if isinstance(outcome, Preview) else []
    box = _box_around(dataset, np.concatenate([sources, sinks]), removed)

    def question(graph: SettledGraph) -> tuple[SceneState, UInt64Array, Kinds]:
        before, roots = _now(graph, box, sources, sinks)
        return before, roots, _sides_shown(graph, preview, before)

    before, roots, kinds = settled(dataset.graph, question)
    if preview.supervoxels is not None:
        voxels = preview.supervoxels.cut
        kinds = with_sides(kinds, box, voxels.box, voxels.sides)
    says = "nothing is written" if preview.refusal is None else f"would be refused: {preview.refusal.reason}"
    if preview.still_one_object:
        says = f"still one object; {says}"
    if doubt is not None:
        says = f"{doubt.summary}; {says}"
    return CutScene(
        title=f"{dataset.graph_id}: preview of a split",
        subtitle=f"{_named(np.unique(roots))}; {says}",
        box=box,
        resolution=dataset.volume.scales[0].resolution,
        before=before,
        after=SceneState("after the split", kinds, before.labels, before.objects),
        sources=sources,
        sinks=sinks,
        deciding=np.array([] if doubt is None or doubt.place is None else doubt.place, np.int64).reshape(-1, 3),
    )


def _sides_shown(graph: SettledGraph, preview: SplitPreview, before: SceneState) -> Kinds:
    """Return the kinds of voxels after a previewed split: supervoxels of the object that have a side show it."""
    kinds = before.kinds.copy()
    edited = fastremap.unique(before.labels[kinds >= Kind.OBJECT])
    sides = preview.sides_of(graph, edited)
    for side, kind in ((1, Kind.SOURCE), (2, Kind.SINK)):
        kinds[np.isin(before.labels, edited[sides == side]) & (kinds >= Kind.OBJECT)] = kind
    return kinds


def scene_of_points(dataset: Dataset, sources: IntArray, sinks: IntArray) -> CutScene:
    """Return the scene of the objects at some points as they are now."""
    box = _box_around(dataset, np.concatenate([sources, sinks]), [])
    now, roots = settled(dataset.graph, lambda graph: _now(graph, box, sources, sinks))
    return CutScene(
        title=f"{dataset.graph_id}: objects at the points",
        subtitle=f"{_named(np.unique(roots))}; nothing is written",
        box=box,
        resolution=dataset.volume.scales[0].resolution,
        before=now,
        after=None,
        sources=sources,
        sinks=sinks,
    )


def scene_of_merge(dataset: Dataset, sources: IntArray, sinks: IntArray) -> CutScene:
    """Return the scene of the objects at some points as they are now, and merged into one."""
    scene = scene_of_points(dataset, sources, sinks)
    now = scene.before
    merged = np.where(now.kinds >= Kind.OBJECT, np.uint8(Kind.OBJECT), now.kinds)
    one = Objects.of(now.labels, lambda ids: _merged(now, merged, ids))
    return replace(
        scene,
        title=f"{dataset.graph_id}: preview of a merge",
        after=SceneState("after the merge", merged, now.labels, one),
    )


def _merged(now: SceneState, kinds: Kinds, supervoxels: UInt64Array) -> UInt64Array:
    """Return the object of each supervoxel after a merge of all objects that have the kind `OBJECT`, shape (n,)."""
    assert now.objects is not None
    roots = now.objects.roots_of(supervoxels)
    joined = np.isin(supervoxels, fastremap.unique(now.labels[kinds == Kind.OBJECT]))
    return np.where(joined, roots[joined].max(initial=0), roots)


# -- moments ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Moment:
    """A graph at a timestamp, and its voxels at a generation."""

    graph: SettledGraph
    generation: int | None = None
    """Generation of the fork; None = the latest."""
    time: int | None = None
    """Timestamp in milliseconds since the epoch; None = now."""

    def roots(self, supervoxels: UInt64Array) -> UInt64Array:
        return queries.roots(self.graph, supervoxels, at=self.time, missing_ok=True)

    def roots_at(self, points: IntArray) -> UInt64Array:
        """Distinct roots at some voxels, without background."""
        volume = self.graph.fork.open(version=self.generation)
        supervoxels = self.graph.supervoxels_at(volume, points, until=self.time)
        return self.roots(np.unique(supervoxels[supervoxels != 0]))

    def state(self, name: str, box: Box, sources: IntArray, sinks: IntArray, touched: UInt64Array) -> SceneState:
        _, labels = self.graph.read_voxels(box, version=self.generation, until=self.time)
        objects, sides = Objects.of(labels, self.roots), (self.roots_at(sources), self.roots_at(sinks))
        return SceneState(name, kinds_by_object(labels, objects.roots_of, touched, *sides), labels, objects)


def _now(graph: SettledGraph, box: Box, sources: IntArray, sinks: IntArray) -> tuple[SceneState, UInt64Array]:
    """The objects at some points as they are now, and their roots."""
    now = _Moment(graph)
    roots = now.roots_at(np.concatenate([sources, sinks]))
    return now.state("now", box, sources, sinks, roots), roots


def _points_of(operation: Operation) -> tuple[IntArray, IntArray]:
    sides = [columns.SOURCE_COORDINATES.newest(operation.row), columns.SINK_COORDINATES.newest(operation.row)]
    sources, sinks = (np.zeros((0, 3), np.int64) if side is None else side.astype(np.int64) for side in sides)
    if not len(sources) or not len(sinks):
        raise InputError(f"operation {operation.operation_id} names supervoxels but no voxels, so it cannot be shown.")
    return sources, sinks


# -- where ------------------------------------------------------------------------------------------------------------


def _box_around(dataset: Dataset, points: IntArray, edges: list[UInt64Array]) -> Box:
    """A box of about the same size in nm along all axes, around the points or, if it would be too large, the edges."""
    bounds = dataset.volume.bounds
    resolution = np.asarray(dataset.volume.scales[0].resolution)
    points = points[((points >= bounds.start) & (points < np.asarray(bounds.stop))).all(axis=1)]
    if not len(points):
        raise InputError("no point of the edit is inside the volume.")
    low, high = points.min(axis=0), points.max(axis=0) + 1
    side = max(1.7 * ((high - low) * resolution).max(), MIN_VOXELS * resolution.min(), MIN_SLICES * resolution.max())
    shape = np.minimum(np.ceil(side / resolution), bounds.shape)
    centre = (low + high) / 2
    if shape.prod() > MAX_VOXELS:
        largest = (MAX_VOXELS * resolution.prod()) ** (1 / 3)
        shape = np.minimum(np.maximum(largest / resolution, 1), bounds.shape)
        if ends := [e for e in edges if len(e)]:
            chunks = dataset.graph.layout.coordinates(np.unique(np.concatenate([e.reshape(-1) for e in ends])))
            middle = (chunks.mean(axis=0) + 0.5) * dataset.grid.chunk_size + dataset.grid.bounds.start
            centre = np.clip(middle, low, high)
    shape = shape.astype(np.int64)
    start = np.clip(np.floor(centre - shape / 2), bounds.start, np.asarray(bounds.stop) - shape)
    return Box.of(start, start + shape)


def _named(roots: UInt64Array) -> str:
    shown = ", ".join(map(str, roots[:NAMED_ROOTS].tolist()))
    more = f" and {len(roots) - NAMED_ROOTS} more" if len(roots) > NAMED_ROOTS else ""
    return f"root{'s' if len(roots) != 1 else ''} {shown}{more}"
