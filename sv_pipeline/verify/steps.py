"""A verification by parts in the steps of a workflow, which share nothing but the home folder and the graph.

::

    plan            begins the verification, or resumes one; the batches of the first stage
    run             verifies the parts of a batch that have no result yet
    plan_last       verifies the stages in between, which are small; the batches of the last stage
    finish          verifies what is missing, adds up, and removes the results

This module knows no workflow engine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sv_pipeline.errors import InputError, NotFoundError
from sv_pipeline.registry import Dataset
from sv_pipeline.storage import kv
from sv_pipeline.verify.beside_edits import brought_up_to_date
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline.verify.pool import FOLDER, begin, resume, state_of
from sv_pipeline.verify.report import VerifyReport
from sv_pipeline.verify.run import PartsDone, chosen_checks, run_here
from sv_pipeline.verify.verification import Verification

__all__ = ["BATCHES", "BatchOfParts", "VerificationSteps"]

BATCHES = 64
"""Largest number of batches of one stage."""
_KEY = re.compile(r"stage(\d+)_(\d+)_of_(\d+)")


@dataclass(frozen=True)
class BatchOfParts:
    """What one step has verified."""

    parts: int
    """Number of parts of the batch."""
    verified: int
    """Number of parts that had no result before."""
    faults: int
    """Number of kinds of errors that the parts found."""
    seconds: float


@dataclass(frozen=True)
class VerificationSteps:
    """The steps of one verification.

    Parameters
    ----------
    dataset
        The graph.
    run_id
        Name of the run; a repetition of the run has the same name, and resumes it.
    """

    dataset: Dataset
    run_id: str

    @property
    def _folder(self) -> str:
        return kv.join_url(self.dataset.home, FOLDER, self.dataset.graph_id)

    @property
    def _verification(self) -> Verification:
        key = kv.read_bytes(self._folder, self.run_id)
        if key is None:
            raise NotFoundError(
                f"run {self.run_id} has no verification of graph {self.dataset.graph_id} that has not ended.",
                remedy="Start a new run.",
            )
        return resume(self.dataset, key.decode())

    def plan(self, checks: Sequence[str] | None = None, *, sample: int | None = None, seed: int = 0) -> list[str]:
        """Begin or resume the verification, and return the batches of its first stage."""
        verification = begin(self.dataset, chosen_checks(checks), sample=sample, seed=seed)
        kv.write_bytes(self._folder, self.run_id, verification.plan.key.encode())
        return _batches(verification, 0)

    def run(self, batch: str) -> BatchOfParts:
        """Verify the parts of a batch that have no result yet."""
        started, verification = time.monotonic(), self._verification
        names = _names_of(verification, batch)
        missing = [name for name in names if name not in verification.records.done()]
        for name in missing:
            verification.run_part(name)
        results = [verification.records.findings(name) for name in names]
        outcomes = [outcome for result in results for outcome in result.outcomes.values()]
        faults = sum(finding.severity == "error" for outcome in outcomes for finding in outcome.findings)
        faults += sum(len(result.failures) for result in results)
        return BatchOfParts(len(names), len(missing), faults, time.monotonic() - started)

    def plan_last(self) -> list[str]:
        """Verify what is left of all stages but the last, and return the batches of the last one."""
        verification = self._verification
        stages = verification.stages()
        done = verification.records.done()
        for name in (name for stage in stages[:-1] for name in stage if name not in done):
            verification.run_part(name)
        return _batches(verification, len(stages) - 1) if len(stages) > 1 else []

    def finish(self, told: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Verify what is left, and add up the results of all parts.

        If the graph was edited meanwhile, checks that found something are run again.

        Parameters
        ----------
        told
            Called with (steps done, all steps).
        """
        verification = self._verification
        verification.run(run_here(PartsDone(told, verification)), lambda: state_of(self.dataset))
        report = verification.report(0.0)
        failed = [result.name for result in report.results if not result.passed]
        if failed and state_of(self.dataset) != verification.plan.state:
            plan = verification.plan
            newer = verify_dataset(self.dataset, checks=failed, sample=plan.sample, seed=plan.seed)
            report = brought_up_to_date(report, newer)
        verification.records.clear()
        kv.delete_key(self._folder, self.run_id)
        return report


def _batches(verification: Verification, stage: int) -> list[str]:
    stages = verification.stages()
    count = min(BATCHES, len(stages[stage])) if stages else 0
    return [f"stage{stage}_{number}_of_{count}" for number in range(count)]


def _names_of(verification: Verification, batch: str) -> list[str]:
    found = _KEY.fullmatch(batch)
    if found is None:
        raise InputError(f"{batch!r} is not the name of a batch of a verification.")
    stage, number, count = (int(group) for group in found.groups())
    return verification.stages()[stage][number::count]
