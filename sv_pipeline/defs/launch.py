"""Runs the assets of one graph in this process, recorded in the Dagster instance so that the UI shows them later."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg

from sv_pipeline.defs.partitions import graphs, layer_key
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.registry import Dataset

__all__ = ["materialize_graph", "project_instance"]


def project_instance() -> dg.DagsterInstance:
    """Return the Dagster instance of $DAGSTER_HOME, or a temporary instance if the variable is not set."""
    if home := os.environ.get("DAGSTER_HOME"):
        Path(home).mkdir(parents=True, exist_ok=True)
        return dg.DagsterInstance.get()
    return dg.DagsterInstance.ephemeral()


def materialize_graph(
    job: dg.JobDefinition, dataset: Dataset, instance: dg.DagsterInstance, begin: Callable[[str], None] | None = None
) -> None:
    """Materialize every asset of a graph, layer by layer, and run their checks.

    Parameters
    ----------
    job
        The job of all assets.
    begin
        Called with the name of each step before it begins.

    Raises
    ------
    SvPipelineError
        If a step fails; the error has the step's message.
    """
    instance.add_dynamic_partitions(str(graphs.name), [dataset.graph_id])
    for asset, partition in _steps(dataset):
        if begin is not None:
            begin(f"{asset} {partition}")
        result = job.execute_in_process(
            instance=instance,
            partition_key=partition,
            asset_selection=[dg.AssetKey(asset)],
            run_config={
                "execution": {"config": {"in_process": {}}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            raise_on_error=False,
        )
        if not result.success:
            raise SvPipelineError(f"{asset} of partition {partition} failed: {_reason(result)}")


def _steps(dataset: Dataset) -> Iterator[tuple[str, str]]:
    yield "watershed", dataset.graph_id
    yield "base_ocdbt", dataset.graph_id
    for number in range(2, dataset.grid.n_layers + 1):
        yield "layer", str(dg.MultiPartitionKey({"graph": dataset.graph_id, "layer": layer_key(number)}))
    yield "fork", dataset.graph_id
    yield "reader_contract", dataset.graph_id


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
