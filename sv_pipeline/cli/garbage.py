"""The command about what a graph's fork stores: garbage."""

from __future__ import annotations

from typing import Any

import click

from sv_pipeline.cli.kinds import Whole, graph_argument
from sv_pipeline.cli.output import json_option, print_json
from sv_pipeline.cli.stopping import if_stopped

__all__ = ["garbage"]


def _period(_context: click.Context, _option: click.Parameter, text: str | None) -> Any:
    from sv_pipeline.retention import parse_period

    try:
        return parse_period(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@graph_argument
@click.option("--collect", is_flag=True, help="Prune the history by the policy, and delete files that nothing uses.")
@click.option(
    "--keep",
    metavar="PERIOD",
    callback=_period,
    help="Use this policy instead of that of the configuration: keep the moments of a period, such as '90 days', "
    "or forever.",
)
@click.option("--generations", type=Whole(1), help="The same, by the number of newest generations.")
@json_option
@click.pass_obj
@if_stopped("What was removed was used by nothing. Run the same command again to continue.")
def garbage(home: str, graph: str, keep: Any, generations: int | None, *, collect: bool, as_json: bool) -> None:
    """Show what the fork of GRAPH stores, what of it is in use, and what its retention policy would remove.

    Nothing is removed without --collect. With it, the command may run beside edits and readers, and may be killed at
    any time; run it again to continue.
    """
    from sv_pipeline.registry import open_dataset
    from sv_pipeline.retention import Retention
    from sv_pipeline.upkeep.garbage import clean_up, garbage_of

    dataset = open_dataset(graph, home)
    policy = None
    if keep is not None or generations is not None:
        policy = Retention(keep=keep, generations=generations, grace=dataset.config.retention.grace)
    report = (clean_up if collect else garbage_of)(dataset, policy=policy)
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo("\n".join(report.lines()))
