"""Commands that build: ingest, requeue, purge-layer."""

from __future__ import annotations

import re

import click

from sv_pipeline.cli.kinds import Whole, graph_argument
from sv_pipeline.cli.output import ProgressBars, graph_id_option, json_option, print_json, status_table, table_console
from sv_pipeline.cli.stopping import CONTINUE, if_stopped
from sv_pipeline.config import IngestMode, load_config
from sv_pipeline.progress import Progress
from sv_pipeline.wording import counted

__all__ = ["ingest", "purge_layer", "requeue"]


def _layers(_context: click.Context, _option: click.Parameter, text: str | None) -> list[int] | None:
    """Parse ``"3"``, ``"2-4"`` or ``"2,5"`` as layers."""
    if text is None:
        return None
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise click.BadParameter(f"{text!r} does not name layers. Write 3, 2-4 or 2,5.")
        layers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return layers


@click.command()
@click.argument("config", type=click.Path(dir_okay=False))
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in IngestMode]),
    help="graph: only rows; voxels: only base and fork; both; setup: only create table and base. "
    "Default: the mode in the configuration, or both.",
)
@click.option("--layers", metavar="2-4", callback=_layers, help="Build only these layers, and no fork. Default: all.")
@click.option("--workers", type=Whole(1), help="Number of processes. Default: the number in the configuration.")
@graph_id_option
@json_option
@click.pass_obj
@if_stopped(CONTINUE)
def ingest(
    home: str,
    config: str,
    mode: str | None,
    layers: list[int] | None,
    workers: int | None,
    graph_id: str | None,
    *,
    as_json: bool,
) -> None:
    """Build everything that is missing of the graph that CONFIG (a dataset YAML) describes.

    If the command fails or is interrupted, run it again: only unfinished chunks are built.
    """
    from sv_pipeline.ingest import run, stages
    from sv_pipeline.reports.status import graph_status

    dataset = stages.register(load_config(config, **({"graph_id": graph_id} if graph_id else {})), home)
    chosen = IngestMode(mode) if mode else None
    if as_json:
        run.ingest(dataset, mode=chosen, layers=layers, workers=workers, progress=Progress())
        print_json(graph_status(dataset).to_dict())
        return
    with ProgressBars() as bars:
        run.ingest(dataset, mode=chosen, layers=layers, workers=workers, progress=bars)

    console = table_console()
    console.print(status_table(graph_status(dataset), console.width))


@click.command()
@graph_argument
@click.argument("layer", type=Whole(2))
@click.argument("x", type=Whole(0))
@click.argument("y", type=Whole(0))
@click.argument("z", type=Whole(0))
@click.option(
    "--mode",
    type=click.Choice([IngestMode.GRAPH.value, IngestMode.VOXELS.value, IngestMode.BOTH.value]),
    help="graph: only rows; voxels: only those of the base, at the populate layer. Default: the configuration's mode.",
)
@json_option
@click.pass_obj
@if_stopped("Run the same command again.")
def requeue(home: str, graph: str, layer: int, x: int, y: int, z: int, mode: str | None, *, as_json: bool) -> None:
    """Build the chunk X Y Z of LAYER of GRAPH, or write it again if it is done.

    A done chunk gets exactly the same rows and voxels, and the layers above stay complete. It is refused if the graph
    has edits.
    """
    from dataclasses import asdict

    from sv_pipeline.ingest.requeue import requeue_chunk
    from sv_pipeline.registry import open_dataset

    report = requeue_chunk(open_dataset(graph, home), layer, (x, y, z), mode=IngestMode(mode) if mode else None)
    if as_json:
        print_json(asdict(report))
        return
    parts = [] if report.nodes is None else [f"{counted(report.nodes, 'node')}, {counted(report.edges or 0, 'edge')}"]
    parts += [] if report.voxels is None else [f"voxels at {counted(len(report.voxels), 'mip')}"]
    click.echo(f"wrote chunk {(x, y, z)} of layer {layer} of {graph}: {', '.join(parts)}")


@click.command("purge-layer")
@graph_argument
@click.argument("layer", type=Whole(2))
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
@if_stopped("What was removed stays removed. Run the same command again to continue.")
def purge_layer(home: str, graph: str, layer: int, *, yes: bool, as_json: bool) -> None:
    """Remove LAYER of GRAPH and all layers above it, so that they can be built again.

    This removes the done-markers and rows of these layers, but no voxels. It is refused if the graph has edits.
    """
    from sv_pipeline.ingest import progress, stages
    from sv_pipeline.registry import open_dataset
    from sv_pipeline.reports.status import graph_status

    dataset = open_dataset(graph, home)
    stages.layers_of(dataset, [layer])
    if not yes:
        click.confirm(f"Purge layers {layer} to {dataset.grid.n_layers} of {graph}?", abort=True)
    progress.purge_layer(dataset.graph, layer)
    if as_json:
        print_json(graph_status(dataset).to_dict())
    else:
        click.echo(f"layers {layer} to {dataset.grid.n_layers} of {graph} can be built again with 'sv-pipeline ingest'")
