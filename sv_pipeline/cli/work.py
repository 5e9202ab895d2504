"""The command of a worker elsewhere: work."""

from __future__ import annotations

import click

from sv_pipeline.cli.kinds import Whole, graph_argument
from sv_pipeline.cli.output import json_option, print_json
from sv_pipeline.cli.stopping import CONTINUE, if_stopped
from sv_pipeline.wording import counted

__all__ = ["WILL_FAIL_AGAIN", "work"]

WILL_FAIL_AGAIN = 65
"""Exit code for a failure that another attempt would meet again: bad input, not a storage that did not answer."""


@click.command()
@graph_argument
@click.argument("plan")
@click.option(
    "--index",
    type=Whole(0),
    envvar="JOB_COMPLETION_INDEX",
    required=True,
    help="Number of the batch in the plan. Default: $JOB_COMPLETION_INDEX, which Kubernetes sets.",
)
@json_option
@click.pass_obj
@if_stopped(CONTINUE)
def work(home: str, graph: str, plan: str, index: int, *, as_json: bool) -> None:
    """Run one batch of GRAPH: the one at an index of the work plan PLAN in the home folder.

    Kubernetes runs this command in the pods of an Indexed Job. Running it again is harmless: finished chunks are kept.
    The exit code is 65 if another attempt would fail in the same way, and 1 if it may succeed.
    """
    from sv_pipeline.errors import SvPipelineError, UnavailableError
    from sv_pipeline.ingest.work import run_index

    try:
        report = run_index(home, graph, plan, index)
    except UnavailableError:
        raise
    except SvPipelineError as error:
        click.secho(f"error ({error.kind}): ", fg="red", nl=False, err=True)
        click.echo(str(error), err=True)
        raise SystemExit(WILL_FAIL_AGAIN) from error
    if as_json:
        print_json({"batch": report.key, "chunks": report.chunks, "seconds": report.seconds, "counts": report.counts})
    else:
        click.echo(f"{report.key}: {counted(report.chunks, 'chunk')} in {report.seconds:.1f} s: {report.counts}")
