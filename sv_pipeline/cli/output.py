"""Output of values in a terminal: JSON for scripts, tables and progress bars for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import render
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
from rich.text import Text

from sv_pipeline import progress

if TYPE_CHECKING:
    import pandas as pd

    from sv_pipeline.reports.status import GraphStatus

__all__ = [
    "ProgressBars",
    "duration",
    "graph_id_option",
    "json_option",
    "operations_table",
    "print_json",
    "status_table",
    "table_console",
]

PREDICTED = "predicted_work_seconds"


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
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars.tasks:
            self._bars.stop()

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Add a bar for a step; a step without chunks has none."""
        if total:
            self._bars.start()
        self._current = self._bars.add_task(name, total=total, completed=done) if total else None

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


_STATUS_COLUMNS = (
    "stage", "state", "chunks", "done", "failed", "nodes", "chunks/s", "now", "left", "work", "wall",
)  # fmt: skip


_LEFT_OUT_FIRST = ("wall", "work", "nodes", "chunks/s", "failed")
"""Columns without which a status is still of use, in the order in which a narrow terminal does without them."""
_PAPER_WIDTH = 120
"""Columns of a table that is written to a file or a pipe."""


def table_console() -> Console:
    """Return a console for tables: as wide as the terminal, or wide enough for all columns in a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=_PAPER_WIDTH)


def status_table(status: GraphStatus, width: int = _PAPER_WIDTH) -> Table:
    """Return the status as a table for people that is at most ``width`` characters wide.

    Columns without content are left out; then those of `_LEFT_OUT_FIRST`, since a number that is cut off would mislead.
    """
    columns: dict[str, list[str]] = {name: [] for name in _STATUS_COLUMNS}
    for row in status.stages:
        style = _STATE_STYLE[row.state]
        rates = ["" if rate is None else f"{rate:,.1f}" for rate in (row.throughput, row.throughput_now)]
        # Nothing is left of a complete layer, and a layer that is not begun has taken no time.
        left = row.seconds_left if row.state not in ("done", "built elsewhere") else None
        times = [left, *((row.work_seconds, row.wall_seconds) if row.done else (None, None))]
        cells = (
            row.name,
            f"[{style}]{row.state}[/]",
            f"{row.chunks:,}",
            "" if row.built_elsewhere else f"{row.done:,}",
            f"[red]{row.failed:,}[/]" if row.failed else "",
            f"{row.nodes:,}" if row.nodes else "",
            *rates,
            *("" if seconds is None else duration(seconds) for seconds in times),
        )
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    if status.fork_wanted or status.forked:
        for name, column in columns.items():
            column.append({"stage": "fork", "state": "[green]done[/]" if status.forked else "waiting"}.get(name, ""))
    shown = {name: column for name, column in columns.items() if any(column)}
    widths = {name: max(cell_len(render(text).plain) for text in (name, *column)) for name, column in shown.items()}
    left_out = []
    for name in _LEFT_OUT_FIRST:
        # There are three spaces between two columns, and two at either end.
        if name in shown and sum(widths[one] + 3 for one in shown) + 1 > width:
            left_out.append(name)
            del shown[name]
    table = Table(title=f"graph {status.graph_id}", title_justify="left", box=box.SIMPLE_HEAD)
    for name in shown:
        table.add_column(name, justify="left" if name in ("stage", "state") else "right", no_wrap=True)
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*cells)
    errors = [row.error for row in status.stages if row.error]
    lines = [f"{row.name}: {row.note}" for row in status.stages if row.note]
    lines += _pace_lines(status)
    if left_out:
        lines.append(f"no room for: {', '.join(reversed(left_out))} (a wider terminal, or --json, shows them)")
    if errors:
        lines.insert(0, "first failure: " + errors[0])
    if lines:
        # Messages of errors have brackets of their own, which are no markup.
        table.caption = Text("\n".join(lines), style="table.caption")
        table.caption_justify = "left"
    return table


def _pace_lines(status: GraphStatus) -> list[str]:
    """Lines about the workers, the time that is left, failures by kind, and what layers took beside the forecast."""
    lines = []
    workers = status.workers
    if workers.alive or workers.silent:
        silent = f", {len(workers.silent)} silent ({', '.join(workers.silent[:3])})" if workers.silent else ""
        lines.append(f"workers: {len(workers.alive)} alive{silent}")
    if status.seconds_left and not status.complete:
        lines.append(f"left for all layers: about {duration(status.seconds_left)}")
    for row in status.stages:
        lines += [
            f"{row.name}: {one.chunks:,} failed ({one.kind}), first {one.coordinate}: {one.error}"
            for one in row.failures
        ]
    done = [row for row in status.stages if row.state == "done" and row.wall_seconds is not None]
    worked, expected = (sum(getattr(row, name) or 0.0 for row in done) for name in ("work_seconds", PREDICTED))
    if done and expected:
        rows = sum(row.rows or 0 for row in done)
        lines.append(
            f"done layers: {rows:,} rows in {duration(worked)} of work; {duration(expected)} were forecast "
            f"('sv-pipeline plan {status.graph_id}' compares them)"
        )
    return lines


def duration(seconds: float) -> str:
    """Return a time in a unit that suits it."""
    for unit, length in (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


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
