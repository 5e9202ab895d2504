"""The command ``sv-pipeline``: parses, calls the engine, prints. An error of ours is one message, never a traceback."""

from __future__ import annotations

import logging
import os
import sys

import click
from rich.console import Console
from rich.logging import RichHandler

from sv_pipeline.cli import demo, graphs, ingest, inspect
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.registry import HOME_VARIABLE, default_home

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--home",
    metavar="FOLDER",
    help="Where registered graphs live (a folder or a kvstore URL). "
    "Default: $SV_PIPELINE_HOME, else ./.sv_pipeline if it is there, else ~/.sv_pipeline.",
)
@click.option("-v", "--verbose", is_flag=True, help="Also log what happens inside.")
@click.version_option(package_name="sv_pipeline")
@click.pass_context
def cli(context: click.Context, home: str | None, *, verbose: bool) -> None:
    """Take a segmentation from a volume in a bucket to a chunked graph that can be proofread.

    \b
    A graph is described by one YAML file and known by its graph id:
      sv-pipeline ingest my_graph.yaml     build everything that is missing
      sv-pipeline status my_graph          how far each layer is
      sv-pipeline verify my_graph          prove that the result is sound
      sv-pipeline info my_graph            what a reader needs to open it
    """
    context.obj = home or default_home()
    # Worker processes, and Dagster's resources, find the same home.
    os.environ[HOME_VARIABLE] = context.obj
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
    )


for command in (
    demo.demo,
    ingest.ingest,
    ingest.purge_layer,
    graphs.attach,
    graphs.list_graphs,
    inspect.status,
    inspect.roots,
    inspect.info,
    inspect.verify,
):
    cli.add_command(command)


def main() -> None:
    """Entry point."""
    try:
        cli(standalone_mode=False)
    except SvPipelineError as error:
        click.secho(f"error ({error.kind}): ", fg="red", nl=False, err=True)
        click.echo(str(error), err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; what was finished stays finished, run the same command to go on.", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
