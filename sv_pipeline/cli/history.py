"""Commands about past edits: the change log of objects and users, and the rollback of a user's edits."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from sv_pipeline.cli.inspect import TIME, point
from sv_pipeline.cli.kinds import LARGEST_ID, OPERATION, Whole, graph_argument
from sv_pipeline.cli.output import json_option
from sv_pipeline.cli.stopping import if_stopped
from sv_pipeline.wording import counted

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["change_log", "moment", "rollback"]


def moment(_context: click.Context, _option: click.Parameter, text: str | None) -> datetime | int | None:
    """Parse the value of an option as a time or the number of an operation."""
    from sv_pipeline.errors import InputError
    from sv_pipeline.moments import parse_operation, parse_time

    try:
        if text is None:
            return None
        return parse_operation(int(text)) if text.strip().isdecimal() else parse_time(text)
    except InputError as error:
        said = f"{text!r} is neither a time nor the number of an operation. {TIME} Or write a number, such as 12."
        raise click.BadParameter(said) from error


_since = click.option(
    "--since",
    metavar="MOMENT",
    shell_complete=OPERATION.shell_complete,
    callback=moment,
    help="Only edits at or after this time, such as 2026-01-31T12:00:00+01:00, or from this operation number on.",
)


@click.command("change-log")
@graph_argument
@click.option("--root", "roots", type=Whole(1, LARGEST_ID), multiple=True, help="A root; repeatable.")
@click.option("--at", "points", multiple=True, metavar="X,Y,Z", help="The object at a voxel; repeatable.")
@click.option("--user", help="Only the edits of this user.")
@_since
@json_option
@click.pass_obj
def change_log(
    home: str,
    graph: str,
    roots: tuple[int, ...],
    points: tuple[str, ...],
    user: str | None,
    since: Any,
    *,
    as_json: bool,
) -> None:
    """Show the edits that led to objects of GRAPH, or those of a user, oldest first, with points and roots."""
    from sv_pipeline.proofreading import open_graph

    opened = open_graph(graph, home)
    wanted = [*roots, *(opened.roots([point(text) for text in points]).tolist() if points else [])]
    of = "".join([" of these objects" if wanted else "", f" by {user}" if user else "", " since then" if since else ""])
    _print(opened.change_log(roots=wanted or None, user=user, since=since), f"no edits{of}", as_json=as_json)


@click.command()
@graph_argument
@click.option("--user", required=True, help="User whose edits are undone.")
@_since
@click.option("--apply", is_flag=True, help="Make the undos. Without this option nothing is written.")
@click.option(
    "--over-others", is_flag=True, help="Also undo edits on which later edits of others depend; those edits are kept."
)
@click.option("--by", help="User of the undos, for the log. Default: the user of this machine.")
@json_option
@click.pass_obj
@if_stopped("The undos that were made stay. Run the same command again to continue.")
def rollback(
    home: str, graph: str, user: str, since: Any, by: str | None, *, apply: bool, over_others: bool, as_json: bool
) -> None:
    """Undo what a user has edited in GRAPH since a time or an operation, newest first, each edit by its own undo.

    Without --apply the command only shows what would be done. If it is interrupted, run it again: it continues.
    """
    if since is None:
        raise click.UsageError("give --since, the time or operation from which on edits are undone, such as 12.")
    from sv_pipeline.proofreading import open_graph

    steps = open_graph(graph, home).rollback(user, since, apply=apply, over_others=over_others, by=by)
    _print(steps, f"{user} has made no edits since then", as_json=as_json)
    if not apply and not as_json and (steps["verdict"] == "undo").any():
        count = int((steps["verdict"] == "undo").sum())
        click.echo(f"{counted(count, 'edit')} would be undone; nothing was written. --apply makes the undos.")


def _print(table: pd.DataFrame, nothing: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(table.reset_index().to_json(orient="records", date_format="iso", indent=1))
    elif len(table):
        click.echo(_for_people(table))
    else:
        click.echo(nothing)


def _for_people(table: pd.DataFrame) -> str:
    shown = table.reset_index().rename(columns={"operation_id": "id", "stands_on_it": "stands on it"})
    shown["time"] = shown["time"].map(lambda t: "" if t is None else f"{t:%Y-%m-%d %H:%M:%S}")
    for name in ("about", "undone_by"):
        if name in shown:
            shown[name] = shown[name].map(lambda i: str(i) if i else "")
    for name in ("before", "after", "stands on it"):
        if name in shown:
            shown[name] = shown[name].map(lambda ids: ", ".join(map(str, ids)))
    for name in ("source", "sink"):
        shown[name] = shown[name].map(lambda side: " ".join(f"({','.join(map(str, voxel))})" for voxel in side))
    return str(shown.rename(columns={"undone_by": "undone by"}).to_string(index=False, justify="left"))
