"""A verification as a list of parts, each with its own result, which several processes may work on.

::

    first stage    rows and edges of chunks; shares of the blocks of voxels, base, fork's own chunks and mips; the
                   checks that are small
    later stages   rows of upper layers, and the root layer in ranges of ids; each needs the stage before it

This module does not know who runs the parts: the caller, a pool of processes, or the steps of a Dagster job.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from sv_pipeline.errors import SvPipelineError, UnavailableError
from sv_pipeline.ids import UInt64Array
from sv_pipeline.storage.wall import wall
from sv_pipeline.verify import gather, part_checks, pieces
from sv_pipeline.verify.blocks import Share
from sv_pipeline.verify.boundary import Boundary, Strays, join_boundaries
from sv_pipeline.verify.checks import ALL_CHECKS
from sv_pipeline.verify.dataset_under_test import Blocked, Subject, as_failure, cannot_be_read, unreadable
from sv_pipeline.verify.edge_file_checks import UNSYMMETRIC
from sv_pipeline.verify.gather import EdgeFolders
from sv_pipeline.verify.part import Division, Part
from sv_pipeline.verify.part_checks import EDGE_CHECKS, ROW_CHECKS, PartResult, PartTask, check_part
from sv_pipeline.verify.records import Records
from sv_pipeline.verify.report import CheckResult, Outcome, VerifyReport

__all__ = ["Plan", "Run", "Verification"]

logger = logging.getLogger(__name__)

ROUNDS = 8
"""Number of times that parts are verified again because of strays that the repetition brought to light."""

Run = Callable[["Verification", Sequence[str], Strays], None]
"""Runs parts of one stage, by their names, and puts their results into the records."""


@dataclass(frozen=True)
class Plan:
    """What is verified, and in which parts. Plans that are equal have the same parts with the same results."""

    graph_id: str
    checks: tuple[str, ...]
    sample: int | None = None
    seed: int = 0
    layers: tuple[int, ...] = ()
    cuts: tuple[int, ...] = ()
    """See `Division`."""
    shares: tuple[tuple[str, int], ...] = ()
    """Checks whose blocks are divided, and into how many shares."""
    state: str = ""
    """State of the graph, which changes with each edit and each new version of its voxels."""

    @property
    def is_one_part(self) -> bool:
        """Whether all nodes are one part, so that all fits into memory."""
        return not self.layers

    @property
    def key(self) -> str:
        """A name that only equal plans share."""
        return hashlib.blake2b(self.to_json(), digest_size=12).hexdigest()

    def to_json(self) -> bytes:
        """Return the plan as JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Plan:
        """Read what `to_json` returned."""
        values: dict[str, Any] = json.loads(data)
        for name in ("checks", "layers", "cuts"):
            values[name] = tuple(values[name])
        return cls(**values | {"shares": tuple((name, count) for name, count in values["shares"])})


@dataclass
class Verification:
    """The parts of a verification, and their results as far as they are known."""

    subject: Subject
    plan: Plan
    records: Records
    _named: set[str] = field(default_factory=set)
    """What could not be read and was named by a check, so that it blocks all others."""

    # -- parts ----------------------------------------------------------------------------------------------------

    @property
    def row_checks(self) -> list[str]:
        """The checks of rows and edges."""
        return [name for name in self.plan.checks if name in ROW_CHECKS]

    @cached_property
    def division(self) -> Division:
        """The division of the nodes into parts."""
        return Division(self.subject.layout, self.subject.grid, self.plan.layers, self.plan.cuts)

    @cached_property
    def row_stages(self) -> list[list[Part]]:
        """The parts of rows and edges."""
        return self.division.stages() if self.row_checks else []

    def _divided(self) -> list[list[Part]]:
        """Return `row_stages`, or nothing if meta or watershed cannot be read; `report` says so then."""
        try:
            return self.row_stages
        except UnavailableError:
            raise
        except (SvPipelineError, Blocked):
            return []

    @cached_property
    def _parts(self) -> dict[str, Part]:
        return {part.key: part for stage in self.row_stages for part in stage}

    @cached_property
    def _shares(self) -> dict[str, tuple[str, Share]]:
        counts = dict(self.plan.shares)
        return {
            f"{name}_{number}_of_{counts.get(name, 1)}": (name, Share(number, counts.get(name, 1)))
            for name in self.plan.checks
            if name not in ROW_CHECKS
            for number in range(counts.get(name, 1))
        }

    def stages(self) -> list[list[str]]:
        """Return the names of the parts of each stage. Those of one stage are independent of each other."""
        rows = [[part.key for part in stage] for stage in self._divided()]
        first = (rows[0] if rows else []) + list(self._shares)
        return [stage for stage in (first, *rows[1:]) if stage]

    # -- running one ----------------------------------------------------------------------------------------------

    def run_part(
        self, name: str, strays: Strays | None = None, within: Callable[[int, int], None] | None = None
    ) -> None:
        """Verify one part, and record the result.

        Parameters
        ----------
        name
            Name of the part.
        strays
            What leads from parts into others that do not expect it.
        within
            Called with (steps done, all steps) while the part is verified.
        """
        started = time.monotonic()
        with wall():
            if name in self._shares:
                result = self._run_share(*self._shares[name], within)
            else:
                result = self._check(self._parts[name], strays or Strays())
        result.seconds = time.monotonic() - started
        self.records.put(name, result)

    def _run_share(self, name: str, share: Share, within: Callable[[int, int], None] | None) -> PartResult:
        outcome, result = Outcome(name), PartResult()
        subject = self.subject
        subject.share, subject.advance = share, within
        subject.forget_failures()
        run = ALL_CHECKS[name].run
        assert run is not None
        try:
            with wall():
                run(subject, outcome)
        except Blocked as reason:
            outcome.blocked = str(reason)
        except UnavailableError:
            raise
        except SvPipelineError as error:
            result.failures[unreadable(error)] = error
        result.outcomes[name] = outcome
        return result

    def _check(self, part: Part, strays: Strays, roots: UInt64Array | None = None) -> PartResult:
        def folders() -> EdgeFolders:
            return EdgeFolders(*self.subject.edge_folders)

        below, into = self._below(part), self._into(part, strays)
        return check_part(
            PartTask(self.subject.table, self.division, part, folders, self.row_checks, below, into, roots)
        )

    def _below(self, part: Part) -> Boundary:
        """What parts below hand up to a part; of each, only what concerns the part is kept."""
        found = []
        for lower in self.division.parts_below(part):
            handed = self.records.boundary(lower.key)
            if lower.high != part.low:  # its edges were handed up to a stage in between
                handed = replace(handed, edges=Boundary().edges)
            mine = gather.own_below(self.division, part, handed)
            found.append(replace(mine, suspects=Boundary().suspects, strays=Strays()))
        return join_boundaries(found)

    def _into(self, part: Part, strays: Strays) -> Strays:
        """Select the strays that lead into a part."""
        owns = self.division.owns
        edges = strays.edges
        inside = owns(part, edges.pairs.ravel()).reshape(-1, 2).any(axis=-1) & ~owns(part, edges.files)
        pointers = strays.pointers[owns(part, strays.pointers[:, 1])]
        return Strays(pointers, edges.take(np.asarray(inside & part.has_supervoxels)))

    # -- running all ----------------------------------------------------------------------------------------------

    def run(self, run: Run, state: Callable[[], str] | None = None) -> None:
        """Verify all parts that have no result yet.

        Parameters
        ----------
        run
            Runs parts of one stage.
        state
            Returns the state of the graph (see `Plan`). If it has changed since the plan was made, parts that found
            something are verified again with those around them, until they find nothing or the state stays the same.
        """
        for stage in self.stages():
            done = self.records.done()
            if missing := [name for name in stage if name not in done]:
                run(self, missing, Strays())
        self.repeat_affected(run)
        known = self.plan.state
        for _ in range(ROUNDS if state is not None else 0):
            assert state is not None
            faulty, now = self._faulty(), state()
            if not faulty or now == known:
                return
            logger.info("graph %s was edited: %d parts are verified again", self.plan.graph_id, len(faulty))
            known = now
            for stage in self.stages():
                if some := [name for name in stage if name in faulty]:
                    run(self, some, Strays())
            self.repeat_affected(run)

    def forget_faults(self) -> None:
        """Remove the results that found something, which may have been repaired since; those without faults stay."""
        known = self.records.done()
        self.records.forget(known & self._with_dependents({name for name in known if self.records.is_doubtful(name)}))

    def _faulty(self) -> set[str]:
        """Parts that found an error, and those that depend on them."""
        return self._with_dependents({n for some in self.stages() for n in some if self.records.findings(n).has_errors})

    def _with_dependents(self, found: set[str]) -> set[str]:
        """Parts, and if they are of rows, the parts that hand something up to them, and all parts above."""
        parts = [part for stage in self._divided() for part in stage]
        rows = [part for part in parts if part.key in found]
        below = [part for part in parts if any(self.division.is_below(part, upper) for upper in rows)]
        touched = {part.key for part in (*rows, *below)}
        above = {
            part.key
            for part in parts
            if any(self.division.is_below(lower, part) for lower in parts if lower.key in touched)
        }
        return found | touched | above

    def repeat_affected(self, run: Run) -> None:
        """Verify those parts again into which strays lead, and the parts above them."""
        known: set[tuple[int, ...]] = set()
        for _ in range(ROUNDS if self._divided() else 0):
            strays = self._strays()
            now = _names(strays)
            if now <= known:
                return
            known |= now
            affected = self._affected(strays)
            for stage in self.row_stages:
                if some := [part.key for part in stage if part.key in affected]:
                    run(self, some, strays)

    def _results(self) -> Iterable[tuple[Part, PartResult]]:
        return ((part, self.records.findings(part.key)) for part in self._parts.values())

    def _strays(self) -> Strays:
        some = [self.records.boundary(part.key) for part, result in self._results() if result.strays]
        return join_boundaries(some).strays

    def _affected(self, strays: Strays) -> set[str]:
        """Parts into which strays lead, and all parts above them."""
        parts = list(self._parts.values())
        hit = [part for part in parts if len(self._into(part, strays))]
        above = {part.key for part in parts if any(self.division.is_below(lower, part) for lower in hit)}
        return {part.key for part in hit} | above

    # -- what they found ------------------------------------------------------------------------------------------

    def report(self, seconds: float) -> VerifyReport:
        """Add up the results of all parts."""
        results = tuple(self._result(name) for name in self.plan.checks)
        return VerifyReport(self.plan.graph_id, results, seconds, self.plan.sample)

    def _result(self, name: str) -> CheckResult:
        check, subject = ALL_CHECKS[name], self.subject
        outcome = Outcome(name)
        started = time.monotonic()
        seconds = 0.0
        subject.forget_failures()
        try:
            with wall():
                if name in ROW_CHECKS:
                    seconds = self._rows.seconds / max(len(self.row_checks), 1)
                    outcome.include(self._outcome_of_rows(name))
                else:
                    seconds = self._include_shares(outcome)
        except Blocked as reason:
            outcome.blocked = str(reason)
        except UnavailableError:
            raise
        except SvPipelineError as error:
            outcome = Outcome(name)
            of = unreadable(error)
            if of in self._named:
                outcome.blocked = cannot_be_read(of)
            else:
                self._named |= {of} - {""}
                outcome.error(str(error), f"graph {subject.fork.graph_id}")
        seconds += time.monotonic() - started
        passed = not outcome.has_errors and outcome.blocked is None
        words = "passed" if passed else "FAILED"
        logger.info("check %s of graph %s: %s in %.2f s", name, self.plan.graph_id, words, seconds)
        return CheckResult(
            name,
            check.description,
            passed,
            outcome.checked,
            check.unit,
            tuple(outcome.findings),
            seconds,
            outcome.blocked or outcome.skipped,
            outcome.population,
            outcome.damaged,
        )

    def _include_shares(self, outcome: Outcome) -> float:
        seconds = 0.0
        for key, (name, _) in self._shares.items():
            if name == outcome.check:
                result = self.records.findings(key)
                seconds += result.seconds
                for of, error in result.failures.items():
                    raise as_failure(error, of)
                outcome.include(result.outcomes[name])
        return seconds

    def _outcome_of_rows(self, name: str) -> Outcome:
        rows = self._rows
        for of in part_checks.needs(name):
            if of == part_checks.EDGES and name in EDGE_CHECKS and rows.outcomes["hierarchy"].has_errors:
                raise Blocked("blocked by faults of the hierarchy: without it no ancestor is certain")
            if of in rows.failures:
                raise as_failure(rows.failures[of], of)
        if name in EDGE_CHECKS and rows.is_broken:
            raise Blocked("blocked by edge or component files that cannot be read (check edge_files)")
        return rows.outcomes[name]

    @cached_property
    def _rows(self) -> PartResult:
        """What the checks of rows and edges found in all parts."""
        total = PartResult({name: Outcome(name) for name in {*self.row_checks, "hierarchy"}})
        for _, result in self._results():
            total.is_broken |= result.is_broken
            total.seconds += result.seconds
            total.suspects += result.suspects
            for of, error in result.failures.items():
                total.failures.setdefault(of, error)
            for name, outcome in result.outcomes.items():
                total.outcomes[name].include(outcome)
        if total.is_broken and "edge_files" in total.outcomes:
            total.outcomes["edge_files"].drop(UNSYMMETRIC)
        is_certain = not total.outcomes["hierarchy"].has_errors and not total.is_broken and not total.failures
        if is_certain and total.suspects and "connectivity" in self.row_checks:
            self._check_suspects(total.outcomes["connectivity"])
        return total

    def _check_suspects(self, outcome: Outcome) -> None:
        """Find out which roots are in pieces, among those with a node whose children are not connected."""
        some = [self.records.boundary(part.key) for part, result in self._results() if result.suspects]
        roots, strays = np.unique(join_boundaries(some).suspects), self._strays()
        found = [self._check(part, strays, roots).pieces for part in self.row_stages[0]]
        pieces.report_scattered_roots(outcome, [one for one in found if one is not None])


def _names(strays: Strays) -> set[tuple[int, ...]]:
    """One value for each stray."""
    edges = strays.edges
    pointers = {(int(a), int(b)) for a, b in strays.pointers}
    return pointers | {
        (int(a), int(b), int(kind), int(file))
        for (a, b), kind, file in zip(edges.pairs, edges.kinds, edges.files, strict=True)
    }
