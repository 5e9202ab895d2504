"""The results of a verification as values: findings, results of checks, and the report. This module checks nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sv_pipeline.verify.confidence import Confidence
from sv_pipeline.wording import counted

__all__ = ["CheckResult", "Finding", "Outcome", "Severity", "VerifyReport"]

Severity = Literal["error", "foreign", "warning"]


@dataclass(frozen=True)
class Finding:
    """One kind of fault, with the first place where it was found."""

    check: str
    """Name of the check."""
    severity: Severity
    """Only errors make a check fail. ``foreign`` findings are about data that other software wrote in another form,
    which can be read and converted to ours (`sv-pipeline mend`)."""
    message: str
    """The fault, and how to repair it."""
    place: str
    """First place: a node id, a chunk coordinate, a voxel ``mip m x,y,z``, a row key, a file."""
    count: int
    """Number of places that have this fault."""

    def __str__(self) -> str:
        more = f" (and {self.count - 1} more)" if self.count > 1 else ""
        return f"{self.place}: {self.message}{more}"


Owns = Callable[[npt.NDArray[np.uint64]], npt.NDArray[np.bool_]]
Order = tuple[int, ...]


@dataclass
class Outcome:
    """Mutable collector for the findings of one check while it runs."""

    check: str
    checked: int = 0
    """Number of things looked at; `CheckResult.unit` says what they are."""
    findings: list[Finding] = field(default_factory=list)
    skipped: str | None = None
    """Why there was nothing to check."""
    population: int | None = None
    """Number of things of which a sample was looked at, or all; None if the check does not count them."""
    damaged: int = 0
    """Number of things looked at that have an error."""
    blocked: str | None = None
    """Why the check could not be run, if a fault that another check reports made it impossible."""
    owns: Owns | None = None
    """Whether each id belongs to the part of the graph that is checked; only such ids are reported. None = all do."""
    kinds: list[str] = field(default_factory=list)
    """For each finding, the fault without the ids that its message names."""
    orders: list[Order] = field(default_factory=list)
    """For each finding, the position of its place; the finding of several parts names the lowest."""

    def error(self, message: str, place: object, count: int = 1, *, kind: str = "", order: Order = ()) -> None:
        """Record a fault that makes the check fail.

        Parameters
        ----------
        message, place, count
            The same as in `Finding`.
        kind
            The fault without ids, if the message names any: findings of one kind are one finding.
        order
            Position of the place among all places.
        """
        self.add(Finding(self.check, "error", message, str(place), count), kind, order)

    def warning(self, message: str, place: object, count: int = 1, *, order: Order = ()) -> None:
        """Record something unusual that breaks no invariant."""
        self.add(Finding(self.check, "warning", message, str(place), count), "", order)

    def foreign(self, message: str, place: object, count: int = 1, *, order: Order = ()) -> None:
        """Record data that other software wrote in another form, which can be read."""
        self.add(Finding(self.check, "foreign", message, str(place), count), "", order)

    def add(self, finding: Finding, kind: str = "", order: Order = ()) -> None:
        """Record a finding, or add its count to that of the finding of the same severity and kind."""
        kind = kind or finding.message
        for i, known in enumerate(self.findings):
            if (known.severity, self.kinds[i]) == (finding.severity, kind):
                first = finding if order and order < self.orders[i] else known
                self.findings[i] = replace(first, count=known.count + finding.count)
                self.orders[i] = min(order, self.orders[i]) if order else self.orders[i]
                return
        self.findings.append(finding)
        self.kinds.append(kind)
        self.orders.append(order)

    def include(self, other: Outcome) -> None:
        """Add what the same check found in another part of the graph."""
        self.checked += other.checked
        self.damaged += other.damaged
        self.population = other.population if other.population is not None else self.population
        self.skipped, self.blocked = self.skipped or other.skipped, self.blocked or other.blocked
        for finding, kind, order in zip(other.findings, other.kinds, other.orders, strict=True):
            self.add(finding, kind, order)

    def drop(self, kind: str) -> None:
        """Remove the findings of one kind."""
        kept = [i for i, known in enumerate(self.kinds) if known != kind]
        self.findings = [self.findings[i] for i in kept]
        self.kinds, self.orders = [self.kinds[i] for i in kept], [self.orders[i] for i in kept]

    def mine(self, ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Whether each id, shape (n,), belongs to the part of the graph that is checked."""
        return np.ones(len(ids), np.bool_) if self.owns is None else self.owns(ids)

    @property
    def has_errors(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    name: str
    description: str
    passed: bool
    """True if the check found no error and was not blocked. A check with nothing to look at (``skipped``) passes."""
    checked: int
    unit: str
    """Unit of ``checked``, such as nodes or blocks."""
    findings: tuple[Finding, ...]
    seconds: float
    skipped: str | None = None
    """Why the check did not run: there is nothing to check (it passes), or another fault blocks it (it fails)."""
    population: int | None = None
    """Number of things of which ``checked`` were looked at, chosen at random; None if the check takes no sample."""
    damaged: int = 0
    """Number of things looked at that have an error, if the check takes samples."""

    @property
    def confidence(self) -> Confidence | None:
        """What a sample says about all things; None if everything was looked at, or nothing."""
        if self.population is None or not 0 < self.checked < self.population:
            return None
        return Confidence.of(self.population, self.checked, self.damaged)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that make the check fail."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def foreign(self) -> tuple[Finding, ...]:
        """Findings about data that other software wrote in another form, which can be read."""
        return tuple(finding for finding in self.findings if finding.severity == "foreign")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings about something unusual that breaks no invariant."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")


@dataclass(frozen=True)
class VerifyReport:
    """All checks of one graph."""

    graph_id: str
    results: tuple[CheckResult, ...]
    seconds: float
    sample: int | None = None
    """Number of chunks that the voxel checks were limited to; None = all."""

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(result.passed for result in self.results)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, errors first."""
        every = (finding for result in self.results for finding in result.findings)
        return tuple(sorted(every, key=lambda finding: finding.severity != "error"))

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that found errors; blocked checks are not among them."""
        return tuple(result.name for result in self.results if result.errors)

    def __getitem__(self, name: str) -> CheckResult:
        """The result of one check."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values that can be written as JSON."""
        return {
            "graph_id": self.graph_id,
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            "sample": self.sample,
            "results": [
                {
                    **asdict(result),
                    "findings": [asdict(finding) for finding in result.findings],
                    "confidence": None if result.confidence is None else asdict(result.confidence),
                }
                for result in self.results
            ],
        }

    def summary(self) -> str:
        """Return the report as text: a verdict, then one line per check with its findings below it."""
        lines = [self._verdict()]
        width = max((len(result.name) for result in self.results), default=0)
        for result in self.results:
            lines.append(f"  {_mark(result):<8} {result.name:<{width}}  {_amount(result)}")
            lines += _indented(result.findings)
        return "\n".join(lines)

    def _verdict(self) -> str:
        broken = [result.name for result in self.results if not result.passed]
        warnings = sum(len(result.warnings) for result in self.results)
        passed = f"{len(self.results) - len(broken)} of {len(self.results)} checks passed"
        foreign = sum(finding.count for result in self.results for finding in result.foreign)
        tail = f", {counted(warnings, 'warning')}" if warnings else ""
        if foreign:
            tail += f", {foreign} written by other software in another form: can be normalised ('sv-pipeline mend')"
        scope = f", voxels of {self.sample} chunks only" if self.sample is not None else ""
        verdict = "is sound" if self.ok else "is NOT sound"
        return f"graph {self.graph_id} {verdict}: {passed}{tail} in {self.seconds:.1f} s{scope}"


def _mark(result: CheckResult) -> str:
    if result.skipped is not None:
        return "skipped" if result.passed else "blocked"
    if not result.passed:
        return "FAILED"
    if result.foreign:
        return "foreign"
    return "warning" if result.warnings else "ok"


def _amount(result: CheckResult) -> str:
    if result.skipped is not None:
        return result.skipped
    confidence = result.confidence
    of = "" if confidence is None else f" of {result.population:,}"
    sure = "" if confidence is None else f"; {confidence.text(result.unit)}"
    return f"{result.checked:,}{of} {result.unit} in {result.seconds:.2f} s: {result.description}{sure}"


def _indented(findings: Iterable[Finding]) -> list[str]:
    return [f"             {finding.severity}: {finding}" for finding in findings]
