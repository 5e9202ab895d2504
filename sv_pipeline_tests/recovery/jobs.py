"""A task for forked processes that only the tests of Dagster need: the recovery job, as the worker of a run does it."""

from __future__ import annotations

from typing import Any

import dagster as dg

from sv_pipeline.defs.recovery import recover_operation_job
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.testing.harness.actors import ACTIONS


def run_job(_: object, task: dict[str, Any]) -> str:
    """Run recover_operation_job in this process; the status of the run."""
    home, graph_id = task["graph"]
    config = {"graph_id": graph_id, "operation_id": task["operation"]}
    with dg.DagsterInstance.ephemeral() as instance:
        run = recover_operation_job.execute_in_process(
            run_config=config,
            instance=instance,
            resources={"pipeline": PipelineResource(home=home)},
            raise_on_error=False,
        )
        return str(run.dagster_run.status.value)


ACTIONS["job"] = run_job
