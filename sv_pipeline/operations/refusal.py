"""Reasons for refusing an edit: their codes, and the error that carries one. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from sv_pipeline.errors import InputError, SvPipelineError

__all__ = ["EditRefused", "OwnershipLostError", "Reason", "bad_request"]


class Reason(StrEnum):
    """Reasons for a refusal; those of a minimum cut are in :class:`~sv_pipeline.algorithms.multicut.cut.Refusal`."""

    NO_POINTS = "no_points"
    """One side has no points."""
    BACKGROUND = "background"
    """A point is on the background (id 0)."""
    NOT_A_SUPERVOXEL = "not_a_supervoxel"
    """An id is not of layer 1."""
    NOT_FOUND = "not_found"
    """An id is not in the graph, or was replaced by a split."""
    OUTSIDE = "outside"
    """A point is outside the volume."""
    SAME_POINT = "same_point"
    """A supervoxel is named on both sides."""
    TOO_MANY_POINTS = "too_many_points"
    """The request has more points than an edit by a person has."""
    TOO_FAR = "too_far"
    """Points are too far from each other."""
    BAD_REQUEST = "bad_request"
    """The request is malformed: arrays do not fit together, the user is empty, and the like."""
    READ_ONLY = "read_only"
    """The graph must not be changed; not even the row of an operation is written."""
    SAME_ROOT = "same_root"
    """A merge names points that are on one object already."""
    SEVERAL_ROOTS = "several_roots"
    """Points that must be on one object are on several."""
    NOT_CONNECTED = "not_connected"
    """Points of one side of a merge are not connected inside the region."""
    STILL_CONNECTED = "still_connected"
    """The two parts would stay one object, connected by a path around the cut; the message names a place on it."""
    SUPERVOXEL_SPLIT_REQUIRED = "supervoxel_split_required"
    """Both sides are on one supervoxel, and the request or the graph does not allow to split it."""
    VOXEL_CUT = "voxel_cut"
    """The voxels of a supervoxel cannot be cut between these points."""
    TOO_LARGE = "too_large"
    """The voxels that a supervoxel split has to read do not fit into the memory that it may use."""
    RESTORED_APART = "restored_apart"
    """The table and the fork are from different days, or of different graphs."""
    LOCKED = "locked"
    """Another operation has locked an object."""
    OVERLAPPED = "overlapped"
    """Later operations, which the message names, have changed what would be undone."""
    NOTHING_TO_UNDO = "nothing_to_undo"
    """The operation cannot be undone or redone, or that would change nothing."""


class EditRefused(SvPipelineError):  # noqa: N818 - a refusal is an outcome
    """An edit was not made, for a reason that the user can change. Nothing was written except the operation's row.

    Parameters
    ----------
    reason
        Stable code: a :class:`Reason` or a :class:`~sv_pipeline.algorithms.multicut.cut.Refusal`.
    message, remedy, repeat
        See `SvPipelineError`.
    """

    kind = "edit_refused"

    def __init__(self, reason: StrEnum, message: str, *, remedy: str | None = None, repeat: str | None = None) -> None:
        self.reason = reason
        super().__init__(message, remedy=remedy, repeat=repeat)


@contextmanager
def bad_request() -> Iterator[None]:
    """Refuse an edit or a query whose arguments cannot be parsed."""
    try:
        yield
    except InputError as error:
        raise EditRefused(Reason.BAD_REQUEST, error.message, remedy=error.remedy) from error


class OwnershipLostError(SvPipelineError):
    """An edit has lost its locks and stops. The process that holds them continues or recovers the operation."""

    kind = "ownership_lost"
