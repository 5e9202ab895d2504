"""The command ``mend``, which converts what other software has written in another form."""

from __future__ import annotations

import click

from sv_pipeline.cli.kinds import graph_argument
from sv_pipeline.cli.output import json_option, print_json
from sv_pipeline.cli.stopping import if_stopped
from sv_pipeline.registry import open_dataset

__all__ = ["mend"]


@click.command()
@graph_argument
@click.option("--apply", is_flag=True, help="Make the changes. Without this option they are only shown.")
@json_option
@click.pass_obj
@if_stopped("What was converted stays converted. Run the same command again to continue.")
def mend(home: str, graph: str, *, apply: bool, as_json: bool) -> None:
    """Convert what other software has written in GRAPH to the form that sv_pipeline writes.

    This concerns cross edges in another form, supervoxels without a node, locks of operations that have ended, and
    supervoxel splits that the ledger of coarser mips lacks. The command reads the whole graph. Edits may continue
    meanwhile; run it again if it was killed or skipped edited rows.
    """
    from sv_pipeline.recovery.mend import mend as mend_graph

    report = mend_graph(open_dataset(graph, home).graph, apply=apply)
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo(str(report))
