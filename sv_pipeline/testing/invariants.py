"""Invariants that hold for a graph after any operation, as functions that assert them or return what they found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.ownership import OPEN_ROWS
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base.layout import step_factor
from sv_pipeline.table import columns
from sv_pipeline.testing.tables import EVERYTHING
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline.verify.dataset_under_test import Subject
from sv_pipeline.verify.report import VerifyReport

__all__ = ["Edge", "assert_at_rest", "assert_mips_right", "assert_sound", "edges_of", "locks_and_scopes"]


@dataclass(frozen=True)
class Edge:
    """The present edge between two supervoxels."""

    affinity: float
    active: bool


def assert_sound(dataset: Dataset, **options: Any) -> VerifyReport:
    """Assert that every check of ``sv-pipeline verify`` passes and finds nothing, not even a warning.

    Parameters
    ----------
    options
        As for :func:`sv_pipeline.verify.dataset.verify_dataset`.
    """
    report = verify_dataset(dataset, **options)
    assert report.ok, report.summary()
    assert not report.findings, report.summary()
    return report


def assert_at_rest(dataset: Dataset) -> None:
    """Assert that no operation is open, and that nothing is locked or reserved for one."""
    opened = [key for key, _ in dataset.table.scan([OPEN_ROWS])]
    assert not opened, f"operations are open: {opened}"
    rows = dict(dataset.table.scan([EVERYTHING]))
    assert not locks_and_scopes(rows), f"nobody edits, but there are {locks_and_scopes(rows)}"


def locks_and_scopes(rows: Mapping[bytes, Mapping[Any, Any]]) -> list[str]:
    """Return the cells, in all rows of a table, that show an operation at work: locks, reservations and scopes."""
    busy = {columns.LOCK.key, columns.INDEFINITE_LOCK.key, columns.CHUNK_LOCK_SCOPE.key}
    own = {b"scope", b"writes"}
    return [
        f"{key!r}: {column}"
        for key, row in rows.items()
        for column in row
        if column in busy or (key.startswith(b"sv_pipeline:op:") and column.qualifier in own)
    ]


def assert_mips_right(dataset: Dataset) -> None:
    """Assert that every mip of the fork equals the downsampled mip below it, voxel for voxel."""
    fork = dataset.fork
    volume = fork.base_info().volume
    below = fork.open().read(order="F").result()
    for mip in range(1, len(volume.scales)):
        stored = fork.open(mip).read(order="F").result()
        np.testing.assert_array_equal(stored, downsample(below, step_factor(volume, mip)), err_msg=f"mip {mip}")
        below = stored


def edges_of(graph: ChunkedGraph) -> dict[tuple[int, int], Edge]:
    """Return all atomic edges between present supervoxels; of several edges of one pair, the largest affinity counts.

    Returns
    -------
    dict
        The edges by their pairs of supervoxels, the smaller id first.
    """
    subject = Subject(graph.table, graph.fork)
    active, edges = subject.active, subject.edges
    ids = subject.nodes.ids
    joined = {
        (int(a), int(b)): bool(j)
        for a, b, j in zip(ids[active.first], ids[active.second], active.joined, strict=True)
        if a < b
    }
    found: dict[tuple[int, int], Edge] = {}
    for (a, b), affinity in zip(np.sort(edges.pairs, axis=1).tolist(), edges.affinities.tolist(), strict=True):
        if (a, b) in joined and (found.get((a, b)) is None or affinity > found[a, b].affinity):
            found[a, b] = Edge(affinity, joined[a, b])
    return found
