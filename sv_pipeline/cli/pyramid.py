"""Commands about coarser mips: lag, downsample."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from sv_pipeline.cli.output import json_option, print_json
from sv_pipeline.engine import downsample as engine
from sv_pipeline.registry import open_dataset
from sv_pipeline.segmentation import pending

__all__ = ["downsample", "lag"]


@click.command()
@click.argument("graph")
@json_option
@click.pass_obj
def lag(home: str, graph: str, *, as_json: bool) -> None:
    """How far the coarser mips of GRAPH are behind its base mip."""
    dataset = open_dataset(graph, home)
    found = pending.lag(dataset.watershed_url, graph)
    if as_json:
        print_json(asdict(found))
    else:
        click.echo(str(found))


@click.command()
@click.argument("graph")
@click.option("--op", "operations", multiple=True, type=click.IntRange(1), help="Only this operation; repeatable.")
@click.option("--memory", "megabytes", default=1024, show_default=True, type=click.IntRange(32), help="Budget in MB.")
@json_option
@click.pass_obj
def downsample(home: str, graph: str, operations: tuple[int, ...], megabytes: int, *, as_json: bool) -> None:
    """Make the coarser mips of GRAPH where edits have changed the base mip. Exit code 1 if something is left.

    Safe to run at any time, several times at once, and again after it was killed.
    """
    report = engine.downsample(open_dataset(graph, home), operations or None, memory_budget=megabytes << 20)
    if as_json:
        print_json({"complete": report.complete, **asdict(report)})
    else:
        done = f"{report.blocks} blocks of {len(report.operations)} operations in {report.seconds:.1f} s"
        left = "" if report.complete else "; some are left, run again (another job may be at them)"
        click.echo(done + left)
    if not report.complete:
        sys.exit(1)
