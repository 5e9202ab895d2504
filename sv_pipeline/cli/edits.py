"""Commands that edit: merge, split, preview, undo, redo, and the log of operations."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from typing import Any

import click

from sv_pipeline.algorithms.multicut import Preview
from sv_pipeline.cli.inspect import point
from sv_pipeline.cli.output import json_option, print_json
from sv_pipeline.edits import CommittedEdit, EditRefused, Reason
from sv_pipeline.proofreading import open_graph

__all__ = ["merge", "operations", "preview", "redo", "split", "undo"]

Command = Callable[..., Any]
_user = click.option("--user", default=getpass.getuser, show_default="the user of this machine", help="Who edits.")


def _points(command: Command) -> Command:
    """The two sides of a request."""
    for name, text in (
        ("sink", "A voxel of the other side; repeatable."),
        ("source", "A voxel of one side; repeatable."),
    ):
        command = click.option(f"--{name}", multiple=True, required=True, metavar="X,Y,Z", help=text)(command)
    return command


def _voxels(points: tuple[str, ...]) -> list[tuple[int, int, int]]:
    return [point(text) for text in points]


def _say(edit: CommittedEdit, *, as_json: bool) -> None:
    if as_json:
        old, new = edit.old_roots.tolist(), edit.roots.tolist()
        print_json({"operation": edit.id, "kind": edit.kind, "old_roots": old, "new_roots": new})
        return
    old, new = (", ".join(map(str, roots.tolist())) for roots in (edit.old_roots, edit.roots))
    click.echo(f"operation {edit.id} ({edit.kind}): {old} -> {new}")


@click.command()
@click.argument("graph")
@_points
@_user
@json_option
@click.pass_obj
def merge(home: str, graph: str, source: tuple[str, ...], sink: tuple[str, ...], user: str, *, as_json: bool) -> None:
    """Make one object of the two of GRAPH at --source and at --sink."""
    _say(open_graph(graph, home).merge(_voxels(source), _voxels(sink), user=user), as_json=as_json)


@click.command()
@click.argument("graph")
@_points
@_user
@json_option
@click.pass_obj
def split(home: str, graph: str, source: tuple[str, ...], sink: tuple[str, ...], user: str, *, as_json: bool) -> None:
    """Cut an object of GRAPH between --source and --sink, where that is cheapest."""
    _say(open_graph(graph, home).split(_voxels(source), _voxels(sink), user=user), as_json=as_json)


@click.command()
@click.argument("graph")
@_points
@json_option
@click.pass_obj
def preview(home: str, graph: str, source: tuple[str, ...], sink: tuple[str, ...], *, as_json: bool) -> None:
    """Show what a split of GRAPH would do. Locks and writes nothing."""
    found = open_graph(graph, home).preview_split(_voxels(source), _voxels(sink)).outcome
    if not isinstance(found, Preview):
        reason = getattr(found, "reason", Reason.SUPERVOXEL_SPLIT_REQUIRED)
        raise EditRefused(reason, found.message)
    sizes = [len(component) for component in found.components]
    if as_json:
        removed = len(found.cut.removed_edges)
        print_json({"legal": not found.illegal, "removed_edges": removed, "supervoxels_of_parts": sizes})
        return
    click.echo(f"{len(found.cut.removed_edges)} edges of weight {found.cut.weight:g} would be removed")
    click.echo(f"parts inside the region, in supervoxels: source {sizes[0]}, sink {sizes[1]}, others {sizes[2:]}")
    if found.refused is not None:
        click.echo(f"but it would be refused: {found.refused.message}")


@click.command()
@click.argument("graph")
@click.argument("operation", type=click.IntRange(1))
@_user
@json_option
@click.pass_obj
def undo(home: str, graph: str, operation: int, user: str, *, as_json: bool) -> None:
    """Take OPERATION of GRAPH back."""
    _say(open_graph(graph, home).undo(operation, user=user), as_json=as_json)


@click.command()
@click.argument("graph")
@click.argument("operation", type=click.IntRange(1))
@_user
@json_option
@click.pass_obj
def redo(home: str, graph: str, operation: int, user: str, *, as_json: bool) -> None:
    """Make OPERATION of GRAPH, which was undone, again."""
    _say(open_graph(graph, home).redo(operation, user=user), as_json=as_json)


@click.command("ops")
@click.argument("graph")
@json_option
@click.pass_obj
def operations(home: str, graph: str, *, as_json: bool) -> None:
    """The operation log of GRAPH, newest last."""
    table = open_graph(graph, home).operations()
    if as_json:
        click.echo(table.reset_index().to_json(orient="records", date_format="iso", indent=1))
    else:
        click.echo(table.to_string() if len(table) else "no operations yet")
