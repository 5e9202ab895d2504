"""Reports what the fork of a graph stores and uses, prunes its history by its policy, and collects its garbage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sv_pipeline.registry import Dataset
from sv_pipeline.retention import Retention
from sv_pipeline.segmentation.fork.garbage import Collected, Needs, Pruned, Usage, collect, prune, usage
from sv_pipeline.upkeep.work_in_progress import needs_of_operations

__all__ = ["GarbageReport", "clean_up", "garbage_of"]


@dataclass(frozen=True)
class GarbageReport:
    """The files of a fork, and what was done about them."""

    usage: Usage
    """The state now; after a collection, the state after it."""
    pruned: Pruned | None = None
    """What was pruned; None if nothing was to be changed."""
    collected: Collected | None = None
    """What was deleted; None if nothing was to be changed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        found = asdict(self)
        found["usage"]["beside_bytes"] = self.usage.beside_bytes
        return found

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers to follow over time."""
        names = ("generations", "stored_files", "stored_bytes", "latest_bytes", "policy_bytes", "reachable_bytes")
        more = ("orphan_files", "orphan_bytes", "collectable_bytes", "beside_bytes")
        return {name: getattr(self.usage, name) for name in names + more}

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        use = self.usage
        begins = "" if use.oldest_time is None else f", of {_moment(use.oldest_time)}"
        unused = f"{_size(use.orphan_bytes)} in {use.orphan_files} files"
        found = [
            f"graph {use.graph_id}: keeps {use.policy}",
            f"history     {use.generations} generations, from {use.oldest}{begins}, to {use.latest}",
            f"stored      {_size(use.stored_bytes)} in {use.stored_files} files",
            f"latest      {_size(use.latest_bytes)} of it are used by the latest generation",
            f"reachable   {_size(use.reachable_bytes)} are used by a generation that can be read",
            f"unused      {unused}; {_size(use.collectable_bytes)} have been unused long enough to be deleted",
            f"beside      {_size(use.beside_bytes)} are unused, in files of which other bytes are used",
        ]
        if self.pruned is None:
            found += self._outlook()
        else:
            why = self.pruned.why_not or _held(self.pruned.horizon.held_by)
            found.append(f"pruned      {self.pruned.removed} generations{f' ({why})' if why else ''}")
        if self.collected is not None:
            waiting = f"{self.collected.waiting} more wait for the grace period" if self.collected.waiting else ""
            why = self.collected.why_not or waiting
            deleted = f"deleted     {self.collected.files} files of {_size(self.collected.bytes)}"
            found.append(deleted + (f" ({why})" if why else ""))
        return found

    def _outlook(self) -> list[str]:
        use = self.usage
        if use.unclear:
            return [f"policy      nothing can be removed now: {'; '.join(use.unclear)}"]
        if use.horizon.generation <= use.oldest:
            held = _held(use.horizon.held_by)
            return [f"policy      nothing would be pruned{f' ({held})' if held else ''}"]
        first, left = use.horizon.generation, _size(use.bytes_after)
        return [
            f"policy      the history would begin with generation {first}; about {left} would be left",
            "            Earlier moments could not be viewed any more. Every edit could still be undone.",
        ]


def garbage_of(dataset: Dataset, *, policy: Retention | None = None, grace: timedelta | None = None) -> GarbageReport:
    """Report what the fork of a graph stores and uses, and what a clean-up would remove. Nothing is removed.

    Parameters
    ----------
    policy
        Policy; default: that of the graph's configuration.
    grace
        Grace period; default: that of the policy. Danger: commits and reads of other processes that take longer fail.

    Raises
    ------
    NotFoundError
        If the graph has no fork.
    ConflictError
        If the graph's voxels are the base itself.
    ConfigError
        If the storage does not tell the age of files.
    """
    policy, needs = _of(dataset, policy, grace, note=False)
    return GarbageReport(usage(dataset.fork, policy, needs, grace=grace))


def clean_up(dataset: Dataset, *, policy: Retention | None = None, grace: timedelta | None = None) -> GarbageReport:
    """Prune the history of a graph's fork by its policy, then delete its files that nothing refers to.

    It may run beside edits, readers and other clean-ups, and may be killed at any time. The parameters and errors are
    those of `garbage_of`.
    """
    policy, needs = _of(dataset, policy, grace, note=True)
    pruned = prune(dataset.fork, policy, needs, grace=grace)
    collected = collect(dataset.fork, policy, needs, grace=grace)
    return GarbageReport(usage(dataset.fork, policy, needs, grace=grace), pruned, collected)


def _of(
    dataset: Dataset, policy: Retention | None, grace: timedelta | None, *, note: bool
) -> tuple[Retention, Callable[[], Needs]]:
    policy = dataset.config.retention if policy is None else policy
    margin = policy.grace if grace is None else grace
    return policy, lambda: needs_of_operations(dataset, margin, note=note)


def _held(why: tuple[str, ...]) -> str:
    return f"kept for: {', '.join(why)}" if why else ""


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.2f} MB"


def _moment(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
