"""The command that shows or delivers the edit feed of a graph."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from sv_pipeline.cli.kinds import MADE, Number, Whole, graph_argument
from sv_pipeline.cli.output import print_json
from sv_pipeline.cli.stopping import if_stopped

if TYPE_CHECKING:
    from sv_pipeline.feed.event import EditEvent
    from sv_pipeline.registry import Dataset

__all__ = ["events"]

NAME_SOME = "Name some in the section 'events' of its YAML, and ingest or attach it again."


@click.command()
@graph_argument
@click.option(
    "--since",
    type=Whole(0),
    shell_complete=MADE.shell_complete,
    metavar="OPERATION",
    help="Only events after that of OPERATION.",
)
@click.option(
    "--follow", is_flag=True, help="Keep running, and show edits as they finish. Without --since: only new ones."
)
@click.option(
    "--interval",
    type=Number(0.05, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two reads with --follow.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["sv_pipeline", "pychunkedgraph"]),
    default="sv_pipeline",
    show_default=True,
    help="With --json: the complete event, or attributes and payload of PyChunkedGraph's message.",
)
@click.option("--deliver", is_flag=True, help="Deliver events to the graph's receivers instead of showing them.")
@click.option("--receivers", is_flag=True, help="Show the progress of each receiver; nothing is delivered.")
@click.option(
    "--move",
    "moved",
    nargs=2,
    type=(str, Whole(0)),
    metavar="RECEIVER NUMBER",
    help="Let a receiver continue after the event NUMBER: an earlier one, or one that it refuses.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts; for events, one object per line.")
@click.pass_obj
def events(
    home: str,
    graph: str,
    since: int | None,
    interval: float,
    form: str,
    moved: tuple[str, int] | None,
    *,
    follow: bool,
    deliver: bool,
    receivers: bool,
    as_json: bool,
) -> None:
    """Show the finished edits of GRAPH by any software, each after the edits that it builds on."""
    if sum((deliver, receivers, moved is not None, since is not None)) > 1:
        raise click.UsageError("give only one of --since, --deliver, --receivers and --move.")
    from sv_pipeline.registry import open_dataset

    dataset = open_dataset(graph, home)
    if deliver:
        _deliver(dataset, interval, follow=follow)
    elif receivers:
        _show_receivers(dataset, as_json=as_json)
    elif moved is not None:
        _move(dataset, *moved)
    else:
        _show(dataset, since, interval, form if as_json else "", follow=follow)


def _show(dataset: Dataset, since: int | None, interval: float, form: str, *, follow: bool) -> None:
    from sv_pipeline.feed.reading import events_after, latest_number, number_after

    graph = dataset.graph
    number = latest_number(graph) if follow and since is None else number_after(graph, since or 0)
    for event in events_after(graph, number, follow=follow, interval=interval):
        click.echo(_line(event, form))


def _line(event: EditEvent, form: str) -> str:
    from sv_pipeline.event_receivers import EventFormat

    if not form:
        return str(event)
    if form == EventFormat.SV_PIPELINE:
        return json.dumps(event.to_dict())
    message = event.message(EventFormat(form))
    return json.dumps({"attributes": message.attributes, "payload": message.payload})


@if_stopped("Events that a receiver has accepted are not delivered to it again.")
def _deliver(dataset: Dataset, interval: float, *, follow: bool) -> None:
    from sv_pipeline.errors import UnavailableError
    from sv_pipeline.feed.receivers import deliver_to_all

    said: dict[str, str] = {}
    while True:
        outcomes = deliver_to_all(dataset)
        if not outcomes and not follow:
            click.echo(f"nothing was delivered: graph {dataset.graph_id} has no receivers. {NAME_SOME}")
        for outcome in outcomes:
            if outcome.delivered or said.get(outcome.receiver) != str(outcome):
                said[outcome.receiver] = str(outcome)
                click.echo(str(outcome))
        if not follow:
            failed = [outcome.receiver for outcome in outcomes if outcome.error]
            if failed:
                raise UnavailableError(f"not all events were delivered: {', '.join(failed)} did not accept them.")
            if not any(outcome.behind for outcome in outcomes):
                return
        time.sleep(interval)


def _show_receivers(dataset: Dataset, *, as_json: bool) -> None:
    from sv_pipeline.feed.receivers import status_of_receivers

    found = status_of_receivers(dataset)
    if as_json:
        print_json(found)
        return
    for one in found:
        since = one["failing_since"]
        failing = "" if since is None else f", failing since {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M:%S}"
        state = "not registered yet" if one["number"] is None else f"has {one['number']} of {one['of']} events"
        click.echo(f"{one['receiver']} ({one['to']}): {state}{failing}")
        if one["error"]:
            click.echo(f"  {one['error']}")
    if not found:
        click.echo(f"graph {dataset.graph_id} has no receivers. {NAME_SOME}")


def _move(dataset: Dataset, name: str, number: int) -> None:
    from sv_pipeline.feed.delivery import move_to
    from sv_pipeline.feed.receivers import receiver_named

    move_to(dataset.graph.table, receiver_named(dataset, name), number)
    click.echo(f"{name}: continues after event {number}")
