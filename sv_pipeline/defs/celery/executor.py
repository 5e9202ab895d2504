"""The executor of runs whose steps Celery workers execute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg
from dagster._core.execution.retries import RetryMode
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import pack_value
from dagster_celery.config import TASK_EXECUTE_PLAN_NAME
from dagster_celery.core_execution_loop import core_celery_execution_loop
from dagster_celery.executor import CELERY_CONFIG, CeleryExecutor
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_task

from sv_pipeline.defs.celery.settings import backend_url, broker_url, settings_of_runs
from sv_pipeline.defs.celery.steps import Cluster, SubmittedStep

__all__ = ["celery_steps"]


class CelerySteps(CeleryExecutor):
    """Dagster's Celery executor, which also notices dead workers, lost messages and missing workers (see `steps`)."""

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        """Execute the steps of a run; yields their events."""
        app = make_app(self.app_args())
        task = create_task(app)
        with Cluster(app, plan_context.log) as cluster:

            def submit(_: Any, context: Any, step: Any, queue: str, priority: int, known_state: Any) -> SubmittedStep:
                cluster.queues.add(queue)
                message = _message(context, step, known_state)
                place = {"queue": queue, "routing_key": f"{queue}.{TASK_EXECUTE_PLAN_NAME}", "priority": priority}
                return SubmittedStep(step.key, cluster, lambda: task.si(**message).apply_async(**place))

            yield from core_celery_execution_loop(plan_context, execution_plan, step_execution_fn=submit)


def _message(context: Any, step: Any, known_state: Any) -> dict[str, Any]:
    """Return the arguments of the task that executes a step."""
    arguments = ExecuteStepArgs(
        job_origin=context.reconstructable_job.get_python_origin(),
        run_id=context.dagster_run.run_id,
        step_keys_to_execute=[step.key],
        instance_ref=context.instance.get_ref(),
        retry_mode=context.executor.retries.for_inner_plan(),
        known_state=known_state,
        print_serialized_events=True,
    )
    return {
        "execute_step_args_packed": pack_value(arguments),
        "executable_dict": context.reconstructable_job.to_dict(),
    }


@dg.executor(
    name="celery",
    config_schema={"retries": CELERY_CONFIG["retries"]},
    requirements=dg.multiple_process_executor_requirements(),
)
def celery_steps(init_context: dg.InitExecutorContext) -> CelerySteps:
    """Steps run on Celery workers; the environment names the broker (SV_PIPELINE_CELERY_BROKER)."""
    retries: Any = init_context.executor_config["retries"]
    return CelerySteps(
        retries=RetryMode.from_config(retries),
        broker=broker_url(),
        backend=backend_url(),
        config_source=settings_of_runs(),
    )
