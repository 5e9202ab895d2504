"""Runs the checks of rows and edges on all parts of a graph, and adds up what they find.

The parts of one stage are independent of each other. A part is verified again if a pointer or an edge leads into it
from a part that should not know it, which happens in damaged graphs only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from sv_pipeline.errors import SvPipelineError
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table.interface import Table
from sv_pipeline.verify import edge_checks
from sv_pipeline.verify.boundary import Boundary, Strays, join_boundaries
from sv_pipeline.verify.edge_file_checks import UNSYMMETRIC
from sv_pipeline.verify.gather import EdgeFolders
from sv_pipeline.verify.part import Division, Part
from sv_pipeline.verify.part_checks import ROW_CHECKS, PartResult, PartTask, check_part
from sv_pipeline.verify.report import Outcome

__all__ = ["Sweep", "SweepResult"]

ROUNDS = 8
"""Number of times that parts are verified again because of strays that the repetition brought to light."""


@dataclass
class SweepResult:
    """What all parts together found."""

    outcomes: dict[str, Outcome]
    failures: dict[str, SvPipelineError] = field(default_factory=dict)
    """Errors of reading, by the name of what cannot be read."""
    is_broken: bool = False
    """Whether an edge or component file cannot be read."""

    @property
    def is_sound(self) -> bool:
        """Whether parents and children agree everywhere, so that the checks of edges mean something."""
        return not self.outcomes["hierarchy"].has_errors


@dataclass
class Sweep:
    """The verification of rows and edges, part by part."""

    table: Table
    division: Division
    folders: Callable[[], EdgeFolders]
    names: Collection[str]
    """Names of checks, out of `ROW_CHECKS`."""
    advance: Callable[[int, int], None] | None = None
    """Called with (parts done, all parts)."""
    results: dict[str, PartResult] = field(default_factory=dict)

    def run(self) -> SweepResult:
        """Verify all parts."""
        stages = self.division.stages()
        parts = [part for stage in stages for part in stage]
        self._run_parts(stages, parts, Strays())
        known: set[tuple[int, ...]] = set()
        for _ in range(ROUNDS):
            strays = join_boundaries([self.results[part.key].boundary for part in parts]).strays
            now = _names(strays)
            if now <= known:
                break
            known |= now
            self._run_parts(stages, self._affected(parts, strays), strays)
        total = self._total(parts)
        self._check_suspects(total, parts, strays)
        return total

    def _run_parts(self, stages: Sequence[Sequence[Part]], parts: Sequence[Part], strays: Strays) -> None:
        wanted = {part.key for part in parts}
        done = 0
        for stage in stages:
            for part in stage:
                if part.key not in wanted:
                    continue
                self.results[part.key] = self._check(part, stages, strays)
                done += 1
                if self.advance is not None:
                    self.advance(done, len(wanted))

    def _check(
        self, part: Part, stages: Sequence[Sequence[Part]], strays: Strays, roots: UInt64Array | None = None
    ) -> PartResult:
        below, into = self._below(part, stages), self._into(part, strays)
        return check_part(PartTask(self.table, self.division, part, self.folders, self.names, below, into, roots))

    def _below(self, part: Part, stages: Sequence[Sequence[Part]]) -> Boundary:
        found = []
        for stage in stages:
            for lower in stage:
                if self.division.is_below(lower, part) and lower.key in self.results:
                    handed = self.results[lower.key].boundary
                    if lower.high != part.low:  # its edges were handed up to a stage in between
                        handed = Boundary(raised=handed.raised, undecided=handed.undecided)
                    found.append(handed)
        return join_boundaries(found)

    def _into(self, part: Part, strays: Strays) -> Strays:
        """Select the strays that lead into a part."""
        owns = self.division.owns
        edges = strays.edges
        inside = owns(part, edges.pairs.ravel()).reshape(-1, 2).any(axis=-1) & ~owns(part, edges.files)
        pointers = strays.pointers[owns(part, strays.pointers[:, 1])]
        return Strays(pointers, edges.take(np.asarray(inside & part.has_supervoxels)))

    def _affected(self, parts: Sequence[Part], strays: Strays) -> list[Part]:
        """Parts into which strays lead, and all parts above them."""
        hit = [part for part in parts if len(self._into(part, strays))]
        above = [part for part in parts if any(self.division.is_below(lower, part) for lower in hit)]
        return [part for part in parts if part in hit or part in above]

    def _total(self, parts: Sequence[Part]) -> SweepResult:
        total = SweepResult({name: Outcome(name) for name in {*ROW_CHECKS, "hierarchy"}})
        for part in parts:
            result = self.results[part.key]
            total.is_broken |= result.is_broken
            for name, error in result.failures.items():
                total.failures.setdefault(name, error)
            for name, outcome in result.outcomes.items():
                total.outcomes[name].include(outcome)
        if total.is_broken:
            total.outcomes["edge_files"].drop(UNSYMMETRIC)
        return total

    def _check_suspects(self, total: SweepResult, parts: Sequence[Part], strays: Strays) -> None:
        """Find out which roots are in pieces, among those with a node whose children are not connected."""
        suspects = join_boundaries([self.results[part.key].boundary for part in parts]).suspects
        if "connectivity" not in self.names or not len(suspects) or not total.is_sound or total.is_broken:
            return
        stages = self.division.stages()
        links, pieces = [np.zeros((0, 2), np.uint64)], [np.zeros((0, 2), np.uint64)]
        for part in stages[0]:
            found = self._check(part, stages, strays, np.unique(suspects)).pieces
            if found is not None:
                links.append(found[0])
                pieces.append(found[1])
        edge_checks.report_scattered_roots(
            total.outcomes["connectivity"], np.concatenate(links), np.concatenate(pieces)
        )


def _names(strays: Strays) -> set[tuple[int, ...]]:
    """One value for each stray."""
    edges = strays.edges
    pointers = {(int(a), int(b)) for a, b in strays.pointers}
    return pointers | {
        (int(a), int(b), int(kind), int(file))
        for (a, b), kind, file in zip(edges.pairs, edges.kinds, edges.files, strict=True)
    }
