"""Why an edit is refused: reason codes and the error that carries one. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from sv_pipeline.errors import InputError, SvPipelineError

__all__ = ["EditRefused", "OwnershipLostError", "Reason", "bad_request"]


class Reason(StrEnum):
    """What is wrong with a request. Those of a minimum cut: :class:`~sv_pipeline.algorithms.multicut.cut.Refusal`."""

    NO_POINTS = "no_points"
    """One side is empty."""
    BACKGROUND = "background"
    """A point is on no supervoxel (id 0)."""
    NOT_A_SUPERVOXEL = "not_a_supervoxel"
    """An id is of another layer than 1."""
    NOT_FOUND = "not_found"
    """An id is not in the graph, or was replaced by a split."""
    OUTSIDE = "outside"
    """A point is outside the volume."""
    SAME_POINT = "same_point"
    """A supervoxel is named on both sides."""
    TOO_MANY_POINTS = "too_many_points"
    """More points than an edit of a person has."""
    TOO_FAR = "too_far"
    """Points are too far from each other."""
    BAD_REQUEST = "bad_request"
    """Arrays that do not fit together, an empty user, and the like."""
    READ_ONLY = "read_only"
    """The graph is not to be changed; not even an operation's row is written."""
    SAME_ROOT = "same_root"
    """A merge of what is one object already."""
    SEVERAL_ROOTS = "several_roots"
    """Points that should be on one object are on several."""
    NOT_CONNECTED = "not_connected"
    """Points of one side of a merge are not connected inside the region."""
    STILL_CONNECTED = "still_connected"
    """What is to be parted stays one object by a way around the cut; names a place on that way."""
    SUPERVOXEL_SPLIT_REQUIRED = "supervoxel_split_required"
    """Both sides are on one supervoxel, and the request or the graph has not what it takes to split it."""
    VOXEL_CUT = "voxel_cut"
    """The voxels of a supervoxel cannot be cut between these points."""
    TOO_LARGE = "too_large"
    """The box of voxels that a supervoxel split has to read does not fit into the memory it may use."""
    RESTORED_APART = "restored_apart"
    """Table and fork are of different days, or of different graphs."""
    LOCKED = "locked"
    """Another operation holds an object."""
    OVERLAPPED = "overlapped"
    """Later operations have changed what is to be undone; names them."""
    NOTHING_TO_UNDO = "nothing_to_undo"
    """The operation cannot be undone or redone, or that would change nothing."""


class EditRefused(SvPipelineError):  # noqa: N818 - a refusal is an outcome
    """An edit that was not made, for a reason that the user can change; nothing was written but the operation's row.

    Parameters
    ----------
    reason
        Stable code: a :class:`Reason` or a :class:`~sv_pipeline.algorithms.multicut.cut.Refusal`.
    message, remedy, repeat
        What is wrong, and what to do.
    """

    kind = "edit_refused"

    def __init__(self, reason: StrEnum, message: str, *, remedy: str | None = None, repeat: str | None = None) -> None:
        self.reason = reason
        super().__init__(message, remedy=remedy, repeat=repeat)


@contextmanager
def bad_request() -> Iterator[None]:
    """Refuse an edit, or a question, whose arguments cannot be read."""
    try:
        yield
    except InputError as error:
        raise EditRefused(Reason.BAD_REQUEST, error.message, remedy=error.remedy) from error


class OwnershipLostError(SvPipelineError):
    """An edit found that its locks are no longer its own: it stops; whoever holds them goes on, or recovers it."""

    kind = "ownership_lost"
