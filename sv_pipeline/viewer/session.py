"""The edits that a user makes while looking at a graph: points of both sides, previews, commits and undos.

It knows no browser. Each step returns a text for the user, also if an edit is refused. Edits themselves are planned and
made by :class:`sv_pipeline.proofreading.OpenGraph`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sv_pipeline.edits import CommittedEdit
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.reports.previews import PreviewedMerge, PreviewedSplit
from sv_pipeline.viewer.texts import describe_edit, describe_merge, describe_split
from sv_pipeline.wording import counted

__all__ = ["EditSession"]

Voxel = tuple[int, int, int]


@dataclass
class EditSession:
    """Points, preview and edits of one user. Its methods must be called one at a time."""

    graph: OpenGraph
    user: str | None = None
    """Author of the edits; default: the user of this machine."""
    sources: list[Voxel] = field(default_factory=list)
    """Points of the source side: voxels of mip 0, (x, y, z)."""
    sinks: list[Voxel] = field(default_factory=list)
    """Points of the sink side."""
    preview: PreviewedSplit | PreviewedMerge | None = None
    """What :meth:`commit` would make; None unless the points were previewed and the edit is legal."""
    made: list[CommittedEdit] = field(default_factory=list)
    """The edits of this session that :meth:`undo` can undo, the newest last."""

    # -- points -------------------------------------------------------------------------------------------------------

    def add_source(self, voxel: Voxel) -> str:
        """Add a point to the source side."""
        return self._add(self.sources, voxel)

    def add_sink(self, voxel: Voxel) -> str:
        """Add a point to the sink side."""
        return self._add(self.sinks, voxel)

    def clear(self) -> str:
        """Remove all points, and the preview."""
        self.sources, self.sinks, self.preview = [], [], None
        return "Points are cleared."

    def _add(self, side: list[Voxel], voxel: Voxel) -> str:
        self.preview = None
        if voxel in side:
            side.remove(voxel)
        else:
            side.append(voxel)
        sources, sinks = counted(len(self.sources), "source point"), counted(len(self.sinks), "sink point")
        return f"{sources} and {sinks}. A preview shows what a split would do."

    # -- edits --------------------------------------------------------------------------------------------------------

    def preview_split(self) -> str:
        """Preview a split of the sources from the sinks."""

        def ask() -> str:
            found = self.graph.preview_split(self.sources, self.sinks)
            self.preview = found if found.legal else None
            return describe_split(found.numbers)

        return self._with_points(ask)

    def preview_merge(self) -> str:
        """Preview a merge of the objects at the sources and at the sinks."""

        def ask() -> str:
            found = self.graph.preview_merge(self.sources, self.sinks)
            self.preview = found if found.legal else None
            return describe_merge(found.numbers)

        return self._with_points(ask)

    def commit(self) -> str:
        """Make the edit that was previewed."""
        if self.preview is None:
            return "There is nothing to commit: preview a split or a merge of the points first."
        split = isinstance(self.preview, PreviewedSplit)

        def make() -> str:
            edit = (self.graph.split if split else self.graph.merge)(self.sources, self.sinks, user=self.user)
            self.made.append(edit)
            self.clear()
            return describe_edit(edit)

        return _explained(make)

    def undo(self) -> str:
        """Undo the newest edit of this session that is not undone yet."""
        if not self.made:
            return "There is nothing to undo: this session has made no edit, or all are undone."
        about = self.made[-1]

        def revert() -> str:
            try:
                edit = self.graph.undo(about.id, user=self.user)
            except EditRefused as refusal:
                if refusal.reason == Reason.NOTHING_TO_UNDO:
                    self.made.pop()  # somebody else has undone it; the next undo is of the edit before it
                raise
            self.made.pop()
            return f"Operation {about.id} is undone. {describe_edit(edit)}"

        return _explained(revert)

    def _with_points(self, ask: Callable[[], str]) -> str:
        self.preview = None
        if not self.sources or not self.sinks:
            missing = "source" if not self.sources else "sink"
            return f"There is no {missing} point: each side needs at least one."
        return _explained(ask)


def _explained(step: Callable[[], str]) -> str:
    """Return the text of a step, or the reason why it is refused."""
    try:
        return step()
    except SvPipelineError as error:
        return f"Refused: {error}"
