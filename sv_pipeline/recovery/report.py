"""The report of a recovery, for a terminal, the page of a run, and scripts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sv_pipeline.recovery.cleanup import Cleanup
from sv_pipeline.recovery.replay import Replay

__all__ = ["RecoveryReport"]


@dataclass(frozen=True)
class RecoveryReport:
    """What one recovery found and did."""

    graph_id: str
    operation_id: int
    kind: str
    user: str
    state: str
    """State of the operation when it was claimed; see `assessment`."""
    attempt: int
    """Number of recoveries of this operation so far, including this one."""
    cleanup: Cleanup
    replay: Replay
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of each stage, in seconds."""
    proof: dict[str, Any] = field(default_factory=dict)
    """Results of the checks at the end."""

    def __str__(self) -> str:
        back = self.cleanup
        text = f"operation {self.operation_id} ({self.kind} of {self.user!r}) was {self.state}: "
        if back.boxes:
            text += f"{back.voxels:,} voxels of generation {back.generation} put back, "
        if back.cells:
            text += f"{back.cells:,} cells taken out, "
        return f"{text}{self.replay.outcome}{f' ({self.replay.text})' if self.replay.text else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a value for JSON."""
        edit = self.replay.edit
        return {
            "graph": self.graph_id,
            "operation": self.operation_id,
            "kind": self.kind,
            "user": self.user,
            "found": self.state,
            "attempt": self.attempt,
            "boxes_put_back": self.cleanup.boxes,
            "voxels_put_back": self.cleanup.voxels,
            "generation": self.cleanup.generation,
            "cells_taken_out": self.cleanup.cells,
            "outcome": self.replay.outcome,
            "reason": self.replay.text,
            "new_roots": [] if edit is None else edit.roots.tolist(),
            "logical_time": None if edit is None else edit.logical_time,
            "proof": self.proof,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }
