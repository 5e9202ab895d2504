"""Commands that edit (merge, split, preview, undo, redo), draw an operation, or show the operation log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sv_pipeline.arguments import parse_gigabytes
from sv_pipeline.cli.inspect import point
from sv_pipeline.cli.kinds import Number, Whole, graph_argument, made_operation_argument
from sv_pipeline.cli.output import json_option, print_json
from sv_pipeline.cli.stopping import if_stopped
from sv_pipeline.wording import counted

if TYPE_CHECKING:
    from sv_pipeline.edits import CommittedEdit
    from sv_pipeline.proofreading import OpenGraph

__all__ = ["merge", "operations", "picture", "preview", "redo", "split", "undo"]

Command = Callable[..., Any]
MOST_PARTS = 5
"""Number of parts without points whose size a preview shows."""
PNG = click.Path(dir_okay=False, writable=True, path_type=Path)
LOOK = "'sv-pipeline ops GRAPH' shows whether the edit had begun, and what became of it."
_user = click.option("--user", help="User of the edit, for the log. Default: the user of this machine.")
_partial = click.option(
    "--partial",
    is_flag=True,
    help="Cut only around the points, even if both sides stay connected elsewhere: one bridge at a time.",
)
_partial_revert = click.option(
    "--partial", is_flag=True, help="Make edges inactive even if that separates nothing, since other edits join them."
)
_region_memory = click.option(
    "--region-memory",
    type=Number(0, 1e6),
    metavar="GB",
    help="Memory for the part of the object that is searched for a cut between the points. Default: 1.07.",
)
_isolating = click.option(
    "--allow-isolating-cut/--refuse-isolating-cut",
    "isolating",
    default=None,
    help="Allow or refuse a cut that separates only the supervoxels at the points of one side. Default: allowed for "
    "one supervoxel, refused for several.",
)
_picture = click.option("--picture", type=PNG, metavar="FILE", help="Also write a picture of the edit, as PNG.")


def _opened(graph: str, home: str) -> OpenGraph:
    # Imported here, since the modules of an open graph take a second to load, and --help does not need them.
    from sv_pipeline.proofreading import open_graph

    # Whoever types a point has to know which voxel was taken in its place.
    logging.getLogger("sv_pipeline.edits.pointing").setLevel(logging.INFO)
    return open_graph(graph, home)


def _points(command: Command) -> Command:
    """Add the options for the two sides of a request."""
    for name, text in (
        ("sink", "A voxel on the other side; repeatable. ID,X,Y,Z also names the root or supervoxel there."),
        ("source", "A voxel on one side; repeatable. ID,X,Y,Z also names the root or supervoxel there."),
    ):
        command = click.option(f"--{name}", multiple=True, required=True, metavar="X,Y,Z", help=text, callback=_voxels)(
            command
        )
    return command


def _voxels(_context: click.Context, option: click.Parameter, points: tuple[str, ...]) -> list[tuple[int, ...]]:
    return [_point(text, f"--{option.name}") for text in points]


def _point(text: str, option: str) -> tuple[int, ...]:
    """Parse ``x,y,z`` or ``id,x,y,z``."""
    named, _, rest = text.partition(",")
    if text.count(",") == 3 and len(named) < 100 and named.strip().isdecimal():
        return int(named), *point(rest, option)
    return point(text, option)


def _say(graph: OpenGraph, edit: CommittedEdit, picture: Path | None, *, as_json: bool) -> None:
    """Print what an edit did. A picture that cannot be drawn does not let the command fail, since the edit was made."""
    from sv_pipeline.errors import SvPipelineError
    from sv_pipeline.reports.edit_numbers import edit_numbers

    numbers = edit_numbers(edit)
    if as_json:
        print_json(numbers)
    else:
        old, new = (", ".join(map(str, numbers[key])) for key in ("old_roots", "new_roots"))
        click.echo(f"operation {edit.id} ({edit.kind}, {counted(numbers['edges'], 'edge')}): {old} -> {new}")
        if numbers["still_one_object"]:
            click.echo("still one object: both sides of the cut are connected elsewhere")
        if numbers["replaced_supervoxels"]:
            replaced, fresh = numbers["replaced_supervoxels"], numbers["new_supervoxels"]
            were = "was" if replaced == 1 else "were"
            click.echo(f"{counted(replaced, 'supervoxel')} {were} replaced by {fresh:,}")
    if picture is not None:
        try:
            _write(picture, graph.picture(edit.id))
        except (SvPipelineError, ValueError, OSError) as error:
            click.echo(f"the edit was made, but there is no picture of it: {error}", err=True)


def _write(path: Path, png: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png)
    click.echo(f"picture in {path}", err=True)


@click.command()
@graph_argument
@_points
@_user
@_picture
@json_option
@click.pass_obj
@if_stopped(LOOK)
def merge(
    home: str, graph: str, source: Any, sink: Any, user: str | None, picture: Path | None, *, as_json: bool
) -> None:
    """Merge the two objects of GRAPH at --source and at --sink into one."""
    opened = _opened(graph, home)
    _say(opened, opened.merge(source, sink, user=user), picture, as_json=as_json)


@click.command()
@graph_argument
@_points
@_partial
@_region_memory
@_isolating
@_user
@_picture
@json_option
@click.pass_obj
@if_stopped(LOOK)
def split(
    home: str,
    graph: str,
    source: Any,
    sink: Any,
    user: str | None,
    picture: Path | None,
    *,
    partial: bool,
    region_memory: float | None,
    isolating: bool | None,
    as_json: bool,
) -> None:
    """Split an object of GRAPH between --source and --sink, by the cheapest cut."""
    options = _split_options(partial=partial, region_memory=region_memory, isolating=isolating)
    opened = _opened(graph, home)
    _say(opened, opened.split(source, sink, user=user, **options), picture, as_json=as_json)


def _split_options(*, partial: bool, region_memory: float | None, isolating: bool | None) -> dict[str, Any]:
    memory = {} if region_memory is None else {"region_memory": parse_gigabytes(region_memory, "amount of memory")}
    return {"allow_partial": partial, "allow_isolating_cut": isolating, **memory}


@click.command()
@graph_argument
@_points
@_partial
@_region_memory
@_isolating
@_picture
@json_option
@click.pass_obj
def preview(
    home: str,
    graph: str,
    source: Any,
    sink: Any,
    picture: Path | None,
    *,
    partial: bool,
    region_memory: float | None,
    isolating: bool | None,
    as_json: bool,
) -> None:
    """Show what a split of GRAPH would do. Nothing is locked or written. Exit code 1 if it would be refused."""
    options = _split_options(partial=partial, region_memory=region_memory, isolating=isolating)
    found = _opened(graph, home).preview_split(source, sink, **options)
    if picture is not None:
        _write(picture, found.picture())
    if as_json:
        print_json(found.numbers)
    else:
        _say_preview(found.numbers)
    if not found.legal:
        sys.exit(1)


def _say_preview(numbers: dict[str, Any]) -> None:
    if "removed_edges" in numbers:
        sizes = numbers["supervoxels_of_parts"]
        edges = counted(numbers["removed_edges"], "edge")
        click.echo(f"{edges} of weight {numbers['weight']:g} would be removed")
        click.echo(
            f"parts inside the region, in supervoxels: source {sizes[0]:,}, sink {sizes[1]:,}{_others(sizes[2:])}"
        )
    if "split_supervoxels" in numbers:
        replaced, fresh = counted(numbers["split_supervoxels"], "supervoxel"), numbers["new_supervoxels"]
        sides = f"{numbers['cut_voxels_source']:,} voxels to the source, {numbers['cut_voxels_sink']:,} to the sink"
        click.echo(f"{replaced} would be split into {fresh:,}: {sides}")
    if "doubt" in numbers:
        click.echo(f"warning: {numbers['doubt']}")
    if numbers["region_enlarged"]:
        times = counted(numbers["region_enlarged"], "time")
        click.echo(f"the search was extended beyond the surroundings of the points: {times}")
    if numbers["legal"]:
        still = ": still one object" if numbers["still_one_object"] else ""
        click.echo(f"objects afterwards: {numbers['objects']}{still}")
    if not numbers["legal"]:
        click.echo(f"it would be refused ({numbers['reason']}): {numbers['message']}")


def _others(sizes: list[int]) -> str:
    """Describe the parts without points, which stay attached outside of the region; nothing if there are none."""
    if not sizes:
        return ""
    shown = ", ".join(f"{size:,}" for size in sorted(sizes, reverse=True)[:MOST_PARTS])
    more = f" and {len(sizes) - MOST_PARTS:,} smaller ones" if len(sizes) > MOST_PARTS else ""
    return f"; {counted(len(sizes), 'other part')} without points: {shown}{more}"


@click.command()
@graph_argument
@made_operation_argument
@_partial_revert
@_user
@_picture
@json_option
@click.pass_obj
@if_stopped(LOOK)
def undo(
    home: str, graph: str, operation: int, user: str | None, picture: Path | None, *, partial: bool, as_json: bool
) -> None:
    """Undo OPERATION of GRAPH."""
    opened = _opened(graph, home)
    _say(opened, opened.undo(operation, user=user, allow_partial=partial), picture, as_json=as_json)


@click.command()
@graph_argument
@made_operation_argument
@_partial_revert
@_user
@_picture
@json_option
@click.pass_obj
@if_stopped(LOOK)
def redo(
    home: str, graph: str, operation: int, user: str | None, picture: Path | None, *, partial: bool, as_json: bool
) -> None:
    """Redo OPERATION of GRAPH, which was undone."""
    opened = _opened(graph, home)
    _say(opened, opened.redo(operation, user=user, allow_partial=partial), picture, as_json=as_json)


@click.command()
@graph_argument
@made_operation_argument
@click.argument("file", type=PNG)
@click.pass_obj
def picture(home: str, graph: str, operation: int, file: Path) -> None:
    """Draw GRAPH before and after OPERATION, to FILE (PNG). This also works for old operations."""
    _write(file, _opened(graph, home).picture(operation))


@click.command("ops")
@graph_argument
@click.option("--last", type=Whole(1), metavar="N", help="Only the newest N. Default: all.")
@json_option
@click.pass_obj
def operations(home: str, graph: str, last: int | None, *, as_json: bool) -> None:
    """Show the operation log of GRAPH, newest last: the requests, their users and their results."""
    from sv_pipeline.cli.output import operations_table

    table = _opened(graph, home).operations(last)
    if as_json:
        click.echo(table.reset_index().to_json(orient="records", date_format="iso", indent=1))
    elif len(table):
        click.echo(operations_table(table))
    else:
        click.echo("no operations yet")
