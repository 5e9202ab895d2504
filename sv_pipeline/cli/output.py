"""Output of values in a terminal: JSON for scripts, tables and progress bars for people."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from sv_pipeline import progress

if TYPE_CHECKING:
    import pandas as pd

    from sv_pipeline.reports.status import GraphStatus

__all__ = ["Finite", "ProgressBars", "graph_id_option", "json_option", "operations_table", "print_json", "status_table"]


class Finite(click.FloatRange):
    """A finite number in a range. ``nan`` is rejected here, since its comparisons would let it pass."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert a value to a number; anything else gets click's own error."""
        number = super().convert(value, param, ctx)
        if number is not None and not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


graph_id_option = click.option(
    "--graph-id",
    metavar="NAME",
    help="Id of the graph, for a CONFIG without one, such as a configuration of PyChunkedGraph.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    click.echo(json.dumps(value, indent=1, default=str))


class ProgressBars(progress.Progress):
    """Shows a progress bar for each step, on standard error."""

    def __init__(self, unit: str = "chunks") -> None:
        self._bars = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._current: TaskID | None = None

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, name: str, total: int) -> None:
        """Add a bar for a step; an empty step shows as complete."""
        self._current = self._bars.add_task(name, total=max(total, 1), completed=0 if total else 1)

    def advance(self, chunks: int) -> None:
        """Move the bar."""
        if self._current is not None:
            self._bars.advance(self._current, chunks)

    def end(self) -> None:
        """Fill the bar."""
        if self._current is not None:
            total = self._bars.tasks[self._current].total
            self._bars.update(self._current, completed=total)


_STATE_STYLE = {"done": "green", "failed": "red", "partly": "yellow", "waiting": "dim", "built elsewhere": "green"}


def status_table(status: GraphStatus) -> Table:
    """Return the status as a table for people."""
    table = Table(title=f"graph {status.graph_id}", title_justify="left")
    for name in ("stage", "state"):
        table.add_column(name)
    for name in ("chunks", "done", "failed", "nodes", "chunks/s"):
        table.add_column(name, justify="right")
    for row in status.stages:
        style = _STATE_STYLE[row.state]
        rate = "" if row.throughput is None else f"{row.throughput:,.1f}"
        table.add_row(
            row.name,
            f"[{style}]{row.state}[/]",
            f"{row.chunks:,}",
            "" if row.built_elsewhere else f"{row.done:,}",
            f"[red]{row.failed:,}[/]" if row.failed else "0",
            f"{row.nodes:,}" if row.nodes else "",
            rate,
        )
    if status.fork_wanted or status.forked:
        table.add_row("fork", "[green]done[/]" if status.forked else "[dim]waiting[/]", "", "", "", "", "")
    errors = [row.error for row in status.stages if row.error]
    lines = [f"{row.name}: {row.note}" for row in status.stages if row.note]
    if errors:
        lines.insert(0, "first failure: " + errors[0])
    if lines:
        table.caption = "\n".join(lines)
        table.caption_justify = "left"
    return table


def operations_table(log: pd.DataFrame) -> str:
    """Return the operation log as text, with one line of any length for each operation."""
    shown = log.reset_index()
    shown["time"] = shown["time"].map(lambda t: "" if t is None else f"{t:%Y-%m-%d %H:%M:%S}")
    shown["about"] = shown["about"].map(lambda i: f"of {i}" if i else "")
    for side in ("source", "sink"):
        shown[side] = [_first(ids, points) for ids, points in zip(shown[f"{side}_ids"], shown[side], strict=True)]
    still = shown["still_one_object"].map(lambda joined: ", still one object" if joined else "")
    shown["outcome"] = [(r or s) + j for r, s, j in zip(shown["refused"], shown["status"], still, strict=True)]
    shown["new roots"] = shown["roots"].map(lambda roots: ", ".join(map(str, roots)))
    names = ["operation_id", "kind", "about", "outcome", "time", "user", "source", "sink", "new roots"]
    return str(shown[names].rename(columns={"operation_id": "id"}).to_string(index=False, justify="left"))


def _first(ids: list[int], points: list[list[int]]) -> str:
    """Text with the first point of a side, and how many more there are."""
    if not ids and not points:
        return ""
    where = ",".join(map(str, points[0])) if points else ""
    more = max(len(ids), len(points)) - 1
    return " ".join(
        part for part in (str(ids[0]) if ids else "", f"({where})" if where else "", f"+{more}" if more else "") if part
    )
