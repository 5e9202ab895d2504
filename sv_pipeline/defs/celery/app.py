"""The Celery application that workers load: ``celery -A sv_pipeline.defs.celery.app worker``, or `worker`.

It imports neither TensorStore nor the definitions, since a worker forks its pool processes from it, and the threads of
TensorStore and gRPC do not survive a fork. Each pool process loads the definitions at its first step, and keeps them.
"""

from __future__ import annotations

import os
import threading
import time
from functools import lru_cache
from typing import Any

import celery
import dagster as dg
from celery.signals import worker_process_init
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_task

from sv_pipeline.defs.celery.settings import backend_url, broker_url, settings_of_workers

__all__ = ["app", "execute_plan"]

_OVER = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


@lru_cache(maxsize=4)
def _instance(reference: str) -> dg.DagsterInstance:
    """Open an instance once per process: that costs more than the question."""
    from dagster._core.instance.ref import InstanceRef
    from dagster._serdes import deserialize_value

    return dg.DagsterInstance.from_ref(deserialize_value(reference, InstanceRef))


class Step(celery.Task):  # type: ignore[misc]
    """A step of a run. Nothing is done if the run has ended meanwhile, e.g. because it was canceled in the queue."""

    def __call__(self, execute_step_args_packed: Any, executable_dict: Any) -> Any:
        """Execute the step unless its run has ended; return its events in serialized form."""
        from dagster._grpc.types import ExecuteStepArgs
        from dagster._serdes import serialize_value, unpack_value

        step = unpack_value(execute_step_args_packed, as_type=ExecuteStepArgs)
        assert step.instance_ref is not None
        run = _instance(serialize_value(step.instance_ref)).get_run_by_id(step.run_id)
        if run is None or run.status in _OVER:
            return []
        return super().__call__(execute_step_args_packed, executable_dict)


app = make_app({"broker": broker_url(), "backend": backend_url(), "config_source": settings_of_workers()})
execute_plan = create_task(app, base=Step)


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _end_with_the_worker(**_: Any) -> None:
    """End this pool process soon after its worker was killed: the step is given to another one."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="worker watch", daemon=True).start()
