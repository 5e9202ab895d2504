"""An open graph as a proofreader uses it: merge, split, undo, and queries. The work is done in ``edits``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from sv_pipeline import edits
from sv_pipeline.arguments import parse_count, parse_flag, parse_ids
from sv_pipeline.edits import (
    CommittedEdit,
    MergeRequest,
    Points,
    SettledGraph,
    SplitPreview,
    SplitRequest,
    settled,
)
from sv_pipeline.edits.given_points import given_points, given_voxels
from sv_pipeline.edits.made import read_edit
from sv_pipeline.edits.pointing import resolved, supervoxels_or_nearest, what_is_near
from sv_pipeline.edits.requests import DEFAULT_REGION_MEMORY, user_or_default
from sv_pipeline.edits.tokens import asks_for, edit_once, operation_of
from sv_pipeline.errors import InputError, NotFoundError
from sv_pipeline.graph import queries
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.lineage import Lineage, any_lineage
from sv_pipeline.graph_history import GraphHistory
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.moments import Moment, parse_moment, parse_operation
from sv_pipeline.operations.log import Operation, about, asked_for
from sv_pipeline.operations.pair import fitting, misfit_first
from sv_pipeline.operations.refusal import bad_request
from sv_pipeline.redaction import redacted
from sv_pipeline.registry import Dataset, open_dataset
from sv_pipeline.reports.previews import PreviewedMerge, PreviewedSplit
from sv_pipeline.reports.sizes import PUBLISHED_WIDTH, parse_width
from sv_pipeline.segmentation.fork.fork import is_current
from sv_pipeline.storage.wall import behind_the_wall, methods_behind_the_wall

__all__ = ["OpenGraph", "Voxels", "open_graph"]

Voxels = Sequence[Sequence[int]]
IntArray = npt.NDArray[np.int64]
Answer = TypeVar("Answer")


@behind_the_wall
def open_graph(graph_id: str, home: str | os.PathLike[str] | None = None) -> OpenGraph:
    """Open a registered graph.

    Parameters
    ----------
    graph_id
        Name of the graph.
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


@methods_behind_the_wall
@dataclass(frozen=True, repr=False)
class OpenGraph(GraphHistory):
    """A graph with its segmentation. Points are voxels of the base mip, (x, y, z).

    Where an edit takes points, a point may also be (id, x, y, z), which names the root or supervoxel that is meant. If
    it lies beside that object, it is moved to the nearest of its voxels, see :mod:`sv_pipeline.edits.pointing`.

    An edit that cannot be made raises EditRefused with a reason, and nothing is changed. ``user`` is the author of the
    edit; default: the user of this machine. An edit with a ``token`` is made once, however often it is requested.
    """

    dataset: Dataset

    def __enter__(self) -> OpenGraph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<OpenGraph {self.dataset.graph_id!r} in {redacted(self.dataset.home)!r}>"

    def close(self) -> None:
        """Close connections. They are reopened if the graph is used again."""
        self.__dict__.pop("_volume", None)
        self.dataset.close()

    @property
    def segmentation(self) -> Any:
        """The fork's base mip, a TensorStore of supervoxel ids that shows every later edit.

        If the base has been created again since it was opened, it is reopened, as is everything else of the graph.
        """
        volume = self.__dict__.get("_volume")
        if volume is None or not is_current(volume):
            if volume is not None:
                self.dataset.forget()
            volume = self.__dict__["_volume"] = self.dataset.fork.open()
        return volume

    @property
    def graph(self) -> ChunkedGraph:
        """The chunked graph."""
        if "_volume" in self.__dict__:
            _ = self.segmentation  # detects whether everything was created again
        return self.dataset.graph

    # -- looking ------------------------------------------------------------------------------------------------------

    def roots(self, points: Voxels, *, at: Moment | None = None) -> UInt64Array:
        """Return the roots at voxels, shape (n,); as of now, of a time, or just after an operation."""
        return self.supervoxels_and_roots(points, at=at)[1]

    def supervoxels(self, points: Voxels, *, at: Moment | None = None) -> UInt64Array:
        """Return the supervoxels at voxels, shape (n,), 0 for background; as of now, a time, or after an operation."""
        where, at = given_voxels(points, "points"), _moment(at)
        return self._ask(lambda graph: self._supervoxels(graph, where, at))

    def supervoxels_and_roots(
        self, points: Voxels = (), supervoxels: Sequence[int] = (), *, at: Moment | None = None
    ) -> tuple[UInt64Array, UInt64Array]:
        """Return the given supervoxels followed by those at voxels, and their roots, shape (n,), as of one moment."""
        where, at = given_voxels(points, "points"), _moment(at)
        with bad_request():
            named = parse_ids(supervoxels, "supervoxels")

        def question(graph: SettledGraph) -> tuple[UInt64Array, UInt64Array]:
            time = None if at is None else edits.milliseconds_of(graph, at)
            ids = np.concatenate([named, self._on_objects(graph, where, at)])
            return ids, queries.roots(graph, ids, at=time)

        return self._ask(question)

    def _ask(self, question: Callable[[SettledGraph], Answer]) -> Answer:
        """Answer a query as of one moment; raise an error if table and fork do not belong together."""
        graph = self.graph
        with misfit_first(graph):
            return settled(graph, question)

    def _preview(self, question: Callable[[SettledGraph], Answer]) -> Answer:
        """Answer a query as `_ask`; it is refused, like the edit itself, if table and fork do not belong together."""
        with ThreadPoolExecutor(1) as pool:
            fits = pool.submit(fitting, self.graph)
            answer = self._ask(question)
            _ = fits.result()
        return answer

    def _supervoxels(self, graph: SettledGraph, where: IntArray, at: Moment | None) -> UInt64Array:
        if at is None or not len(where):
            return graph.supervoxels_at(self.segmentation if len(where) else None, where)
        box = Box.of(where.min(axis=0), where.max(axis=0) + 1)
        then = edits.segmentation_at(graph, at, within=box)
        return graph.supervoxels_at(then, where, until=edits.milliseconds_of(graph, at))

    def _on_objects(self, graph: SettledGraph, where: IntArray, at: Moment | None) -> UInt64Array:
        """Return the supervoxels at voxels; NotFoundError for background, which belongs to no object."""
        found = self._supervoxels(graph, where, at)
        if (found == 0).any():
            point = where[found == 0][0]
            near = "" if at is not None else f" (near it: {what_is_near(graph, self.segmentation, point)})"
            raise NotFoundError(
                f"point {tuple(point.tolist())} lies on background, which belongs to no object{near}.",
                remedy="Place it on the object; points are x, y, z in voxels of mip 0.",
            )
        return found

    def segmentation_at(self, at: Moment) -> Any:
        """Return the fork's base mip as of a time, or just after an operation; a read-only TensorStore."""
        return edits.segmentation_at(self.graph, at)

    def leaves(self, points: Voxels, *, at: Moment | None = None) -> list[UInt64Array]:
        """Return the supervoxels of the object at each voxel; as of now, of a time, or just after an operation."""
        where, at = given_voxels(points, "points"), _moment(at)

        def question(graph: SettledGraph) -> list[UInt64Array]:
            time = None if at is None else edits.milliseconds_of(graph, at)
            found = queries.leaves(graph, queries.roots(graph, self._on_objects(graph, where, at), at=time))
            return np.split(found.values, found.offsets[1:-1]) if len(where) else []

        return self._ask(question)

    def lineage(self, ids: Sequence[int]) -> Lineage:
        """Return the predecessors and successors of roots or supervoxels, with the operations that replaced them."""
        with bad_request():
            asked = parse_ids(ids, "ids")
            return self._ask(lambda graph: any_lineage(graph, asked))

    def look_up(self, source: Voxels, sink: Voxels) -> pd.DataFrame:
        """Return what points of a request mean: side, x, y, z, supervoxel, root, distance in nm by which each is moved.

        Supervoxel and root are 0 if there is no object near the point.
        """
        sides = {"source": given_points(source, "source"), "sink": given_points(sink, "sink")}

        def question(graph: SettledGraph) -> tuple[list[Points], UInt64Array]:
            found = [supervoxels_or_nearest(graph, side, self.segmentation) for side in sides.values()]
            ids = np.concatenate([side.ids for side in found])
            return found, queries.roots(graph, ids, missing_ok=True)

        found, objects = self._ask(question)
        table = pd.DataFrame(np.concatenate([side.pointed for side in found]), columns=["x", "y", "z"])
        table.insert(0, "side", [name for name, side in sides.items() for _ in side.pointed])
        moved = np.concatenate([_voxels_of(side) - side.pointed for side in found])
        distances = np.sqrt(((moved * np.asarray(self.dataset.volume.scales[0].resolution)) ** 2).sum(axis=1))
        return table.assign(supervoxel=np.concatenate([side.ids for side in found]), root=objects, moved_nm=distances)

    def preview_split(
        self,
        source: Voxels,
        sink: Voxels,
        *,
        allow_partial: bool = False,
        region_memory: int = DEFAULT_REGION_MEMORY,
        allow_isolating_cut: bool | None = None,
    ) -> PreviewedSplit:
        """Return what :meth:`split` would do now; nothing is locked or written."""
        request = _split_request("preview", source, sink, allow_partial, region_memory, allow_isolating_cut)

        def question(graph: SettledGraph) -> tuple[SplitRequest, SplitPreview]:
            moved = resolved(graph, request, self.segmentation)
            return moved, edits.preview_split(graph, moved, volume=self.segmentation)

        moved, found = self._preview(question)
        sources, sinks = _voxels_of(moved.sources), _voxels_of(moved.sinks)
        return PreviewedSplit.of(found, lambda width: self._drawn(found, sources, sinks, width))

    def preview_merge(self, source: Voxels, sink: Voxels) -> PreviewedMerge:
        """Return what :meth:`merge` would do now; nothing is locked or written."""
        request = MergeRequest("preview", given_points(source, "source"), given_points(sink, "sink"))
        found = self._preview(lambda graph: edits.preview_merge(graph, request, volume=self.segmentation))
        return PreviewedMerge.of(found, lambda width: self._drawn_points(source, sink, width, merged=True))

    def picture_of_points(self, source: Voxels, sink: Voxels, *, width: int = PUBLISHED_WIDTH) -> bytes:
        """Draw three slices through the objects at points; return a PNG of a width in pixels."""
        return self._drawn_points(source, sink, width)

    def picture(self, operation_id: int, *, width: int = PUBLISHED_WIDTH) -> bytes:
        """Draw three slices through an operation of any age, before and after it; return a PNG of a width in pixels."""
        from sv_pipeline.reports.cut_pictures import render_cut
        from sv_pipeline.reports.cut_scenes import scene_of_operation

        number, pixels = _operation_number(operation_id), parse_width(width)
        return render_cut(scene_of_operation(self.dataset, number), width=pixels)

    # -- editing ------------------------------------------------------------------------------------------------------

    def merge(
        self, source: Voxels, sink: Voxels, *, user: str | None = None, token: str | None = None
    ) -> CommittedEdit:
        """Merge the objects at ``source`` and at ``sink`` into one."""
        request = MergeRequest(user_or_default(user), given_points(source, "source"), given_points(sink, "sink"))
        return self._make(
            token,
            lambda operation: asks_for(operation, "merge", request),
            lambda: edits.merge(self.graph, request, volume=self.segmentation),
        )

    def split(
        self,
        source: Voxels,
        sink: Voxels,
        *,
        user: str | None = None,
        token: str | None = None,
        allow_partial: bool = False,
        region_memory: int = DEFAULT_REGION_MEMORY,
        allow_isolating_cut: bool | None = None,
    ) -> CommittedEdit:
        """Cut ``source`` from ``sink`` where it is cheapest, and through supervoxels that have points of both sides.

        The edges around the points are cut. Where both sides stay one object by a way around, more of the object is
        looked at, in at most ``region_memory`` bytes, until they are parted. ``allow_partial`` cuts around the points
        only; the edit says ``still_one_object`` if both sides stay one object. A cut that cuts off nothing but the
        points of one side is refused if that side has several; ``allow_isolating_cut`` allows it, or, if it is False,
        refuses it in any case.
        """
        request = _split_request(user_or_default(user), source, sink, allow_partial, region_memory, allow_isolating_cut)
        return self._make(
            token,
            lambda operation: asks_for(operation, "split", request),
            lambda: edits.split(self.graph, request, volume=self.segmentation),
        )

    def undo(
        self, operation_id: int, *, user: str | None = None, token: str | None = None, allow_partial: bool = False
    ) -> CommittedEdit:
        """Undo an operation; with ``allow_partial`` even if that separates nothing because of later edits."""
        return self._revert(edits.undo, operation_id, user, token, allow_partial=allow_partial)

    def redo(
        self, operation_id: int, *, user: str | None = None, token: str | None = None, allow_partial: bool = False
    ) -> CommittedEdit:
        """Make an undone operation again; with ``allow_partial`` even if that separates nothing."""
        return self._revert(edits.redo, operation_id, user, token, allow_partial=allow_partial)

    def find_edit(self, *, token: str | None = None, operation: int | None = None) -> CommittedEdit | None:
        """Return an edit that was made, by its token or by its number.

        Parameters
        ----------
        token
            Token of the request. None is returned if no edit was made with it.
        operation
            Number of the operation, read back from the log.

        Raises
        ------
        NotFoundError
            If there is no such operation.
        InputError
            If the operation was refused or has not ended, or if not exactly one of the two is given.
        """
        if (token is None) == (operation is None):
            raise InputError(
                "an edit is found by its token or by its operation number.", remedy="Give exactly one of the two."
            )
        if token is not None:
            return operation_of(self.graph, token)
        return read_edit(self.graph, _operation_number(operation))

    def _make(
        self, token: str | None, is_it: Callable[[Operation], bool], edit: Callable[[], CommittedEdit]
    ) -> CommittedEdit:
        return edit() if token is None else edit_once(self.graph, token, is_it, edit)

    def _revert(
        self,
        revert: Callable[..., CommittedEdit],
        operation_id: int,
        user: str | None,
        token: str | None,
        *,
        allow_partial: bool,
    ) -> CommittedEdit:
        graph, who, number = self.graph, user_or_default(user), _operation_number(operation_id)
        with bad_request():
            parse_flag(allow_partial, "allow_partial")
        return self._make(
            token,
            lambda operation: operation.user == who and about(operation) == asked_for(graph, number).operation_id,
            lambda: revert(graph, number, who, allow_partial=allow_partial),
        )

    def _drawn(self, preview: SplitPreview, sources: IntArray, sinks: IntArray, width: int) -> bytes:
        from sv_pipeline.reports.cut_pictures import render_cut
        from sv_pipeline.reports.cut_scenes import scene_of_preview

        return render_cut(scene_of_preview(self.dataset, preview, sources, sinks), width=width)

    def _drawn_points(self, source: Voxels, sink: Voxels, width: int, *, merged: bool = False) -> bytes:
        from sv_pipeline.reports.cut_pictures import render_cut
        from sv_pipeline.reports.cut_scenes import scene_of_merge, scene_of_points

        sides, pixels = (given_points(source, "source"), given_points(sink, "sink")), parse_width(width)

        def question(graph: SettledGraph) -> list[IntArray]:
            return [_voxels_of(supervoxels_or_nearest(graph, side, self.segmentation)) for side in sides]

        scene_of = scene_of_merge if merged else scene_of_points
        return render_cut(scene_of(self.dataset, *self._ask(question)), width=pixels)


def _split_request(
    user: str, source: Any, sink: Any, allow_partial: bool, region_memory: Any, allow_isolating_cut: bool | None
) -> SplitRequest:
    sides = given_points(source, "source"), given_points(sink, "sink")
    with bad_request():
        partial = parse_flag(allow_partial, "allow_partial")
        memory = parse_count(region_memory, "number of bytes for the region")
        disallow = None if allow_isolating_cut is None else not parse_flag(allow_isolating_cut, "allow_isolating_cut")
    return SplitRequest(user, *sides, allow_partial=partial, region_memory=memory, disallow_isolating_cut=disallow)


def _voxels_of(points: Points) -> IntArray:
    return np.zeros((0, 3), np.int64) if points.coordinates is None else points.coordinates


@bad_request()
def _operation_number(operation_id: Any) -> int:
    return parse_operation(operation_id)


@bad_request()
def _moment(at: Moment | None) -> Moment | None:
    return None if at is None else parse_moment(at)
