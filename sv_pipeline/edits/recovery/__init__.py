"""Recovery: edits whose process died are found, proven to be dead, taken back, and made again. Knows no Dagster."""

from sv_pipeline.edits.recovery.at_once import recover_all
from sv_pipeline.edits.recovery.claiming import Claim, Watched, claim, take_up
from sv_pipeline.edits.recovery.errors import FinishedError, NotStuckError, RecoveryStoppedError
from sv_pipeline.edits.recovery.heal import abandon, process_token, recover
from sv_pipeline.edits.recovery.orphans import release_orphans
from sv_pipeline.edits.recovery.report import RecoveryReport
from sv_pipeline.edits.recovery.scan import all_unfinished, list_stuck
from sv_pipeline.edits.recovery.unfinished import Unfinished, find_unfinished

__all__ = [
    "Claim",
    "FinishedError",
    "NotStuckError",
    "RecoveryReport",
    "RecoveryStoppedError",
    "Unfinished",
    "Watched",
    "abandon",
    "all_unfinished",
    "claim",
    "find_unfinished",
    "list_stuck",
    "process_token",
    "recover",
    "recover_all",
    "release_orphans",
    "take_up",
]
