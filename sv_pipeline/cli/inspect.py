"""Commands that only read: status, roots, info, verify."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable
from datetime import datetime

import click
from rich.live import Live

from sv_pipeline.cli.kinds import LARGEST_ID, MADE, Number, Whole, graph_argument
from sv_pipeline.cli.output import json_option, print_json, status_table, table_console
from sv_pipeline.cli.stopping import if_stopped

__all__ = ["TIME", "info", "point", "roots", "status", "verify"]

TIME = "Write a time such as 2026-01-31T12:00:00+01:00; it is UTC if it names no zone."


@click.command()
@graph_argument
@click.option("--watch", is_flag=True, help="Keep running, and refresh until everything is done.")
@click.option(
    "--interval",
    type=Number(0.1, 86400),
    default=2.0,
    show_default=True,
    help="Seconds between two reads with --watch.",
)
@json_option
@click.pass_obj
@if_stopped("Nothing else was stopped: an ingest that runs elsewhere goes on.")
def status(home: str, graph: str, interval: float, *, watch: bool, as_json: bool) -> None:
    """Show the progress of the ingest of GRAPH: for each layer the chunks, done and failed ones, and their rate."""
    from sv_pipeline.registry import open_dataset
    from sv_pipeline.reports.status import graph_status

    dataset, console = open_dataset(graph, home), table_console()
    if not watch:
        current = graph_status(dataset)
        if as_json:
            print_json(current.to_dict())
        else:
            console.print(status_table(current, console.width))
        return
    first = status_table(graph_status(dataset), console.width)
    with Live(first, console=console, refresh_per_second=4) as live:
        while True:
            current = graph_status(open_dataset(graph, home), exact=False)
            live.update(status_table(current, console.width))
            if current.complete:
                return
            time.sleep(interval)


def point(text: str, option: str = "--at") -> tuple[int, int, int]:
    """Parse ``x,y,z`` as a voxel."""
    try:
        x, y, z = (int(part) for part in text.split(","))
    except ValueError as error:
        said = f"{text!r} is not a point. Write x,y,z in voxels of mip 0, such as 1200,3400,56."
        raise click.BadParameter(said, param_hint=option) from error
    return x, y, z


def _time(_context: click.Context, _option: click.Parameter, text: str | None) -> datetime | None:
    from sv_pipeline.errors import InputError
    from sv_pipeline.moments import parse_time

    try:
        return None if text is None else parse_time(text)
    except InputError as error:
        raise click.BadParameter(f"{text!r} is not a time. {TIME}") from error


@click.command()
@graph_argument
@click.argument("supervoxels", nargs=-1, type=Whole(0, LARGEST_ID))
@click.option("--at", "points", multiple=True, metavar="X,Y,Z", help="Look up the supervoxel at a voxel; repeatable.")
@click.option(
    "--time",
    "when",
    metavar="TIME",
    callback=_time,
    help="Roots at this time, such as 2026-01-31T12:00:00+01:00; UTC if it has no zone. Default: now.",
)
@click.option("--op", "operation", type=MADE, help="Roots just after this operation.")
@json_option
@click.pass_obj
def roots(
    home: str,
    graph: str,
    supervoxels: tuple[int, ...],
    points: tuple[str, ...],
    when: datetime | None,
    operation: int | None,
    *,
    as_json: bool,
) -> None:
    """Look up the roots (neurons) of SUPERVOXELS of GRAPH, or of the supervoxels at the points given with --at."""

    from sv_pipeline.proofreading import open_graph

    if when is not None and operation is not None:
        raise click.UsageError("give either --time or --op, not both.")
    opened = open_graph(graph, home)
    at = operation if when is None else when
    if not points and not supervoxels:
        raise click.UsageError("give supervoxel ids, or points with --at X,Y,Z.")
    ids, result = opened.supervoxels_and_roots([point(p) for p in points], supervoxels, at=at)
    rows = [{"supervoxel": int(s), "root": int(r)} for s, r in zip(ids, result, strict=True)]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            click.echo(f"{row['supervoxel']:>20} {row['root']:>20}")


@click.command()
@graph_argument
@click.option("--graphene", is_flag=True, help="Print the info document for a graphene data source, as JSON.")
@json_option
@click.pass_obj
def info(home: str, graph: str, *, graphene: bool, as_json: bool) -> None:
    """Show how to read GRAPH: its size, and TensorStore specs for every mip, latest and pinned."""
    from sv_pipeline.registry import open_dataset
    from sv_pipeline.reports.info import graph_info

    if graphene:
        from sv_pipeline.graph.graphene_info import graphene_info

        print_json(graphene_info(open_dataset(graph, home).graph))
        return
    published = graph_info(open_dataset(graph, home))
    if as_json:
        print_json(published.to_dict())
        return
    import json

    click.echo(f"graph {published.graph_id}: {published.n_layers} layers, chunks of {published.chunk_size} voxels")
    click.echo(f"table      {', '.join(f'{key} {value}' for key, value in published.table.items())}")
    click.echo(f"watershed  {published.watershed}")
    click.echo(f"generation {published.generation}")
    for mip in published.mips:
        late = "  (pending: behind the latest edits)" if mip.pending else ""
        click.echo(f"mip {mip.mip}: {mip.size} voxels of {mip.resolution_nm} nm, offset {mip.voxel_offset}{late}")
    click.echo("\nopen mip 0 with tensorstore.open(...) of:")
    click.echo(json.dumps(published.mips[0].latest, indent=1))
    click.echo("\n(--json prints all mips, and specs pinned to this generation)")
    click.echo(f"\nlook at it:\n{published.viewer}")
    if published.neuroglancer is not None:
        click.echo(f"\nor, as it was before any edit, in neuroglancer alone:\n{published.neuroglancer}")


def _chunks_of(sample: str, count: Callable[[], int]) -> int:
    """Parse ``"200"`` or ``"0.5%"`` as a number of chunks, at least 1."""
    found = re.fullmatch(r"\s*(\d+|\d*\.?\d+\s*%)\s*", sample)
    number = float(found[1].rstrip(" %")) if found else 0.0
    if not number or (sample.strip().endswith("%") and number > 100):
        raise click.BadParameter(f"{sample!r}: write a number of chunks such as 200, or 0.5%.", param_hint="--sample")
    return math.ceil(count() * number / 100) if sample.strip().endswith("%") else int(number)


def _complete_checks(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from sv_pipeline.verify.checks import ALL_CHECKS

    return [name for name in ALL_CHECKS if name.startswith(incomplete)]


@click.command()
@graph_argument
@click.option(
    "--check",
    "checks",
    multiple=True,
    shell_complete=_complete_checks,
    help="Only this check; repeatable. Default: all.",
)
@click.option(
    "--sample",
    metavar="NUMBER|PERCENT%",
    help="Check the voxels of only so many chunks, chosen at random, and say how many of all chunks may be damaged at "
    "most. Default: all.",
)
@click.option(
    "--workers",
    type=Whole(1),
    default=1,
    show_default=True,
    help="Number of processes that verify parts of the graph; threads, if the graph fits into memory as a whole.",
)
@click.option("--again", is_flag=True, help="Begin anew, instead of where a verification that was killed stopped.")
@json_option
@click.pass_obj
@if_stopped("Nothing was changed. Run the same command again; it does not repeat the parts that it has verified.")
def verify(
    home: str, graph: str, checks: tuple[str, ...], sample: str | None, workers: int, *, again: bool, as_json: bool
) -> None:
    """Prove that GRAPH and its segmentation are sound. Every fault is shown with its first place (exit code 1).

    A graph that does not fit the memory of a worker (SV_PIPELINE_WORKER_MEMORY_MB) is verified part by part. If the
    command is killed, run it again: parts that were verified are not verified again, unless the graph has changed.
    """
    from sv_pipeline.registry import open_dataset
    from sv_pipeline.verify.dataset import verify_dataset

    dataset = open_dataset(graph, home)
    chunks = None if sample is None else _chunks_of(sample, lambda: dataset.grid.count(2))
    report = verify_dataset(dataset, checks=list(checks) or None, sample=chunks, workers=workers, again=again)
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo(report.summary())
    if not report.ok:
        sys.exit(1)
