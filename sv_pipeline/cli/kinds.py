"""Kinds of arguments and options: how their values are parsed, refused in a sentence, and completed by a shell."""

from __future__ import annotations

import difflib
import itertools
import math
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from sv_pipeline.operations.log import Operation

__all__ = [
    "HOME_IS_NAMED",
    "LARGEST_ID",
    "MADE",
    "OPERATION",
    "UNFINISHED",
    "CommandGroup",
    "Number",
    "OperationNumber",
    "Whole",
    "complete_configurations",
    "complete_graphs",
    "graph_argument",
    "made_operation_argument",
    "unfinished_operation_argument",
]

HOME_IS_NAMED = "sv_pipeline.cli.home_is_named"
"""Key in the context: whether the user has named the home, by an option or a variable."""
LARGEST_ID = 2**64 - 1
PATIENCE = 3.0
"""Seconds after which a completion gives up: a home or a table in the cloud may not answer."""
MOST_OPERATIONS = 50
"""Number of operations, the newest ones, that a completion offers."""

Items = list[CompletionItem]


class CommandGroup(click.Group):
    """A group of commands that names its commands if there is none of a name."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Do the same as click, but say which commands there are."""
        name, names = arguments[0], self.list_commands(context)
        if not name.startswith("-") and name not in names:
            close = difflib.get_close_matches(name, names, 2)
            meant = f" Did you mean {' or '.join(close)}?" if close else ""
            context.fail(f"there is no command {name!r}.{meant} The commands are {', '.join(names)}.")
        return super().resolve_command(context, arguments)


class Whole(click.IntRange):
    """A whole number from ``least`` to ``most``."""

    name = "number"

    def __init__(self, least: int, most: int | None = None) -> None:
        super().__init__(least, most)
        self._least, self._most = least, most

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        """Convert a value; the message for anything else names the numbers that are accepted."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number. {self._advice(context)}", parameter, context)
        if number < self._least or (self._most is not None and number > self._most):
            self.fail(f"{number} is out of range. {self._advice(context)}", parameter, context)
        return number

    def _advice(self, _context: click.Context | None) -> str:
        return f"Write one from {self._least} {'on' if self._most is None else f'to {self._most}'}."


class Number(click.FloatRange):
    """A finite number from ``least`` to ``most``."""

    name = "number"

    def __init__(self, least: float, most: float) -> None:
        super().__init__(least, most)
        self._range = f"Write one from {least:g} to {most:g}."

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """Convert a value. ``nan`` is refused, which a comparison with the limits would let pass."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number. {self._range}", parameter, context)
        if not float(self.min or 0) <= number <= float(self.max or 0):
            self.fail(f"{number:g} is out of range. {self._range}", parameter, context)
        return number


class OperationNumber(Whole):
    """The number of an operation of the graph that the command names."""

    name = "operation"

    def __init__(self, command: str, is_wanted: Callable[[Operation], bool] = lambda _: True) -> None:
        super().__init__(1)
        self._command, self._is_wanted = command, is_wanted

    def _advice(self, context: click.Context | None) -> str:
        graph = (context and context.params.get("graph")) or "GRAPH"
        return f"Write the number of an operation, such as 12: 'sv-pipeline {self._command} {graph}' lists them."

    def shell_complete(self, context: click.Context, _parameter: click.Parameter, incomplete: str) -> Items:
        """Offer the newest operations of the graph, newest first."""
        # Where the value of an option is completed, click has parsed no arguments, and left them in ``args``.
        graph_id = context.params.get("graph") or next(iter(context.args), None)
        if not graph_id:
            return []

        def find() -> Items:
            from sv_pipeline.operations.log import read_operations
            from sv_pipeline.registry import open_dataset
            from sv_pipeline.table.counters import last_operation_id

            graph = open_dataset(graph_id, _home(context)).graph
            last = last_operation_id(graph.table)
            # Of a long log only the end is read, unless the number that is being typed is an old one.
            matching = (n for n in range(last, 0, -1) if str(n).startswith(incomplete))
            numbers = list(itertools.islice(matching, MOST_OPERATIONS))
            found = {one.operation_id: one for one in read_operations(graph, numbers)}
            return [
                CompletionItem(str(number), help=f"{found[number].kind} by {found[number].user}")
                for number in numbers
                if number in found and self._is_wanted(found[number])
            ]

        return _found_in_time(find)


def _is_unfinished(operation: Operation) -> bool:
    from sv_pipeline.operations.log import OperationStatus

    return not operation.is_complete and operation.status is not OperationStatus.EXCEPTION


OPERATION = OperationNumber("ops")
MADE = OperationNumber("ops", lambda operation: operation.is_complete)
UNFINISHED = OperationNumber("stuck list", _is_unfinished)


def _home(context: click.Context) -> str | None:
    """The home of a command line that is being completed: the options before the command are not run, only parsed."""
    home: str | None = context.find_root().params.get("home")
    return home


def complete_graphs(context: click.Context, _parameter: click.Parameter, incomplete: str) -> Items:
    """Offer the graphs of the home."""

    def find() -> Iterable[CompletionItem]:
        from sv_pipeline.registry import Registry, home_or_default

        names = Registry(home_or_default(_home(context))).graph_ids()
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]

    return _found_in_time(find)


def _found_in_time(find: Callable[[], Iterable[CompletionItem]]) -> Items:
    """Return what is found. A completion shows no errors, since the shell would print them into the command line."""
    found: Items = []

    def look() -> None:
        try:
            found.extend(find())
        except Exception:  # noqa: BLE001 - whatever is wrong, the command itself will say it
            found.clear()

    thread = threading.Thread(target=look, name="completion", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return list(found)


def complete_configurations(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Offer registered graphs, or let the shell offer files if none begins like this; it cannot offer both."""
    return complete_graphs(context, parameter, incomplete) or [CompletionItem(incomplete, type="file")]


graph_argument = click.argument("graph", shell_complete=complete_graphs)
made_operation_argument = click.argument("operation", type=MADE)
unfinished_operation_argument = click.argument("operation", type=UNFINISHED)
