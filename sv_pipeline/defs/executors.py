"""Which executor runs steps, by the environment variable SV_PIPELINE_EXECUTOR. Heavy ones are imported on demand."""

from __future__ import annotations

import os

import dagster as dg

from sv_pipeline.environment import whole_number_in

__all__ = ["EXECUTOR_VARIABLE", "PRELOAD", "executor_from_environment"]

EXECUTOR_VARIABLE = "SV_PIPELINE_EXECUTOR"
CONCURRENCY_VARIABLE = "SV_PIPELINE_MAX_CONCURRENT"
# Dagster's own lazy imports cost a step process over a second; the fork server has them ready. TensorStore and gRPC
# must not be among them: their threads do not survive a fork.
PRELOAD = [
    "dagster",
    "sv_pipeline.defs.partitions",
    "sqlalchemy.dialects.sqlite",
    "alembic.command",
    "structlog",
    "rich.console",
    "rich.traceback",
    "watchdog.observers",
    "upath",
    "tqdm",
    "pandas",
]


def executor_from_environment() -> dg.ExecutorDefinition:
    """``local`` (default: processes on this machine, or in-process by run config), ``celery`` or ``k8s``.

    Dask is not offered: its executor reports success without running mapped steps.
    """
    name = os.environ.get(EXECUTOR_VARIABLE, "local")
    if name == "local":
        return dg.multi_or_in_process_executor.configured(
            {
                "multiprocess": {
                    "max_concurrent": whole_number_in(CONCURRENCY_VARIABLE, 2, meaning="processes"),
                    "start_method": {"forkserver": {"preload_modules": PRELOAD}},
                }
            },
            name="local",
        )
    if name == "celery":
        from dagster_celery import celery_executor

        return celery_executor  # type: ignore[no-any-return]
    if name == "k8s":
        from dagster_k8s import k8s_job_executor

        return k8s_job_executor  # type: ignore[no-any-return]
    raise dg.DagsterInvalidDefinitionError(f"{EXECUTOR_VARIABLE}={name!r}: use local, celery or k8s.")
