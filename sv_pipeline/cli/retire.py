"""Commands that remove a graph or a base: retire, retire-base."""

from __future__ import annotations

from dataclasses import asdict

import click

from sv_pipeline.cli.kinds import graph_argument
from sv_pipeline.cli.output import json_option, print_json
from sv_pipeline.cli.stopping import if_stopped

__all__ = ["retire", "retire_base"]

apply_option = click.option("--apply", is_flag=True, help="Remove it. Without this option it is only listed.")


@click.command()
@graph_argument
@apply_option
@json_option
@click.pass_obj
@if_stopped("With --apply, what was removed stays removed. Run the same command again to continue.")
def retire(home: str, graph: str, *, apply: bool, as_json: bool) -> None:
    """Remove GRAPH: its fork, its table, its published documents and its entry in this home.

    Without --apply the command lists and sums what would be removed. It refuses while operations are unfinished, and
    while the graph is being built. If it is interrupted, run it again: it continues. The watershed and its base stay;
    see retire-base.
    """
    from sv_pipeline.registry import Registry
    from sv_pipeline.upkeep import retirement

    plan = (retirement.retire if apply else retirement.plan_retirement)(Registry(home), graph)
    if as_json:
        print_json({**plan.to_dict(), "removed": apply})
        return
    click.echo("\n".join(plan.lines()))
    click.echo("removed." if apply else "Nothing was removed. Run the command with --apply to remove it.")


@click.command("retire-base")
@click.argument("watershed")
@apply_option
@json_option
@click.pass_obj
@if_stopped("With --apply, what was removed stays removed. Run the same command again to continue.")
def retire_base(home: str, watershed: str, *, apply: bool, as_json: bool) -> None:
    """Remove the base of the watershed in the folder WATERSHED, which no graph may use any more.

    Without --apply the command lists and sums what would be removed. The watershed itself stays.
    """
    from sv_pipeline.registry import Registry
    from sv_pipeline.upkeep import retirement

    plan = (retirement.retire_base if apply else retirement.plan_base_retirement)(Registry(home), watershed)
    if as_json:
        print_json({**asdict(plan), "removed": apply})
        return
    click.echo("\n".join(plan.lines()))
    click.echo("removed." if apply else "Nothing was removed. Run the command with --apply to remove it.")
