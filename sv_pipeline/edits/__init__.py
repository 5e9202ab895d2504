"""Edits of a graph, from the request to the commit: merge, split, undo and redo. Does not depend on Dagster."""

from sv_pipeline.edits.as_of import milliseconds_of, segmentation_at
from sv_pipeline.edits.history import redo, undo
from sv_pipeline.edits.merging import MergePreview, merge, preview_merge
from sv_pipeline.edits.requests import MergeRequest, Points, SplitRequest
from sv_pipeline.edits.session import announced
from sv_pipeline.edits.splitting import SplitPreview, preview_split, split
from sv_pipeline.edits.write.commit import CommittedEdit
from sv_pipeline.edits.write.locking import LockPatience
from sv_pipeline.operations.refusal import EditRefused, OwnershipLostError, Reason
from sv_pipeline.operations.settled import SettledGraph, settled

__all__ = [
    "CommittedEdit",
    "EditRefused",
    "LockPatience",
    "MergePreview",
    "MergeRequest",
    "OwnershipLostError",
    "Points",
    "Reason",
    "SettledGraph",
    "SplitPreview",
    "SplitRequest",
    "announced",
    "merge",
    "milliseconds_of",
    "preview_merge",
    "preview_split",
    "redo",
    "segmentation_at",
    "settled",
    "split",
    "undo",
]
