"""Errors that tell why an operation is not recovered. Decides nothing."""

from __future__ import annotations

from sv_pipeline.errors import SvPipelineError

__all__ = ["FinishedError", "NotStuckError", "RecoveryStoppedError"]


class NotStuckError(SvPipelineError):
    """There is nothing to recover: the operation is finished, its owner lives, or another process recovers it.

    This is not a failure.
    """

    kind = "not_stuck"


class FinishedError(NotStuckError):
    """The operation is finished already.

    Parameters
    ----------
    message
        See `SvPipelineError`.
    complete
        Whether its edit was made; if not, it ended without effect.
    """

    def __init__(self, message: str, *, complete: bool = False) -> None:
        super().__init__(message)
        self.complete = complete


class RecoveryStoppedError(SvPipelineError):
    """The stored data does not fit the operation, so nothing is changed: a person has to look at it."""

    kind = "recovery_stopped"
