"""The executor of steps, chosen by the environment variable SV_PIPELINE_EXECUTOR, and imported on demand."""

from __future__ import annotations

import os

import dagster as dg

from sv_pipeline.environment import whole_number_in

__all__ = ["EXECUTOR_VARIABLE", "PRELOAD", "executor_from_environment"]

EXECUTOR_VARIABLE = "SV_PIPELINE_EXECUTOR"
CONCURRENCY_VARIABLE = "SV_PIPELINE_MAX_CONCURRENT"
# Dagster's own lazy imports would cost each step process over a second, so the fork server imports them in advance.
# TensorStore and gRPC must not be among them, since their threads do not survive a fork.
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
    """Return the executor named by SV_PIPELINE_EXECUTOR: ``local``, ``celery`` or ``k8s``.

    ``local``, the default, runs steps in processes on this machine, or in the process of the run if its config says so.
    Dask is not offered, because its executor reports success without running mapped steps.
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

        return celery_executor  # type: ignore[no-any-return, unused-ignore]
    if name == "k8s":
        from dagster_k8s import k8s_job_executor

        return k8s_job_executor  # type: ignore[no-any-return, unused-ignore]
    raise dg.DagsterInvalidDefinitionError(f"{EXECUTOR_VARIABLE}={name!r}: use local, celery or k8s.")
