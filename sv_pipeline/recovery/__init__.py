"""Recovery of unfinished edits: finds them, proves that they are dead, rolls them back and replays them. No Dagster."""

from sv_pipeline.operations.errors import FinishedError, NotStuckError, RecoveryStoppedError
from sv_pipeline.operations.unfinished import Unfinished, find_unfinished
from sv_pipeline.recovery.at_once import recover_all
from sv_pipeline.recovery.claiming import Claim, Watched, claim, take_up
from sv_pipeline.recovery.mend import MendReport, mend
from sv_pipeline.recovery.orphans import release_orphans
from sv_pipeline.recovery.report import RecoveryReport
from sv_pipeline.recovery.run import abandon, process_token, recover
from sv_pipeline.recovery.scan import all_unfinished, list_stuck

__all__ = [
    "Claim",
    "FinishedError",
    "MendReport",
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
    "mend",
    "process_token",
    "recover",
    "recover_all",
    "release_orphans",
    "take_up",
]
