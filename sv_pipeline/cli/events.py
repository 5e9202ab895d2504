"""The command that shows the edit feed of a graph."""

from __future__ import annotations

import json

import click

from sv_pipeline.cli.output import Finite

__all__ = ["events"]


@click.command()
@click.argument("graph")
@click.option("--since", type=click.IntRange(0), metavar="OPERATION", help="Only what follows the event of OPERATION.")
@click.option("--follow", is_flag=True, help="Stay, and show events as edits finish. Without --since: new ones only.")
@click.option(
    "--interval",
    type=Finite(0.05, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks with --follow.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["sv_pipeline", "pychunkedgraph"]),
    default="sv_pipeline",
    show_default=True,
    help="With --json: all that is known; or the attributes and the payload of PyChunkedGraph's message.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, for scripts.")
@click.pass_obj
def events(
    home: str, graph: str, since: int | None, interval: float, form: str, *, follow: bool, as_json: bool
) -> None:
    """Show the finished edits of GRAPH, each after those that it builds on, whatever software made them."""
    from sv_pipeline.feed.event import EventFormat
    from sv_pipeline.feed.reading import events_after, latest_number, number_after
    from sv_pipeline.registry import open_dataset

    chunked = open_dataset(graph, home).graph
    number = latest_number(chunked) if follow and since is None else number_after(chunked, since or 0)
    for event in events_after(chunked, number, follow=follow, interval=interval):
        if not as_json:
            line = str(event)
        elif form == EventFormat.SV_PIPELINE:
            line = json.dumps(event.to_dict())
        else:
            message = event.message(EventFormat(form))
            line = json.dumps({"attributes": message.attributes, "payload": message.payload})
        click.echo(line)
