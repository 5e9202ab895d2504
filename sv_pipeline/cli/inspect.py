"""Commands that only read: status, roots, info, verify."""

from __future__ import annotations

import sys
import time
from datetime import datetime

import click
from rich.console import Console
from rich.live import Live

from sv_pipeline.cli.output import Finite, json_option, print_json, status_table

__all__ = ["info", "point", "roots", "status", "verify"]


@click.command()
@click.argument("graph")
@click.option("--watch", is_flag=True, help="Keep running, and refresh until everything is done.")
@click.option(
    "--interval",
    type=Finite(0.1, 86400),
    default=2.0,
    show_default=True,
    help="Seconds between two reads with --watch.",
)
@json_option
@click.pass_obj
def status(home: str, graph: str, interval: float, *, watch: bool, as_json: bool) -> None:
    """Show the progress of the ingest of GRAPH: for each layer the chunks, done and failed ones, and their rate."""
    from sv_pipeline.registry import open_dataset
    from sv_pipeline.reports.status import graph_status

    dataset = open_dataset(graph, home)
    if not watch:
        current = graph_status(dataset)
        if as_json:
            print_json(current.to_dict())
        else:
            Console().print(status_table(current))
        return
    with Live(status_table(graph_status(dataset)), console=Console(), refresh_per_second=4) as live:
        while True:
            current = graph_status(open_dataset(graph, home))
            live.update(status_table(current))
            if current.complete:
                return
            time.sleep(interval)


def point(text: str, option: str = "--at") -> tuple[int, int, int]:
    """Parse ``x,y,z`` as a voxel."""
    try:
        x, y, z = (int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a point: write x,y,z in voxels.", param_hint=option) from error
    return x, y, z


def _time(_context: click.Context, _option: click.Parameter, text: str | None) -> datetime | None:
    from sv_pipeline.errors import InputError
    from sv_pipeline.moments import parse_time

    try:
        return None if text is None else parse_time(text)
    except InputError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("graph")
@click.argument("supervoxels", nargs=-1, type=click.IntRange(0, 2**64 - 1))
@click.option("--at", "points", multiple=True, metavar="X,Y,Z", help="Look up the supervoxel at a voxel; repeatable.")
@click.option(
    "--time",
    "when",
    metavar="TIME",
    callback=_time,
    help="Roots at this time, such as 2026-01-31T12:00:00+01:00; UTC if it has no zone. Default: now.",
)
@click.option("--op", "operation", type=click.IntRange(1), help="Roots just after this operation.")
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
@click.argument("graph")
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


@click.command()
@click.argument("graph")
@click.option("--check", "checks", multiple=True, help="Only this check; repeatable. Default: all.")
@click.option(
    "--sample", type=click.IntRange(1), help="Check the voxels of only so many chunks, chosen at random. Default: all."
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Number of threads for voxel checks."
)
@json_option
@click.pass_obj
def verify(home: str, graph: str, checks: tuple[str, ...], sample: int | None, workers: int, *, as_json: bool) -> None:
    """Prove that GRAPH and its segmentation are sound. Every fault is shown with its first place (exit code 1)."""
    from sv_pipeline.registry import open_dataset
    from sv_pipeline.verify.dataset import verify_dataset

    report = verify_dataset(open_dataset(graph, home), checks=list(checks) or None, sample=sample, workers=workers)
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo(report.summary())
    if not report.ok:
        sys.exit(1)
