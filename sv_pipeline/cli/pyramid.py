"""Commands about coarser mips: lag, downsample."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import asdict

import click

from sv_pipeline.cli.kinds import MADE, Whole, graph_argument
from sv_pipeline.cli.output import ProgressBars, json_option, print_json
from sv_pipeline.cli.stopping import CONTINUE, if_stopped
from sv_pipeline.progress import Progress
from sv_pipeline.pyramid import downsample as pyramid
from sv_pipeline.pyramid.foreign import note_foreign_edits
from sv_pipeline.pyramid.lag import lag_of_graph
from sv_pipeline.registry import open_dataset
from sv_pipeline.wording import counted

__all__ = ["downsample", "lag"]


@click.command()
@graph_argument
@json_option
@click.pass_obj
def lag(home: str, graph: str, *, as_json: bool) -> None:
    """Show how far the coarser mips of GRAPH are behind its mip 0."""
    dataset = open_dataset(graph, home)
    found = lag_of_graph(dataset)
    if as_json:
        print_json(asdict(found))
    else:
        click.echo(str(found))


@click.command()
@graph_argument
@click.option("--op", "operations", multiple=True, type=MADE, help="Only for this operation; repeatable.")
@click.option("--all", "everything", is_flag=True, help="Make all coarser mips again, whether behind or not.")
@click.option("--memory", "megabytes", default=1024, show_default=True, type=Whole(32), help="Memory budget in MB.")
@json_option
@click.pass_obj
@if_stopped(CONTINUE)
def downsample(
    home: str, graph: str, operations: tuple[int, ...], megabytes: int, *, everything: bool, as_json: bool
) -> None:
    """Bring the coarser mips of GRAPH up to date where edits have changed mip 0. Exit code 1 if something is left.

    The command may be run at any time, several times at once, and again after it was killed.
    """
    if everything and operations:
        raise click.UsageError("give either --all or --op, not both.")
    dataset = open_dataset(graph, home)
    fork, table, budget = dataset.fork, dataset.existing_table, megabytes << 20
    if not operations:
        note_foreign_edits(dataset)
    with nullcontext(Progress()) if as_json else ProgressBars("blocks") as bars:
        if everything:
            report = pyramid.rebuild(fork, table=table, memory_budget=budget, progress=bars)
        else:
            report = pyramid.downsample(fork, operations or None, table=table, memory_budget=budget, progress=bars)
    if as_json:
        print_json({"complete": report.complete, **asdict(report)})
    elif not report.operations:
        asked = f"operation {', '.join(map(str, operations))}" if operations else "any operation"
        click.echo(f"nothing to do: no coarser mip of {graph} is behind {asked}")
    else:
        what = "the whole volume" if everything else counted(len(report.operations), "operation")
        done = f"{counted(report.blocks, 'block')} of {what} in {report.seconds:.1f} s: "
        written = f"{report.work.chunks_written} of {report.work.chunks_made} storage chunks were different"
        left = "" if report.complete else "; some blocks are left, run again (another job may be working on them)"
        click.echo(done + written + left)
    if not report.complete:
        sys.exit(1)
