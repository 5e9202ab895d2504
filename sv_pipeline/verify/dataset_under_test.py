"""The graph under verification: its rows, edges and volumes, each read once, when a check first needs it.

This module judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import InputError, SvPipelineError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv
from sv_pipeline.storage.precomputed import VolumeInfo, read_info
from sv_pipeline.table import keys
from sv_pipeline.table.interface import Table
from sv_pipeline.table.meta import TableMeta, read_meta
from sv_pipeline.verify import atomic_edges, digest_checks, snapshot, volumes
from sv_pipeline.verify.blocks import ALL, Share
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.table_checks import check_hierarchy

__all__ = ["Blocked", "Subject", "as_failure", "cannot_be_read", "unreadable"]

Value = TypeVar("Value")


class Blocked(Exception):  # noqa: N818 - not an error: another check names the fault
    """A check cannot run because of a fault that another check reports."""


def cannot_be_read(name: str) -> str:
    """Return the reason for which a check is blocked that needs something which cannot be read."""
    return f"{name} cannot be read (named by another check)"


def as_failure(error: SvPipelineError, name: str) -> SvPipelineError:
    """Note in an error what could not be read; the innermost name stays, for it is the cause."""
    error.__dict__.setdefault("unreadable", name)
    return error


def unreadable(error: SvPipelineError) -> str:
    """Return what could not be read, as noted by `as_failure`; "" for other errors."""
    return str(error.__dict__.get("unreadable", ""))


class VoxelOptions(TypedDict):
    """Keyword arguments of checks that read voxels, block by block."""

    sample: int | None
    seed: int
    workers: int
    advance: Callable[[int, int], None] | None
    share: Share


@dataclass
class Subject:
    """A graph with everything that the checks look at."""

    table: Table
    fork: Fork
    """The graph's own version of the voxels; it may not exist."""
    sample: int | None = None
    seed: int = 0
    workers: int = 1
    advance: Callable[[int, int], None] | None = None
    """Called by the running check with (steps done, all steps)."""
    within: Sequence[Box] | None = None
    """Boxes in voxels of mip 0. Only those of the fork's own storage chunks that touch them are checked; None = all."""
    share: Share = ALL
    """The share of the blocks that the running check looks at."""
    _failures: dict[str, str] = field(default_factory=dict)

    @property
    def options(self) -> VoxelOptions:
        """Keyword arguments for checks that read voxels."""
        return {
            "sample": self.sample,
            "seed": self.seed,
            "workers": self.workers,
            "advance": self.advance,
            "share": self.share,
        }

    def _once(self, name: str, read: Callable[[], Value]) -> Value:
        """Read something. A failure is raised to the first check that asks for it, and blocks all later ones."""
        if name in self._failures:
            raise Blocked(self._failures[name])
        try:
            return read()
        except SvPipelineError as error:
            self._failures[name] = cannot_be_read(name)
            raise as_failure(error, name) from None

    def forget_failures(self) -> None:
        """Raise the errors of reading anew when something is asked for again."""
        self._failures.clear()

    @cached_property
    def meta(self) -> TableMeta:
        """The graph's meta row."""
        return self._once("the meta row", lambda: read_meta(self.table))

    @cached_property
    def is_built_elsewhere(self) -> bool:
        """Whether other software has built the graph, so that it has no ingest rows."""
        return not self.table.any_row([keys.ingest_range()])

    @cached_property
    def volume(self) -> VolumeInfo:
        """Bounds and scales of the watershed."""
        return self._once("the watershed's info", lambda: read_info(self.fork.watershed_url))

    @cached_property
    def grid(self) -> ChunkGrid:
        """The chunk grid, made from the watershed's bounds and the meta's chunk size."""
        return self._once("the chunk grid", lambda: ChunkGrid(self.volume.bounds, self.meta.chunk_size))

    @cached_property
    def layout(self) -> IdLayout:
        """Layout of ids."""
        bits = self.meta.graph_config.SPATIAL_BITS
        return self._once("the id layout", lambda: IdLayout(self.grid.n_layers, int(bits)))

    @cached_property
    def nodes(self) -> snapshot.Snapshot:
        """All node rows."""
        return self._once("a node row", lambda: snapshot.read_snapshot(self.table, self.layout))

    def nodes_of(self, coordinates: npt.NDArray[np.int64]) -> snapshot.Snapshot:
        """Rows of at least the supervoxels in some layer 2 chunks.

        Only the rows of these chunks are read, so that the voxels of a graph of any size can be checked.

        Parameters
        ----------
        coordinates
            Coordinates of the chunks, (x, y, z), shape (n, 3).
        """
        chunks = keys.chunk_ranges(self.layout, self.layout.chunk_ids(1, coordinates))
        return snapshot.read_snapshot(self.table, self.layout, chunks)

    @property
    def edge_folders(self) -> tuple[str, str]:
        """URLs of the folders of edge files and of component files."""
        source = self.meta.data_source
        if not source.EDGES or not source.COMPONENTS:
            raise InputError(
                "the meta does not name the folders of edge and component files (EDGES, COMPONENTS).",
                remedy="Write the meta again.",
            )
        return kv.as_url(source.EDGES), kv.as_url(source.COMPONENTS)

    @cached_property
    def edges(self) -> atomic_edges.AtomicEdges:
        """All atomic edges."""

        def read() -> atomic_edges.AtomicEdges:
            return atomic_edges.read_atomic_edges(self.table, self.layout, self.grid, *self.edge_folders)

        return self._once("an edge file", read)

    @cached_property
    def active(self) -> atomic_edges.ActiveEdges:
        """Edges between live leaves; raises `Blocked` unless the hierarchy and the edge files are sound."""
        hierarchy = Outcome("hierarchy")
        check_hierarchy(hierarchy, self.nodes)
        if hierarchy.has_errors:
            raise Blocked("blocked by faults of the hierarchy: without it no ancestor is certain")
        if self.edges.broken:
            raise Blocked("blocked by edge or component files that cannot be read (check edge_files)")
        return atomic_edges.activate(self.nodes, self.edges)

    @cached_property
    def voxels(self) -> volumes.StoredVolume:
        """The voxels that readers of the graph see."""
        return self._once("the segmentation", lambda: volumes.graph_volume(self.fork))

    @property
    def own_voxels(self) -> digest_checks.OwnVoxels | None:
        """The storage chunks that the graph's fork holds itself instead of the base; None if there is no fork."""
        fork = volumes.fork_volume(self.fork)
        return None if fork is None else digest_checks.read_own(fork, **self.options, within=self.within)

    @cached_property
    def watershed(self) -> volumes.StoredVolume:
        """The watershed volume that the base was copied from."""
        return self._once("the watershed volume", lambda: volumes.watershed_volume(self.fork.watershed_url))
