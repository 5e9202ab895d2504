"""The executor of runs whose steps Celery workers execute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg
from dagster_celery.core_execution_loop import core_celery_execution_loop
from dagster_celery.executor import CELERY_CONFIG, CeleryExecutor, _submit_task
from dagster_celery.make_app import make_app
from dagster_celery.tags import DAGSTER_CELERY_QUEUE_TAG

from sv_pipeline.defs.celery.settings import QUEUE, backend_url, broker_url, settings_of_runs
from sv_pipeline.defs.celery.steps import Cluster, SubmittedStep

__all__ = ["celery_steps"]


class CelerySteps(CeleryExecutor):
    """Dagster's Celery executor, which also notices dead workers, lost messages and missing workers (see `steps`)."""

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        """Execute the steps of a run; yields their events."""
        with Cluster(make_app(self.app_args()), plan_context.log) as cluster:

            def submit(app: Any, context: Any, step: Any, queue: str, priority: int, state: Any) -> SubmittedStep:
                cluster.queues.add(step.tags.get(DAGSTER_CELERY_QUEUE_TAG, QUEUE))
                return SubmittedStep(
                    step.key, cluster, lambda: _submit_task(app, context, step, queue, priority, state)
                )

            yield from core_celery_execution_loop(plan_context, execution_plan, step_execution_fn=submit)


@dg.executor(
    name="celery",
    config_schema={"retries": CELERY_CONFIG["retries"]},
    requirements=dg.multiple_process_executor_requirements(),
)
def celery_steps(init_context: dg.InitExecutorContext) -> CelerySteps:
    """Steps run on Celery workers; the environment names the broker (SV_PIPELINE_CELERY_BROKER)."""
    from dagster._core.execution.retries import RetryMode

    retries: Any = init_context.executor_config["retries"]
    return CelerySteps(
        retries=RetryMode.from_config(retries),
        broker=broker_url(),
        backend=backend_url(),
        config_source=settings_of_runs(),
    )
