"""An open graph as a proofreader uses it: merge, split, undo, look. Finds things; the work is done in ``edits``."""

from __future__ import annotations

import getpass
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sv_pipeline import edits
from sv_pipeline.edits import (
    CommittedEdit,
    EditRefused,
    MergeRequest,
    Points,
    Reason,
    SettledGraph,
    SplitPreview,
    SplitRequest,
    settled,
)
from sv_pipeline.edits.looking_back import Moment
from sv_pipeline.edits.requests import MAX_POINTS, looked_up
from sv_pipeline.engine.once import edit_once, is_begun, operation_of
from sv_pipeline.graph import queries
from sv_pipeline.graph.lineage import Lineage, Operation, lineage, supervoxel_lineage
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.registry import Dataset, open_dataset
from sv_pipeline.reports.logged_edits import about, asked_for, read_edit
from sv_pipeline.segmentation.reader import open_fork
from sv_pipeline.segmentation.wall import behind_the_wall, methods_behind_the_wall
from sv_pipeline.table import columns

__all__ = ["OpenGraph", "PreviewedSplit", "Voxels", "open_graph"]

Voxels = Sequence[Sequence[int]]
IntArray = npt.NDArray[np.int64]


@behind_the_wall
def open_graph(graph_id: str, home: str | None = None) -> OpenGraph:
    """Open a registered graph.

    Parameters
    ----------
    graph_id
        Its name.
    home
        Home folder; default: ``$SV_PIPELINE_HOME``, see :func:`sv_pipeline.registry.default_home`.

    Raises
    ------
    NotFoundError
        If no such graph is registered, or it has no table yet.
    """
    dataset = open_dataset(graph_id, home)
    _ = dataset.graph
    return OpenGraph(dataset)


@dataclass(frozen=True, eq=False)
class PreviewedSplit(SplitPreview):
    """What a split would do, with numbers and a picture; Jupyter shows the picture by itself."""

    draw: Callable[[PreviewedSplit], bytes] | None = None

    @property
    def legal(self) -> bool:
        """Whether the split would be made."""
        return bool(self.numbers["legal"])

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """What would be cut, as plain values by name; ``reason`` and ``message`` where it would be refused."""
        from sv_pipeline.reports.edit_numbers import preview_numbers

        return preview_numbers(self)

    def picture(self) -> bytes:
        """Three slices through the cut, now and after the split, as PNG."""
        assert self.draw is not None
        return self.draw(self)

    def _repr_png_(self) -> bytes:
        return self.picture()


@methods_behind_the_wall
@dataclass(frozen=True)
class OpenGraph:
    """A graph with its segmentation. Points are voxels of the base mip, (x, y, z).

    Edits raise EditRefused, with a reason, where they cannot be made; then nothing is changed. ``user`` is who edits:
    by default the user of this machine. An edit with a ``token`` is made once, however often it is asked for with it.
    """

    dataset: Dataset

    @cached_property
    def segmentation(self) -> Any:
        """The fork's base mip, a TensorStore of supervoxel ids that shows every later edit."""
        return open_fork(self.dataset.watershed_url, self.dataset.graph_id)

    # -- looking ------------------------------------------------------------------------------------------------------

    def roots(self, points: Voxels, *, at: Moment | None = None) -> UInt64Array:
        """The roots at voxels, shape (n,); now, as of a time, or just after an operation."""
        return self.supervoxels_and_roots(points, at=at)[1]

    def supervoxels(self, points: Voxels, *, at: Moment | None = None) -> UInt64Array:
        """The supervoxels at voxels, shape (n,), 0 for background; now, as of a time, or just after an operation."""
        where = _whole_triples(points, "points")
        return settled(self.dataset.graph, lambda graph: self._supervoxels(graph, where, at))

    def supervoxels_and_roots(
        self, points: Voxels = (), supervoxels: Sequence[int] = (), *, at: Moment | None = None
    ) -> tuple[UInt64Array, UInt64Array]:
        """Some supervoxels and those at voxels, and the root of each, shape (n,); all as of one moment."""
        where, named = _whole_triples(points, "points"), np.asarray(supervoxels, np.uint64).reshape(-1)

        def question(graph: SettledGraph) -> tuple[UInt64Array, UInt64Array]:
            time = None if at is None else edits.milliseconds_of(graph, at)
            ids = np.concatenate([named, self._supervoxels(graph, where, at)])
            return ids, queries.roots(graph, ids, at=time)

        return settled(self.dataset.graph, question)

    def _supervoxels(self, graph: SettledGraph, where: IntArray, at: Moment | None) -> UInt64Array:
        if at is None or not len(where):
            return graph.supervoxels_at(self.segmentation if len(where) else None, where)
        box = Box.of(where.min(axis=0), where.max(axis=0) + 1)
        then = edits.segmentation_at(graph, at, within=box)
        return graph.supervoxels_at(then, where, until=edits.milliseconds_of(graph, at))

    def segmentation_at(self, at: Moment) -> Any:
        """The fork's base mip as of a time, or just after an operation; a TensorStore, read-only."""
        return edits.segmentation_at(self.dataset.graph, at)

    def leaves(self, points: Voxels, *, at: Moment | None = None) -> list[UInt64Array]:
        """The supervoxels of the object at each voxel; now, as of a time, or just after an operation."""
        where = _whole_triples(points, "points")

        def question(graph: SettledGraph) -> list[UInt64Array]:
            time = None if at is None else edits.milliseconds_of(graph, at)
            found = queries.leaves(graph, queries.roots(graph, self._supervoxels(graph, where, at), at=time))
            return np.split(found.values, found.offsets[1:-1])

        return settled(self.dataset.graph, question)

    def lineage(self, ids: Sequence[int]) -> Lineage:
        """What roots, or supervoxels, came from and what became of them, with the operations that did it."""
        asked = np.asarray(ids, np.uint64)
        of = supervoxel_lineage if (self.dataset.graph.layout.layers(asked) == 1).all() else lineage
        return settled(self.dataset.graph, lambda graph: of(graph, asked))

    def look_up(self, source: Voxels, sink: Voxels) -> pd.DataFrame:
        """What is at the points of a request: side, x, y, z, supervoxel and root (0 for background) of each."""
        sides = {"source": voxels(source, "source"), "sink": voxels(sink, "sink")}
        points = np.concatenate(list(sides.values()))

        def question(graph: SettledGraph) -> tuple[UInt64Array, UInt64Array]:
            ids = looked_up(graph, Points.of(coordinates=points), self.segmentation).ids
            return ids, queries.roots(graph, ids, missing_ok=True)

        ids, found = settled(self.dataset.graph, question)
        table = pd.DataFrame(points, columns=["x", "y", "z"])
        table.insert(0, "side", [name for name, side in sides.items() for _ in side])
        return table.assign(supervoxel=ids, root=found)

    def preview_split(self, source: Voxels, sink: Voxels) -> PreviewedSplit:
        """What :meth:`split` would do now; nothing is locked or written."""
        sources, sinks = voxels(source, "source"), voxels(sink, "sink")
        request = SplitRequest("preview", Points.of(coordinates=sources), Points.of(coordinates=sinks))
        found = settled(self.dataset.graph, lambda graph: edits.preview_split(graph, request, volume=self.segmentation))
        return PreviewedSplit(found.outcome, found.supervoxels, lambda preview: self._drawn(preview, sources, sinks))

    def picture_of_points(self, source: Voxels, sink: Voxels) -> bytes:
        """Three slices through the objects at some points, now and as one object, as PNG; nothing is written."""
        from sv_pipeline.reports.cut_pictures import render_cut
        from sv_pipeline.reports.cut_scenes import scene_of_points

        return render_cut(scene_of_points(self.dataset, voxels(source, "source"), voxels(sink, "sink")))

    def picture(self, operation_id: int) -> bytes:
        """Three slices through an operation, before and after it, as PNG; also long after it was made."""
        from sv_pipeline.reports.cut_pictures import render_cut
        from sv_pipeline.reports.cut_scenes import scene_of_operation

        return render_cut(scene_of_operation(self.dataset, operation_id))

    def operations(self, last: int | None = None) -> pd.DataFrame:
        """The operation log, newest last: what was asked for, by whom, and what came of it; all, or the newest ones."""
        from sv_pipeline.reports.edit_numbers import operations_table

        return operations_table(self.dataset.graph, last)

    # -- editing ------------------------------------------------------------------------------------------------------

    def merge(
        self, source: Voxels, sink: Voxels, *, user: str | None = None, token: str | None = None
    ) -> CommittedEdit:
        """Make one object of the two at ``source`` and at ``sink``."""
        request = MergeRequest(user_or_default(user), _points(source, "source"), _points(sink, "sink"))
        return self._make(
            token,
            lambda operation: _asks_for(operation, "merge", request),
            lambda: edits.merge(self.dataset.graph, request, volume=self.segmentation),
        )

    def split(
        self, source: Voxels, sink: Voxels, *, user: str | None = None, token: str | None = None
    ) -> CommittedEdit:
        """Cut ``source`` from ``sink`` where it is cheapest; through supervoxels where both are on one."""
        request = SplitRequest(user_or_default(user), _points(source, "source"), _points(sink, "sink"))
        return self._make(
            token,
            lambda operation: _asks_for(operation, "split", request),
            lambda: edits.split(self.dataset.graph, request, volume=self.segmentation),
        )

    def undo(self, operation_id: int, *, user: str | None = None, token: str | None = None) -> CommittedEdit:
        """Take an operation back."""
        return self._revert(edits.undo, operation_id, user, token)

    def redo(self, operation_id: int, *, user: str | None = None, token: str | None = None) -> CommittedEdit:
        """Make an operation again that was undone."""
        return self._revert(edits.redo, operation_id, user, token)

    def edit(self, operation_id: int) -> CommittedEdit:
        """An edit that was made, read back from the log."""
        return read_edit(self.dataset.graph, operation_id)

    def made_for(self, token: str) -> CommittedEdit | None:
        """The operation that was made for a token; None if none was."""
        return operation_of(self.dataset.graph, token)

    def begun(self, token: str) -> bool:
        """Whether an edit was made for a token, or an attempt to make one has begun and was not refused."""
        return is_begun(self.dataset.graph, token)

    def _make(
        self, token: str | None, is_it: Callable[[Operation], bool], edit: Callable[[], CommittedEdit]
    ) -> CommittedEdit:
        return edit() if token is None else edit_once(self.dataset.graph, token, is_it, edit)

    def _revert(
        self, revert: Callable[..., CommittedEdit], operation_id: int, user: str | None, token: str | None
    ) -> CommittedEdit:
        graph, who, number = self.dataset.graph, user_or_default(user), _operation_number(operation_id)
        return self._make(
            token,
            lambda operation: operation.user == who and about(operation) == asked_for(graph, number).operation_id,
            lambda: revert(graph, number, who),
        )

    def _drawn(self, preview: PreviewedSplit, sources: IntArray, sinks: IntArray) -> bytes:
        from sv_pipeline.reports.cut_pictures import render_cut
        from sv_pipeline.reports.cut_scenes import scene_of_preview

        return render_cut(scene_of_preview(self.dataset, preview, sources, sinks))


def user_or_default(user: str | None) -> str:
    """Who edits: by default the user of this machine."""
    if user is not None:
        return user
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError) as error:
        raise EditRefused(
            Reason.BAD_REQUEST, "the user of this machine has no name.", remedy="Name the user who edits."
        ) from error


def voxels(points: Any, name: str) -> IntArray:
    """Points of one side as voxels, shape (n, 3); EditRefused if they are anything else, or too many."""
    array = _whole_triples(points, f"{name} points")
    if len(array) > MAX_POINTS:
        raise EditRefused(
            Reason.TOO_MANY_POINTS,
            f"there are {len(array):,} {name} points; {MAX_POINTS:,} are possible.",
            remedy="Place fewer; every one must be reached by the cut, so few do.",
        )
    return array


def _whole_triples(points: Any, name: str) -> IntArray:
    refused = EditRefused(
        Reason.BAD_REQUEST,
        f"the {name} are not voxels: {reprlib.repr(points)}.",
        remedy="A point is three whole numbers x, y, z, in voxels of mip 0.",
    )
    try:
        array = np.asarray(points)
        if array.shape == (3,):
            array = array[None]
        if not array.size:
            return np.zeros((0, 3), np.int64)
        with np.errstate(invalid="ignore"):  # what is not a number, or too large, does not equal what it becomes
            whole = array.astype(np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise refused from error
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "iuf" or not (whole == array).all():
        raise refused
    return whole


def _points(points: Any, name: str) -> Points:
    return Points.of(coordinates=voxels(points, name))


def _operation_number(operation_id: Any) -> int:
    if isinstance(operation_id, int | np.integer) and 0 < int(operation_id) < 1 << 63:
        return int(operation_id)
    raise EditRefused(
        Reason.BAD_REQUEST,
        f"{reprlib.repr(operation_id)} is no operation.",
        remedy="Operations are numbered from 1; the log lists them.",
    )


def _asks_for(operation: Operation, kind: str, request: MergeRequest | SplitRequest) -> bool:
    """Whether an operation asks for what a request asks for."""
    sides = [columns.SOURCE_COORDINATES.newest(operation.row), columns.SINK_COORDINATES.newest(operation.row)]
    wanted = [request.sources.coordinates, request.sinks.coordinates]
    return (
        operation.kind == kind
        and operation.user == request.user
        and all(a is not None and b is not None and np.array_equal(a, b) for a, b in zip(sides, wanted, strict=True))
    )
