"""Runs a verification: all its parts in this process, or in several."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sv_pipeline.arguments import parse_callback, parse_count, parse_names
from sv_pipeline.errors import ConfigError, SvPipelineError, UnavailableError
from sv_pipeline.grid import Box
from sv_pipeline.memory import memory_budget
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.table.counters import last_operation_id
from sv_pipeline.table.interface import Table
from sv_pipeline.verify.boundary import Strays
from sv_pipeline.verify.checks import ALL_CHECKS, CHECKS
from sv_pipeline.verify.dataset_under_test import Blocked, Subject
from sv_pipeline.verify.divide import divide
from sv_pipeline.verify.part import Division
from sv_pipeline.verify.part_checks import ROW_CHECKS
from sv_pipeline.verify.records import Records
from sv_pipeline.verify.report import CheckResult, VerifyReport
from sv_pipeline.verify.verification import Plan, Run, Verification

__all__ = ["CHECKS", "CheckResult", "PartsDone", "VerifyReport", "chosen_checks", "make_plan", "run_here", "verify"]

STEPS_PER_PART = 100
"""Number of steps that the progress callback counts for each part."""
SHARE_VOXELS = 1 << 30
"""Number of voxels in one share of the blocks of a check."""
SHARE_OPERATIONS = 10_000
"""Number of operations whose storage chunks are one share."""
IN_BLOCKS = ("voxels", "base", "pyramid")
OF_OPERATIONS = ("digests", "lineage")


def verify(
    table: Table,
    fork: Fork,
    *,
    checks: Sequence[str] | None = None,
    sample: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
    within: Sequence[Box] | None = None,
    division: Division | None = None,
) -> VerifyReport:
    """Prove that a graph and its segmentation are sound. Nothing is changed.

    Parameters
    ----------
    table
        The graph's table.
    fork
        The graph's own version of the voxels; it may not exist.
    checks
        Names of the checks to run, out of :data:`CHECKS`; None = all.
    sample
        Number of chunks, chosen at random, whose voxels are checked (for the base and the mips: number of blocks);
        None = all.
    workers
        Number of threads that read and check voxels.
    progress
        Called with (steps done, all steps).
    seed
        Seed of the random choice of chunks.
    within
        Boxes in voxels of mip 0, to which the checks `digests` and `lineage` of the fork's own storage chunks are
        limited; None = everywhere.
    division
        The parts in which rows and edges are checked; None = as many as the memory budget asks for.

    Raises
    ------
    ConfigError
        If a name in ``checks`` is not the name of a check.
    InputError
        If an argument has the wrong type or value.
    UnavailableError
        If the storage or the table does not answer.
    """
    chosen = chosen_checks(checks)
    sample = None if sample is None else parse_count(sample, "number of chunks to look at", least=1)
    workers, seed = parse_count(workers, "number of workers", least=1), parse_count(seed, "seed")
    progress = parse_callback(progress, "progress")
    started = time.monotonic()
    subject = Subject(table, fork, sample, seed, workers, within=within)
    verification = Verification(subject, make_plan(subject, chosen, division), Records())
    verification.run(run_here(PartsDone(progress, verification)))
    return verification.report(time.monotonic() - started)


def chosen_checks(checks: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of checks in the order in which they are reported; ConfigError if one is unknown."""
    wanted = list(ALL_CHECKS) if checks is None else parse_names(checks, "checks")
    if unknown := sorted(set(wanted) - set(ALL_CHECKS)):
        raise ConfigError(f"there is no check {', '.join(unknown)}.", remedy=f"Checks are: {', '.join(ALL_CHECKS)}.")
    return tuple(name for name in ALL_CHECKS if name in set(wanted))


def make_plan(subject: Subject, checks: tuple[str, ...], division: Division | None = None, state: str = "") -> Plan:
    """Divide a verification into parts that fit the memory budget of one process.

    Parameters
    ----------
    subject
        The graph.
    checks
        Names of checks.
    division
        The division of the nodes; None = as the memory budget asks for.
    state
        See `Plan`.
    """
    sample, shares = subject.sample, []
    try:
        if division is None:
            division = division_for(subject, checks)
        if not division.is_whole:
            every = subject.grid.count(2)
            voxels = subject.grid.bounds.volume * min(sample or every, every) // every
            shares = [(name, 1 + voxels // SHARE_VOXELS) for name in IN_BLOCKS]
            operations = last_operation_id(subject.table)
            shares += [(name, 1 + operations // SHARE_OPERATIONS) for name in OF_OPERATIONS]
    except UnavailableError:
        raise
    except (SvPipelineError, Blocked):
        division = None  # meta, watershed or counters cannot be read, which the checks will name
    subject.forget_failures()
    layers, cuts = ((), ()) if division is None else (division.layers, division.cuts)
    wanted = tuple((name, count) for name, count in shares if name in checks)
    return Plan(subject.fork.graph_id, checks, sample, subject.seed, layers, cuts, wanted, state)


def division_for(subject: Subject, checks: Sequence[str]) -> Division:
    """Divide the nodes into parts that fit the memory budget, if any of the checks depends on their number."""
    if not {*ROW_CHECKS, *IN_BLOCKS} & set(checks):
        return Division(subject.layout, subject.grid)
    return divide(subject.table, subject.layout, subject.grid, memory_budget())


class PartsDone:
    """Counts the parts of a verification that are done, and tells a callback.

    Parameters
    ----------
    callback
        Called with (steps done, all steps).
    verification
        The verification; parts that have a result already count as done.
    """

    def __init__(self, callback: Callable[[int, int], None] | None, verification: Verification) -> None:
        self._callback = callback
        self._all = {name for stage in verification.stages() for name in stage}
        self._done = self._all & verification.records.done()

    def part_done(self, name: str) -> None:
        """Count a part."""
        self._done.add(name)
        self.within(0, 1)

    def within(self, done: int, total: int) -> None:
        """Tell how much of the part that runs in this process is done."""
        if self._callback is not None:
            rest = STEPS_PER_PART * done // max(total, 1) if len(self._done) < len(self._all) else 0
            self._callback(len(self._done) * STEPS_PER_PART + rest, len(self._all) * STEPS_PER_PART)


def run_here(progress: PartsDone) -> Run:
    """Return a function that runs parts one after the other in this process."""

    def run(verification: Verification, names: Sequence[str], strays: Strays) -> None:
        for name in names:
            verification.run_part(name, strays, progress.within)
            progress.part_done(name)

    return run
