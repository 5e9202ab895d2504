"""Outcomes of a request for a cut, as values. Computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sv_pipeline.ids import UInt64Array

__all__ = ["Cut", "Preview", "Refusal", "Refused", "SharedRepresentative", "SupervoxelSplitRequired"]


class Refusal(StrEnum):
    """Reasons for which there is no cut."""

    NO_POINTS = "no_points"
    """One side has no points."""
    BACKGROUND = "background"
    """A point is on the background (id 0)."""
    SHARED_SUPERVOXEL = "shared_supervoxel"
    """Both sides have points on one supervoxel, and supervoxels may not be split."""
    NOT_IN_REGION = "not_in_region"
    """The supervoxel of a point has no edge in the region."""
    NOT_CONNECTED = "not_connected"
    """Sources and sinks are not connected inside the region, so there is nothing to cut."""
    SIDE_NOT_CONNECTED = "side_not_connected"
    """The points of one side are connected to each other only through supervoxels of the other side."""
    PATHS_CROSS = "paths_cross"
    """The paths that join the points of each side cannot avoid those of the other side."""
    SIDE_FALLS_APART = "side_falls_apart"
    """The cheapest cut separates points of one side from each other."""
    ISOLATING_CUT = "isolating_cut"
    """The cheapest cut separates only the points of one side."""


@dataclass(frozen=True, eq=False)
class Cut:
    """The edges to remove, and the parts of the region without them."""

    removed_edges: UInt64Array
    """Pairs of supervoxels, shape (m, 2), unique and sorted; an edge listed in both directions occurs in both."""
    source_side: UInt64Array
    """Supervoxels of the region that stay with the sources, sorted."""
    sink_side: UInt64Array
    """Supervoxels of the region that stay with the sinks, sorted."""
    rest: tuple[UInt64Array, ...]
    """Other components of the region, which have no points, each sorted; they are attached outside of the region."""
    weight: float
    """Sum of the affinities of all cut rows of the local graph."""


@dataclass(frozen=True, eq=False)
class SharedRepresentative:
    """Supervoxels that no cut of edges can separate, with points of both sides on them."""

    representative: int
    """Smallest id of the members."""
    members: UInt64Array
    """Supervoxels joined by edges of affinity inf, sorted."""
    sources: UInt64Array
    """Source points among the members."""
    sinks: UInt64Array
    """Sink points among the members."""


@dataclass(frozen=True, eq=False)
class SupervoxelSplitRequired:
    """Both sides have points on the same supervoxels, which must be split by voxels before edges can be cut."""

    shared: tuple[SharedRepresentative, ...]
    """At least one, sorted by representative."""

    @property
    def message(self) -> str:
        """Description for a log or a user."""
        names = ", ".join(str(shared.representative) for shared in self.shared)
        return f"sources and sinks have points on the same supervoxels, which must be split first: {names}."


@dataclass(frozen=True, eq=False)
class Refused:
    """The request is refused for a reason that the user can change."""

    reason: Refusal
    message: str
    """Text that names the cause and the remedy."""
    supervoxels: UInt64Array
    """Supervoxels that the reason concerns (may be empty)."""


@dataclass(frozen=True, eq=False)
class Preview:
    """A cut as it would be made, even if it would be refused."""

    cut: Cut
    refused: Refused | None
    """The refusal that :func:`~sv_pipeline.algorithms.multicut.cut.multicut` returns instead of the cut, if any."""

    @property
    def illegal(self) -> bool:
        """Whether the cut would be refused."""
        return self.refused is not None

    @property
    def components(self) -> tuple[UInt64Array, ...]:
        """Supervoxels of the source side, the sink side, then each other component."""
        return (self.cut.source_side, self.cut.sink_side, *self.cut.rest)
