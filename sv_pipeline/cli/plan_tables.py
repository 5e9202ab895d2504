"""The plan of an ingest as tables and lines for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from sv_pipeline.cli.output import duration
from sv_pipeline.ingest.estimates import CONFIDENCE
from sv_pipeline.wording import counted

if TYPE_CHECKING:
    from sv_pipeline.ingest.estimates import Estimate
    from sv_pipeline.reports.plan import Comparison, PlanReport

__all__ = ["comparison_table", "tables_of"]

SIZES = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def tables_of(report: PlanReport) -> Iterator[Table | str]:
    """Yield the parts of the plan, in their order."""
    found, work = report.forecast, report.forecast.workload
    size = " x ".join(f"{n:,}" for n in work.size)
    chunk = " x ".join(map(str, work.chunk_size))
    layers = " / ".join(f"{count:,}" for count in work.layers.values())
    yield f"graph {found.graph_id}: {size} voxels, chunks of {chunk}"
    yield f"chunks in layers 2 to {max(work.layers)}: {layers}"
    yield f"{counted(work.batches, 'batch', 'batches')}; {counted(work.steps, 'step')} in Dagster"
    if found.sample is not None:
        note = found.sample
        yield (
            f"measured: {note.chunks} of {note.of:,} chunks (seed {note.seed}) in {duration(note.seconds)}; intervals "
            f"of 'sample' are t-intervals of {CONFIDENCE:.0%} over chunks"
        )
    else:
        yield "no sample: times and contents are default figures (see the column 'from'); use --sample to measure"
    yield _stages(report)
    yield _quantities(report)
    if report.bigtable_nodes is not None:
        nodes = counted(round(report.bigtable_nodes.value), "Bigtable node")
        yield f"{nodes} can write the rows as fast as the workers make them"
    if report.costs:
        yield _costs(report)
    if report.comparisons:
        yield comparison_table(report.comparisons)
    yield from found.notes


def _stages(report: PlanReport) -> Table:
    found = report.forecast
    table = Table(title=f"time with {counted(found.workers, 'worker')}", title_justify="left")
    table.add_column("stage")
    for name in ("chunks", "batches", "work", "until complete", "interval", "worker memory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("from")
    for stage in found.stages:
        table.add_row(
            stage.name,
            f"{stage.chunks:,}",
            f"{stage.batches:,}",
            duration(stage.work.value),
            duration(stage.wall.value),
            _interval(stage.wall, duration),
            _bytes(stage.memory.value),
            stage.origin,
        )
    table.add_section()
    whole = (duration(found.work.value), duration(found.wall.value), _interval(found.wall, duration))
    table.add_row("all", "", "", *whole, _bytes(found.worker_memory.value), "")
    return table


def _quantities(report: PlanReport) -> Table:
    table = Table(title="rows, bytes, files", title_justify="left")
    table.add_column("what")
    table.add_column("expected", justify="right")
    table.add_column("interval", justify="right")
    table.add_column("from")
    for name, quantity in report.forecast.quantities.items():
        shown = _bytes if "bytes" in name else _count
        estimate = quantity.estimate
        table.add_row(name, shown(estimate.value), _interval(estimate, shown), quantity.origin)
    return table


def _costs(report: PlanReport) -> Table:
    table = Table(title="costs, in the currency of the prices", title_justify="left")
    table.add_column("what")
    table.add_column("units", justify="right")
    table.add_column("amount", justify="right")
    table.add_column("interval", justify="right")
    for line in report.costs:
        what = f"{line.what} ({line.price})"
        table.add_row(what, _count(line.units.value), _amount(line.amount.value), _interval(line.amount, _amount))
    return table


def comparison_table(comparisons: tuple[Comparison, ...]) -> Table:
    """Return predictions beside what happened as a table."""
    table = Table(title="predicted and actual", title_justify="left")
    table.add_column("what")
    for name in ("predicted", "interval", "actual", "inside"):
        table.add_column(name, justify="right")
    for one in comparisons:
        shown = duration if "seconds" in one.name else _bytes if "bytes" in one.name else _count
        inside = "[green]yes[/]" if one.covered else "[yellow]no[/]"
        predicted = shown(one.predicted.value), _interval(one.predicted, shown)
        table.add_row(one.name, *predicted, shown(one.actual), inside)
    return table


def _interval(estimate: Estimate, shown: Callable[[float], str]) -> str:
    return "exact" if estimate.is_exact else f"{shown(estimate.low)} to {shown(estimate.high)}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 1e7 else f"{value:.3g}"


def _bytes(value: float) -> str:
    power = 0
    while value >= 1000 and power < len(SIZES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {SIZES[power]}"


def _amount(value: float) -> str:
    return f"{value:,.2f}"
