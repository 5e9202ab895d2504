"""The memory budget of a worker process, and the division of work into groups that fit it. Measures no process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sv_pipeline.environment import whole_number_in
from sv_pipeline.errors import ConfigError

__all__ = ["DEFAULT_BUDGET_MB", "INTERPRETER_MB", "MEMORY_VARIABLE", "grouped", "memory_budget"]

Item = TypeVar("Item")

MEMORY_VARIABLE = "SV_PIPELINE_WORKER_MEMORY_MB"
DEFAULT_BUDGET_MB = 1024
MOST_BUDGET_MB = 1 << 30
"""Largest budget, in MiB. It is more than any machine has, and small enough for all arithmetic with it."""
INTERPRETER_MB = 512
"""Memory of a worker that has no work, in MiB: the interpreter, its libraries, connections and their buffers, and the
cache of TensorStore. A worker needs at most this and its budget."""


def memory_budget(configured_mb: int | None = None) -> int:
    """Return the memory in bytes that the work of one worker process may take, besides `INTERPRETER_MB`.

    Parameters
    ----------
    configured_mb
        The number of the configuration in MiB. The environment variable SV_PIPELINE_WORKER_MEMORY_MB, if it is set,
        replaces it: machines differ, and their workers share one configuration.

    Raises
    ------
    ConfigError
        If the environment variable is not a positive whole number, or larger than the memory of any machine.
    """
    budget = whole_number_in(MEMORY_VARIABLE, configured_mb or DEFAULT_BUDGET_MB, meaning="MiB")
    if budget > MOST_BUDGET_MB:
        raise ConfigError(
            f"{MEMORY_VARIABLE} is {budget} MiB, which no machine has.",
            remedy=f"Set it to a whole number of MiB, such as {DEFAULT_BUDGET_MB}.",
        )
    return budget << 20


def grouped(items: Iterable[Item], cost: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """Divide items into groups of neighbours whose costs add up to at most ``limit``, reading them only when needed.

    An item that costs more than the limit becomes a group of its own. While items are similar, a group ends before the
    item that would not fit is read: the mean cost of the group tells. An item that is larger than expected has been
    read by then; it waits for the next group.

    Parameters
    ----------
    items
        The items; an iterator that reads each when it is asked for it.
    cost
        Returns the cost of an item, such as the bytes that its work takes.
    limit
        Largest sum of the costs of a group with several items.
    """
    group: list[Item] = []
    total = 0
    rest = iter(items)
    while True:
        if group and total + total // len(group) > limit:
            yield group
            group, total = [], 0
        try:
            item = next(rest)
        except StopIteration:
            break
        more = cost(item)
        if group and total + more > limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += more
    if group:
        yield group
