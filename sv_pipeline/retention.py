"""The retention policy of a graph's voxels: how much of their history is kept. Decides; reads and deletes nothing.

In the dataset YAML of a graph::

    retention: {keep: forever}                       the default
    retention: {keep: 90 days}
    retention: {generations: 1000}
    retention: {keep: 90 days, generations: 1000}    what either of them keeps is kept
    retention: {keep: 90 days, grace: 6 hours}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, field_validator

from sv_pipeline.config_fields import Int

__all__ = ["Bound", "DatedGeneration", "Horizon", "Retention", "choose_horizon", "parse_period"]

SHORTEST_GRACE = timedelta(minutes=10)
LONGEST = timedelta(days=365_000)
_UNITS = {name: timedelta(**{name: 1}) for name in ("seconds", "minutes", "hours", "days")}
_PERIOD = re.compile(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*(second|minute|hour|day)s?\s*")


def parse_period(value: Any) -> Any:
    """Return the period that a text such as ``90 days`` or ``6 hours`` states.

    ``forever``, None and periods are returned unchanged; other values raise ValueError.
    """
    if value is None or value == "forever" or isinstance(value, timedelta):
        return value
    found = _PERIOD.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is not a period; write a number of {', '.join(_UNITS)}, such as 90 days")
    period = float(found[1]) * _UNITS[found[2] + "s"]
    if period > LONGEST:
        raise ValueError(f"{value!r} is too long; write forever")
    return period


def _text(period: timedelta) -> str:
    """Return a period as `parse_period` reads it, in the largest unit that divides it."""
    unit = next((name for name in reversed(_UNITS) if not period % _UNITS[name]), "seconds")
    count = period / _UNITS[unit]
    return f"{count:.6f}".rstrip("0").rstrip(".") + f" {unit if count != 1 else unit[:-1]}"


class Retention(BaseModel):
    """How much of the history of a fork is kept, and when files that nothing refers to are deleted."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    keep: Annotated[timedelta | Literal["forever"] | None, BeforeValidator(parse_period)] = None
    """Every moment of this period before the present can be read; ``forever`` is the default."""
    generations: Int | None = Field(default=None, ge=1)
    """The number of newest generations that can be read."""
    grace: Annotated[timedelta, BeforeValidator(parse_period)] = timedelta(days=1)
    """Generations and files that are younger are never removed. It must exceed the longest commit."""

    @field_validator("grace")
    @classmethod
    def _long_enough(cls, value: timedelta) -> timedelta:
        if not SHORTEST_GRACE <= value <= LONGEST:
            raise ValueError("the grace period must be at least 10 minutes, and longer than any commit")
        return value

    @field_serializer("keep", "grace")
    def _as_text(self, value: Any) -> Any:
        return _text(value) if isinstance(value, timedelta) else value

    @property
    def is_forever(self) -> bool:
        """Whether the whole history is kept."""
        return self.keep == "forever" or (self.keep is None and self.generations is None)

    def __str__(self) -> str:
        if self.is_forever:
            return "forever"
        parts = [_text(self.keep)] if isinstance(self.keep, timedelta) else []
        parts += [f"{self.generations} generations"] if self.generations is not None else []
        return " and ".join(parts)


@dataclass(frozen=True)
class DatedGeneration:
    """A generation, and its age by the clock of the storage."""

    number: int
    time: int | None
    """Nanoseconds since the epoch; None if it is older than the fork."""
    commit_time: int
    """Nanoseconds since the epoch, by the clock of its writer."""


@dataclass(frozen=True)
class Bound:
    """Something that needs a part of the history: the horizon stays at or below it."""

    why: str
    """Description, such as ``operation 12 is unfinished``."""
    generation: int | None = None
    """The oldest generation that it needs."""
    time: int | None = None
    """Or: the newest generation that is not younger than this time of the storage, in nanoseconds."""
    commit_time: int | None = None
    """Or: the newest generation that was not committed after this time by its writer's clock, in nanoseconds."""


@dataclass(frozen=True)
class Horizon:
    """The oldest generation that stays, and what keeps it from being a later one."""

    generation: int
    held_by: tuple[str, ...] = field(default=())
    """What else than the policy determines it; empty if the policy does."""


def choose_horizon(
    policy: Retention,
    history: Sequence[DatedGeneration],
    now: int,
    bounds: Iterable[Bound] = (),
    *,
    grace: timedelta | None = None,
) -> Horizon:
    """Choose the oldest generation to keep.

    Parameters
    ----------
    history
        All generations, oldest first; at least one.
    now
        Present time of the storage, in nanoseconds since the epoch.
    bounds
        What needs a part of the history besides the policy.
    grace
        Grace period; default: that of the policy.
    """
    oldest, latest = history[0].number, history[-1].number
    if policy.is_forever:
        return Horizon(oldest)
    margin = _nanoseconds(policy.grace if grace is None else grace)
    wanted: list[int] = []
    if isinstance(policy.keep, timedelta):
        wanted.append(_at(history, now - _nanoseconds(policy.keep) - margin))
    if policy.generations is not None:
        wanted.append(history[max(0, len(history) - policy.generations)].number)
    chosen = min(wanted)
    limits = [("younger than the grace period", _at(history, now - margin))]
    for bound in bounds:
        numbers = [latest]
        if bound.generation is not None:
            numbers.append(bound.generation)
        if bound.time is not None:
            numbers.append(_at(history, bound.time))
        if bound.commit_time is not None:
            numbers.append(_at_commit(history, bound.commit_time))
        limits.append((bound.why, min(numbers)))
    horizon = min(chosen, *(limit for _, limit in limits))
    holding = () if horizon == chosen else tuple(why for why, limit in limits if limit == horizon)
    return Horizon(max(horizon, oldest), holding)


def _nanoseconds(period: timedelta) -> int:
    return period // timedelta(microseconds=1) * 1000


def _at(history: Sequence[DatedGeneration], time: int) -> int:
    """Return the newest generation that is not younger than a time; the oldest one if all are."""
    return max((one.number for one in history if one.time is None or one.time <= time), default=history[0].number)


def _at_commit(history: Sequence[DatedGeneration], time: int) -> int:
    return max((one.number for one in history if one.commit_time <= time), default=history[0].number)
