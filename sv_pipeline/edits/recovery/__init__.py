"""Recovery: edits whose process died are found, proven to be dead, taken back, and made again. Knows no Dagster."""

from sv_pipeline.edits.recovery.claiming import Claim, claim, take_up
from sv_pipeline.edits.recovery.errors import NotStuckError, RecoveryStoppedError
from sv_pipeline.edits.recovery.heal import heal_rows, recover
from sv_pipeline.edits.recovery.orphans import release_orphans
from sv_pipeline.edits.recovery.report import RecoveryReport
from sv_pipeline.edits.recovery.scan import all_unfinished, list_stuck
from sv_pipeline.edits.recovery.unfinished import Unfinished, find_unfinished

__all__ = [
    "Claim",
    "NotStuckError",
    "RecoveryReport",
    "RecoveryStoppedError",
    "Unfinished",
    "all_unfinished",
    "claim",
    "find_unfinished",
    "heal_rows",
    "list_stuck",
    "recover",
    "release_orphans",
    "take_up",
]
