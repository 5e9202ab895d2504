"""An open graph as a proofreader uses it: merge, split, undo, look. Finds things; the work is done in ``edits``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from sv_pipeline import edits
from sv_pipeline.edits import CommittedEdit, MergeRequest, Points, SplitPreview, SplitRequest
from sv_pipeline.graph import queries
from sv_pipeline.ids import UInt64Array
from sv_pipeline.registry import Dataset, open_dataset
from sv_pipeline.segmentation.reader import open_fork

__all__ = ["OpenGraph", "open_graph"]

Voxels = Sequence[Sequence[int]]


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


@dataclass(frozen=True)
class OpenGraph:
    """A graph with its segmentation. Points are voxels of the base mip, (x, y, z)."""

    dataset: Dataset

    @cached_property
    def segmentation(self) -> Any:
        """The fork's base mip, a TensorStore of supervoxel ids that shows every later edit."""
        return open_fork(self.dataset.watershed_url, self.dataset.graph_id)

    def roots(self, points: Voxels, *, at: datetime | None = None) -> UInt64Array:
        """The roots at voxels, shape (n,); as of a time, or now."""
        supervoxels = queries.supervoxels_at(self.dataset.graph, self.segmentation, np.asarray(points, np.int64))
        return queries.roots(self.dataset.graph, supervoxels, at=at)

    def merge(self, source: Voxels, sink: Voxels, *, user: str) -> CommittedEdit:
        """Make one object of the two at ``source`` and at ``sink``; EditRefused, with a reason, where it cannot be."""
        request = MergeRequest(user, Points.of(coordinates=source), Points.of(coordinates=sink))
        return edits.merge(self.dataset.graph, request, volume=self.segmentation)

    def split(self, source: Voxels, sink: Voxels, *, user: str) -> CommittedEdit:
        """Cut ``source`` from ``sink`` where it is cheapest; EditRefused, with a reason, where it cannot be."""
        return edits.split(self.dataset.graph, self._split_request(source, sink, user), volume=self.segmentation)

    def preview_split(self, source: Voxels, sink: Voxels) -> SplitPreview:
        """What :meth:`split` would do now; nothing is locked or written."""
        request = self._split_request(source, sink, "preview")
        return edits.preview_split(self.dataset.graph, request, volume=self.segmentation)

    def undo(self, operation_id: int, *, user: str) -> CommittedEdit:
        """Take an operation back."""
        return edits.undo(self.dataset.graph, operation_id, user)

    def redo(self, operation_id: int, *, user: str) -> CommittedEdit:
        """Make an operation again that was undone."""
        return edits.redo(self.dataset.graph, operation_id, user)

    def operations(self) -> pd.DataFrame:
        """The operation log, newest last."""
        return edits.operations_table(self.dataset.graph)

    def _split_request(self, source: Voxels, sink: Voxels, user: str) -> SplitRequest:
        return SplitRequest(user, Points.of(coordinates=source), Points.of(coordinates=sink))
