"""The command that shows a graph in a browser."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from sv_pipeline.cli.history import moment
from sv_pipeline.cli.inspect import point
from sv_pipeline.cli.kinds import MADE, Whole, complete_graphs

__all__ = ["view"]


@click.command()
@click.argument("graph", required=False, shell_complete=complete_graphs)
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
@click.option(
    "--port",
    type=Whole(0, 65535),
    help="Port of the viewer. Default: that of $SV_PIPELINE_VIEWER_URL if no graph is given, else any free port.",
)
@click.option("--browser", is_flag=True, help="Also open the viewer in a browser of this machine.")
@click.pass_obj
def view(
    home: str,
    graph: str | None,
    at: Any,
    operation: int | None,
    position: str | None,
    user: str | None,
    host: str,
    port: int | None,
    *,
    edit: bool,
    browser: bool,
) -> None:
    """Show GRAPH in neuroglancer: supervoxels, objects, and the image if the dataset has one.

    The command prints the address of the viewer, and serves it until Ctrl-C. The address holds a token, without which
    nothing is served: whoever knows the address sees the graph, and with --edit can edit it as this user.

    Without GRAPH, a viewer for everybody is served, without edits: set SV_PIPELINE_VIEWER_URL to the address that is
    printed, and the links in Dagster and of 'sv-pipeline info' open it, each in a view of its own.
    """
    if graph is None:
        if edit or browser or not (operation is None and at is None and position is None and user is None):
            raise click.UsageError("without a graph, there are only --host and --port: links name graph and place.")
        _serve_everybody(home, host, port)
        return
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
    serve_at(host, port or 0)
    window = ViewerWindow(opened, edit=edit, user=user, at=at, operation=operation, position=voxel)
    with _until_ctrl_c(window.close):
        click.echo(window.url)
        click.echo("Serving this address until Ctrl-C.", err=True)
        if browser:
            click.launch(window.url)


def _serve_everybody(home: str, host: str, port: int | None) -> None:
    from sv_pipeline.reports.viewer_links import VIEWER_VARIABLE, viewer_address
    from sv_pipeline.viewer.team import TeamViewer, port_and_token
    from sv_pipeline.viewer.window import serve_at

    given, token = port_and_token()
    serve_at(host, given if port is None else port)
    team = TeamViewer(home, token)
    with _until_ctrl_c(team.close):
        click.echo(viewer_address() or team.address)
        if viewer_address() is None:
            click.echo(f"Set {VIEWER_VARIABLE} to this address for links that open here.", err=True)
        click.echo("Serving this address until Ctrl-C.", err=True)


@contextmanager
def _until_ctrl_c(close: Callable[[], None]) -> Iterator[None]:
    """After the block, serve until Ctrl-C; Ctrl-C also ends well during the block, which prints the address."""
    try:
        yield
        threading.Event().wait()
    except KeyboardInterrupt:
        click.echo("stopped.", err=True)
    finally:
        close()
