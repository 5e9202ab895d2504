"""The command that normalises what other software has written: mend."""

from __future__ import annotations

import click

from sv_pipeline.cli.output import json_option, print_json
from sv_pipeline.registry import open_dataset

__all__ = ["mend"]


@click.command()
@click.argument("graph")
@click.option("--apply", is_flag=True, help="Change it. Without this, it is only said what would be changed.")
@json_option
@click.pass_obj
def mend(home: str, graph: str, *, apply: bool, as_json: bool) -> None:
    """Bring what other software has written in GRAPH into the form that sv_pipeline writes.

    Cross edges in another form, supervoxels without a node, locks of operations that have ended. Reads all of the
    graph. Edits may go on meanwhile; a mend that was killed, or that edits got ahead of, is run again.
    """
    from sv_pipeline.recovery.mend import mend as mend_graph

    report = mend_graph(open_dataset(graph, home).graph, apply=apply)
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo(str(report))
