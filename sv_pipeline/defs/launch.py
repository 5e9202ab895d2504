"""Runs the assets of one graph in this process, in one run that the Dagster instance records for the UI."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from sv_pipeline.defs.partitions import add_partitions
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.registry import Dataset

__all__ = ["ASSETS", "materialize_graph", "project_instance"]

ASSETS = ("watershed", "base_ocdbt", "chunked_graph", "fork", "reader_contract")
"""The assets that build a graph, in their order."""
LOCATION, REPOSITORY = "sv_pipeline.definitions", "__repository__"
"""Names that `workspace.yaml` gives to the code location and its definitions. The overview of the UI shows only runs
that belong to a loaded code location."""
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def project_instance() -> dg.DagsterInstance:
    """Return the Dagster instance of $DAGSTER_HOME, or a temporary instance if the variable is not set."""
    if home := os.environ.get("DAGSTER_HOME"):
        Path(home).mkdir(parents=True, exist_ok=True)
        return dg.DagsterInstance.get()
    return dg.DagsterInstance.ephemeral()


def materialize_graph(
    job: dg.JobDefinition,
    dataset: Dataset,
    instance: dg.DagsterInstance,
    begin: Callable[[str], None] | None = None,
    assets: Sequence[str] = ASSETS,
) -> None:
    """Materialize the assets of a graph in one run, with their checks.

    Parameters
    ----------
    job
        The job of all assets.
    begin
        Called with the name of each asset before it is materialized.
    assets
        Names of the assets.

    Raises
    ------
    SvPipelineError
        If an asset fails; the error has the step's message.
    """
    add_partitions(instance, [dataset])
    selection = [dg.AssetKey(name) for name in assets]
    # As JobDefinition.execute_in_process does, which can neither tell how far it is nor name the code location.
    here = job.as_ephemeral_job(resource_defs={}, input_values={}, asset_selection=selection)
    run = instance.create_run_for_job(
        here,
        run_config=QUIET,
        tags={**here.run_tags, "dagster/partition": dataset.graph_id},
        asset_selection=set(selection),
        remote_job_origin=_origin(job.name),
    )
    begun: set[str] = set()
    failures: list[str] = []
    for event in execute_run_iterator(InMemoryJob(here), run, instance):
        asset = (event.step_key or "").split(".")[0]
        if event.is_step_start and asset in assets and asset not in begun:
            begun.add(asset)
            if begin is not None:
                begin(asset)
        if event.is_step_failure:
            failures.append(f"{asset} of graph {dataset.graph_id} failed: {_reason(event)}")
        elif event.is_run_failure and not failures:
            failures.append(f"the run of graph {dataset.graph_id} failed: {event.message}")
    if failures:
        raise SvPipelineError(failures[0])


def _origin(job: str) -> RemoteJobOrigin:
    return RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION), REPOSITORY), job)


def _reason(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return data.user_failure_data.description
    if data.error is not None:
        cause = data.error.cause or data.error
        return str(cause.message).strip()
    return "see the run in the UI"
