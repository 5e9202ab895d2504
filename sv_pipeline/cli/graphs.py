"""Commands about registered graphs: attach, list."""

from __future__ import annotations

import click

from sv_pipeline.cli.kinds import HOME_IS_NAMED
from sv_pipeline.cli.output import graph_id_option, json_option, print_json
from sv_pipeline.cli.stopping import if_stopped
from sv_pipeline.wording import counted

__all__ = ["attach", "list_graphs"]


@click.command()
@click.argument("config", type=click.Path(dir_okay=False))
@graph_id_option
@click.pass_obj
@if_stopped("Run the same command again.")
def attach(home: str, config: str, graph_id: str | None) -> None:
    """Register the graph of CONFIG, whose table exists already (made from another home, or by PyChunkedGraph)."""
    from sv_pipeline.config import load_config
    from sv_pipeline.ingest import stages

    dataset = stages.attach(load_config(config, **({"graph_id": graph_id} if graph_id else {})), home)
    click.echo(f"{dataset.graph_id}: {dataset.grid.n_layers} layers, {counted(dataset.grid.count(2), 'chunk')}")


@click.command("list")
@json_option
@click.pass_obj
def list_graphs(home: str, *, as_json: bool) -> None:
    """List the graphs that are registered in this home."""
    from sv_pipeline.registry import Registry

    registry = Registry(home)
    if click.get_current_context().meta[HOME_IS_NAMED]:
        registry.require_home()
    graph_ids = registry.graph_ids()
    if as_json:
        print_json(graph_ids)
    else:
        click.echo("\n".join(graph_ids) or f"no graphs in {home} yet: 'sv-pipeline ingest CONFIG.yaml' makes one.")
