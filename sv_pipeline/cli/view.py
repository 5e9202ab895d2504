"""The command that shows a graph in a browser."""

from __future__ import annotations

import threading
from typing import Any

import click

from sv_pipeline.cli.history import moment
from sv_pipeline.cli.inspect import point
from sv_pipeline.cli.kinds import MADE, Whole, graph_argument

__all__ = ["view"]


@click.command()
@graph_argument
@click.option("--edit", is_flag=True, help="Allow edits in the viewer. Without this option it only shows the graph.")
@click.option(
    "--at",
    metavar="MOMENT",
    shell_complete=MADE.shell_complete,
    callback=moment,
    help="Show the graph at this time, such as 2026-01-31T12:00:00+01:00, or just after this operation number.",
)
@click.option("--operation", type=MADE, help="Show this operation, before and after side by side.")
@click.option("--position", metavar="X,Y,Z", help="Voxel to look at. Default: the middle of the volume.")
@click.option("--user", help="User of the edits, for the log. Default: the user of this machine.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address at which the viewer is served.")
@click.option("--port", type=Whole(0, 65535), default=0, help="Port of the viewer. Default: any free port.")
@click.option("--browser", is_flag=True, help="Also open the viewer in a browser of this machine.")
@click.pass_obj
def view(
    home: str,
    graph: str,
    at: Any,
    operation: int | None,
    position: str | None,
    user: str | None,
    host: str,
    port: int,
    *,
    edit: bool,
    browser: bool,
) -> None:
    """Show GRAPH in neuroglancer: supervoxels, objects, and the image if the dataset has one.

    The command prints the address of the viewer, and serves it until Ctrl-C. The address holds a token, without which
    nothing is served: whoever knows the address sees the graph, and with --edit can edit it as this user.
    """
    if operation is not None and at is not None:
        raise click.UsageError("give either --at or --operation, not both.")
    if edit and (operation is not None or at is not None):
        raise click.UsageError("the past cannot be edited: leave out --edit, or --at and --operation.")
    if user is not None and not edit:
        raise click.UsageError("--user is the author of edits, so it needs --edit.")
    voxel = None if position is None else point(position, "--position")
    # Imported here, since these modules take a second to load, and --help does not need them.
    from sv_pipeline.proofreading import open_graph
    from sv_pipeline.viewer.window import ViewerWindow, serve_at

    opened = open_graph(graph, home)
    serve_at(host, port)
    window = ViewerWindow(opened, edit=edit, user=user, at=at, operation=operation, position=voxel)
    click.echo(window.url)
    click.echo("Serving this address until Ctrl-C.", err=True)
    if browser:
        click.launch(window.url)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        click.echo("stopped.", err=True)
    finally:
        window.close()
