"""Why an operation is not recovered. Decides nothing."""

from __future__ import annotations

from sv_pipeline.errors import SvPipelineError

__all__ = ["FinishedError", "NotStuckError", "RecoveryStoppedError"]


class NotStuckError(SvPipelineError):
    """There is nothing to recover: it is finished, its owner lives, or somebody else recovers it. Not a failure."""

    kind = "not_stuck"


class FinishedError(NotStuckError):
    """The operation has come to its end already.

    Parameters
    ----------
    message
        What is wrong, as for every error.
    complete
        Whether its edit is made; if not, it has ended without effect.
    """

    def __init__(self, message: str, *, complete: bool = False) -> None:
        super().__init__(message)
        self.complete = complete


class RecoveryStoppedError(SvPipelineError):
    """What is stored does not fit the operation, so nothing is touched: a person has to look at it."""

    kind = "recovery_stopped"
