"""Edits of a graph: merges and splits, from the request to the commit. Knows no Dagster."""

from sv_pipeline.edits.as_of import leaves_at, milliseconds_of, segmentation_at
from sv_pipeline.edits.history import redo, undo
from sv_pipeline.edits.merging import merge
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
    "MergeRequest",
    "OwnershipLostError",
    "Points",
    "Reason",
    "SettledGraph",
    "SplitPreview",
    "SplitRequest",
    "announced",
    "leaves_at",
    "merge",
    "milliseconds_of",
    "preview_split",
    "redo",
    "segmentation_at",
    "settled",
    "split",
    "undo",
]
