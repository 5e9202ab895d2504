"""The command that forecasts an ingest: plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sv_pipeline.cli.kinds import Number, Whole, complete_configurations
from sv_pipeline.cli.output import ProgressBars, graph_id_option, json_option, print_json, table_console

if TYPE_CHECKING:
    from sv_pipeline.reports.plan import PlanReport

__all__ = ["plan"]


@click.command()
@click.argument("target", metavar="CONFIG|GRAPH", required=False, shell_complete=complete_configurations)
@click.option("--workers", type=Whole(1), help="Number of processes. Default: the number in the configuration.")
@click.option(
    "--sample",
    type=Whole(0),
    default=0,
    metavar="CHUNKS",
    help="Really ingest so many chunks, in a scratch table and a scratch base that are removed afterwards.",
)
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Choice of the sample's chunks.")
@click.option(
    "--supervoxels",
    type=Number(0, 1e18),
    metavar="NUMBER",
    help="Number of supervoxels in the volume, if it is known and no sample is taken.",
)
@click.option(
    "--price",
    "prices",
    multiple=True,
    metavar="NAME=AMOUNT",
    help="A price; repeatable: worker-hour, bigtable-node-hour, table-gb-month, storage-gb-month, write-operations "
    "(10,000 of them).",
)
@click.option(
    "--clean",
    metavar="NAME|all",
    help="Remove what a killed sample has left; 'all' removes those of this host whose process has ended.",
)
@graph_id_option
@json_option
@click.pass_obj
def plan(
    home: str,
    target: str | None,
    workers: int | None,
    sample: int,
    seed: int,
    supervoxels: float | None,
    prices: tuple[str, ...],
    clean: str | None,
    graph_id: str | None,
    *,
    as_json: bool,
) -> None:
    """Forecast the ingest of CONFIG|GRAPH: chunks, steps, rows, bytes, memory, time and costs.

    CONFIG is a dataset YAML; without a sample, nothing is registered or written. GRAPH is the id of a registered graph:
    the forecast that was stored when it was set up is shown beside what happened.
    """
    from sv_pipeline.config import load_config
    from sv_pipeline.ingest import planning
    from sv_pipeline.ingest.prices import parse_prices
    from sv_pipeline.registry import open_dataset
    from sv_pipeline.reports.plan import plan_report

    if clean is not None:
        _clean(home, clean)
        if target is None:
            return
    if target is None:
        raise click.UsageError("give a CONFIG (a dataset YAML) or the id of a registered GRAPH.")
    if sample and supervoxels is not None:
        raise click.UsageError("give either --sample or --supervoxels: a sample measures their number.")
    parsed = parse_prices(prices)
    _name_leftovers(home)
    is_file = Path(target).suffix in (".yaml", ".yml") or Path(target).is_file()
    dataset = None if is_file else open_dataset(target, home)
    config = load_config(target, **({"graph_id": graph_id} if graph_id else {})) if dataset is None else dataset.config
    kept = None if dataset is None or sample or supervoxels is not None else planning.kept_forecast(dataset)
    if kept is not None and workers in (None, kept.workers):
        found = kept
    elif dataset is not None and not sample and supervoxels is None and workers is None:
        found = planning.default_forecast(dataset)
    else:
        with ProgressBars() as bars:
            found = planning.plan_ingest(
                config, home, workers=workers, sample=sample, supervoxels=supervoxels, seed=seed, progress=bars
            )
        if sample:
            planning.keep_forecast(home, found)
    report = plan_report(found, config, parsed, dataset)
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report)


def _name_leftovers(home: str) -> None:
    from sv_pipeline.ingest.scratch import leftovers

    for left in leftovers(home):
        if not left.is_running:
            click.echo(
                f"sample {left.name} of graph {left.graph_id} was not removed (process {left.worker}, {left.time}); it "
                f"has the table {left.name} and {left.folder}. Remove it: 'sv-pipeline plan --clean {left.name}'.",
                err=True,
            )


def _clean(home: str, name: str) -> None:
    from sv_pipeline.ingest.scratch import leftovers, remove_leftover

    found = [s.name for s in leftovers(home) if not (s.is_running or s.is_elsewhere)] if name == "all" else [name]
    for one in found:
        remove_leftover(home, one)
        click.echo(f"removed sample {one}", err=True)
    if not found:
        click.echo("there is no sample to remove.", err=True)


def _print(report: PlanReport) -> None:
    from sv_pipeline.cli.plan_tables import tables_of

    console = table_console()
    for table in tables_of(report):
        console.print(table)
