"""What a request for a cut can end in: values, no control flow. Computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sv_pipeline.ids import UInt64Array

__all__ = ["Cut", "Preview", "Refusal", "Refused", "SharedRepresentative", "SupervoxelSplitRequired"]


class Refusal(StrEnum):
    """Why there is no cut."""

    NO_POINTS = "no_points"
    """One side has no supervoxel."""
    BACKGROUND = "background"
    """A point is on no supervoxel (id 0)."""
    SHARED_SUPERVOXEL = "shared_supervoxel"
    """Both sides have points on one supervoxel, and supervoxels may not be split."""
    NOT_IN_REGION = "not_in_region"
    """A point's supervoxel has no edge in the region."""
    NOT_CONNECTED = "not_connected"
    """Sources and sinks are not connected inside the region: nothing to cut there."""
    SIDE_NOT_CONNECTED = "side_not_connected"
    """The points of one side are not connected to each other without a supervoxel of the other side."""
    PATHS_CROSS = "paths_cross"
    """The paths that join the points of each side cannot be kept apart from those of the other."""
    SIDE_FALLS_APART = "side_falls_apart"
    """The cheapest cut separates points of one side from each other."""
    ISOLATING_CUT = "isolating_cut"
    """The cheapest cut cuts off nothing but the points of one side."""


@dataclass(frozen=True, eq=False)
class Cut:
    """The edges to remove, and what the region falls into without them."""

    removed_edges: UInt64Array
    """Pairs of supervoxels, shape (m, 2), unique and sorted; both directions of an edge that is listed in both."""
    source_side: UInt64Array
    """Supervoxels of the region that stay with the sources, sorted."""
    sink_side: UInt64Array
    """Supervoxels of the region that stay with the sinks, sorted."""
    rest: tuple[UInt64Array, ...]
    """Components of the region with no point of either side, each sorted; they hang on outside of the region."""
    weight: float
    """Sum of the affinities of all rows of the local graph that are cut."""


@dataclass(frozen=True, eq=False)
class SharedRepresentative:
    """Supervoxels that no cut of edges can part, with points of both sides on them."""

    representative: int
    """Smallest of the members."""
    members: UInt64Array
    """Supervoxels joined by edges of affinity inf, sorted."""
    sources: UInt64Array
    """Source points among the members."""
    sinks: UInt64Array
    """Sink points among the members."""


@dataclass(frozen=True, eq=False)
class SupervoxelSplitRequired:
    """Both sides meet in supervoxels: these must be split voxel by voxel before edges can be cut."""

    shared: tuple[SharedRepresentative, ...]
    """At least one, sorted by representative."""

    @property
    def message(self) -> str:
        """What was found, for a log or a user."""
        names = ", ".join(str(shared.representative) for shared in self.shared)
        return f"sources and sinks have points on the same supervoxels, which must be split first: {names}."


@dataclass(frozen=True, eq=False)
class Refused:
    """No cut, and why: something that the user can change."""

    reason: Refusal
    message: str
    """Names the thing and the remedy."""
    supervoxels: UInt64Array
    """Whom the reason is about (may be empty)."""


@dataclass(frozen=True, eq=False)
class Preview:
    """A cut as it would be made, also where it would be refused."""

    cut: Cut
    refused: Refused | None
    """What :func:`~sv_pipeline.algorithms.multicut.cut.multicut` says instead of the cut, if it does not allow it."""

    @property
    def illegal(self) -> bool:
        """Whether the cut would be refused."""
        return self.refused is not None

    @property
    def components(self) -> tuple[UInt64Array, ...]:
        """Source side, sink side, then the rest."""
        return (self.cut.source_side, self.cut.sink_side, *self.cut.rest)
