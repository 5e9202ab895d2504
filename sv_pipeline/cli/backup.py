"""Commands about copies of a graph: backup, restore, reconcile."""

from __future__ import annotations

from dataclasses import asdict

import click

from sv_pipeline.cli.output import json_option, print_json

__all__ = ["backup", "reconcile", "restore"]


@click.command()
@click.argument("graph")
@click.argument("place")
@json_option
@click.pass_obj
def backup(home: str, graph: str, place: str, *, as_json: bool) -> None:
    """Copy GRAPH, its table and its fork as of one operation, to the folder PLACE, while edits go on.

    Data files of the fork that an earlier backup has copied are not copied again. If the command is interrupted, run it
    again. The watershed and its base are not copied.
    """
    from sv_pipeline.registry import open_dataset
    from sv_pipeline.upkeep.backup import back_up

    done = back_up(open_dataset(graph, home), place)
    if as_json:
        print_json(asdict(done))
    else:
        click.echo(str(done))


@click.command()
@click.argument("place")
@click.option("--as", "as_graph", required=True, metavar="GRAPH", help="Id of the new graph.")
@click.option("--graph", "graph_id", help="The graph that was backed up, if the place has backups of several.")
@click.option("--moment", help="Name of the backup. Default: the newest one.")
@click.pass_obj
def restore(home: str, place: str, as_graph: str, graph_id: str | None, moment: str | None) -> None:
    """Make a graph from a backup in the folder PLACE. It is another graph, with its own table, fork, log and locks.

    If the command is interrupted, run it again. The watershed and its base must be those of the backup.
    """
    from sv_pipeline.registry import Registry
    from sv_pipeline.upkeep.restore import restore as restore_graph

    dataset = restore_graph(Registry(home), place, as_graph, graph_id=graph_id, moment=moment)
    click.echo(f"graph {dataset.graph_id} is restored; 'sv-pipeline verify {dataset.graph_id}' checks it.")


@click.command()
@click.argument("graph")
@click.option("--apply", is_flag=True, help="Roll back. Without this option the lost operations are only listed.")
@json_option
@click.pass_obj
def reconcile(home: str, graph: str, *, apply: bool, as_json: bool) -> None:
    """Make table and fork of GRAPH fit again that were restored from different days.

    The newer one is rolled back to the newest operation that both know. Without --apply the command lists the
    operations that are lost.
    """
    from sv_pipeline.registry import open_dataset
    from sv_pipeline.upkeep.reconciling import reconcile as reconcile_graph

    done = reconcile_graph(open_dataset(graph, home), apply=apply)
    if as_json:
        print_json(done.to_dict())
    else:
        click.echo("\n".join(done.lines()))
