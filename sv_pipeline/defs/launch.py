"""Runs the assets of one graph in this process, recorded in the Dagster instance so that the UI shows them later."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from sv_pipeline.defs.partitions import add_partitions
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.registry import Dataset

__all__ = ["materialize_graph", "project_instance"]

ASSETS = ("watershed", "base_ocdbt", "chunked_graph", "fork", "reader_contract")


def project_instance() -> dg.DagsterInstance:
    """Return the Dagster instance of $DAGSTER_HOME, or a temporary instance if the variable is not set."""
    if home := os.environ.get("DAGSTER_HOME"):
        Path(home).mkdir(parents=True, exist_ok=True)
        return dg.DagsterInstance.get()
    return dg.DagsterInstance.ephemeral()


def materialize_graph(
    job: dg.JobDefinition, dataset: Dataset, instance: dg.DagsterInstance, begin: Callable[[str], None] | None = None
) -> None:
    """Materialize the assets of a graph one after the other, and run their checks.

    Parameters
    ----------
    job
        The job of all assets.
    begin
        Called with the name of each asset before it is materialized.

    Raises
    ------
    SvPipelineError
        If an asset fails; the error has the step's message.
    """
    add_partitions(instance, [dataset])
    for asset in ASSETS:
        if begin is not None:
            begin(asset)
        result = job.execute_in_process(
            instance=instance,
            partition_key=dataset.graph_id,
            asset_selection=[dg.AssetKey(asset)],
            run_config={
                "execution": {"config": {"in_process": {}}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            raise_on_error=False,
        )
        if not result.success:
            raise SvPipelineError(f"{asset} of graph {dataset.graph_id} failed: {_reason(result)}")


def _reason(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return data.user_failure_data.description
            if data.error is not None:
                cause = data.error.cause or data.error
                return str(cause.message).strip()
    return "see the run in the UI"
