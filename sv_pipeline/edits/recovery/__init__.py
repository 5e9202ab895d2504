"""Recovery: edits whose process died are found, proven to be dead, taken back, and made again. Knows no Dagster."""

from sv_pipeline.edits.recovery.claim import Claim, claim, take_up
from sv_pipeline.edits.recovery.errors import NotStuckError, RecoveryStoppedError
from sv_pipeline.edits.recovery.heal import heal_rows, recover
from sv_pipeline.edits.recovery.report import RecoveryReport
from sv_pipeline.edits.recovery.unfinished import Unfinished, find_unfinished

__all__ = [
    "Claim",
    "NotStuckError",
    "RecoveryReport",
    "RecoveryStoppedError",
    "Unfinished",
    "claim",
    "find_unfinished",
    "heal_rows",
    "recover",
    "take_up",
]
