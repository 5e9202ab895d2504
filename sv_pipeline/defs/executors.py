"""The executor of steps, chosen by the environment variable SV_PIPELINE_EXECUTOR, and imported on demand."""

from __future__ import annotations

import os
from pkgutil import iter_modules

import dagster as dg

import sv_pipeline.defs
from sv_pipeline.environment import whole_number_in
from sv_pipeline.ingest.runner import fans_out_to_kubernetes
from sv_pipeline.ingest.small_work import SmallWork

__all__ = ["EXECUTOR_VARIABLE", "PRELOAD", "executor_from_environment", "work_in_planning_steps"]

EXECUTOR_VARIABLE = "SV_PIPELINE_EXECUTOR"
CONCURRENCY_VARIABLE = "SV_PIPELINE_MAX_CONCURRENT"
# What a step imports costs more than most steps do: 1.7 s of processor time if only Dagster is imported in advance, and
# 0.04 s with everything below. TensorStore and gRPC start threads, which do not survive a fork, when they are first
# used and not when they are imported. So the fork server may import them, but must not use them.
PRELOAD = [
    "dagster",
    "sqlalchemy.dialects.sqlite",
    "alembic.command",
    "structlog",
    "rich.console",
    "rich.traceback",
    "watchdog.observers",
    "upath",
    "tqdm",
    "pandas",
    "scipy.sparse.csgraph",
    "matplotlib.backends.backend_agg",
    "sv_pipeline.reports.views",
    "sv_pipeline.reports.info",
    *(f"sv_pipeline.defs.{module.name}" for module in iter_modules(sv_pipeline.defs.__path__) if not module.ispkg),
]


def work_in_planning_steps(context: dg.OpExecutionContext) -> SmallWork:
    """Return how much work a step runs itself that plans it: less where other machines are there for it."""
    elsewhere = context.job_def.executor_def.name in ("celery", "k8s") or fans_out_to_kubernetes()
    return SmallWork.from_environment(1) if elsewhere else SmallWork.from_environment()


def executor_from_environment() -> dg.ExecutorDefinition:
    """Return the executor named by SV_PIPELINE_EXECUTOR: ``local``, ``celery`` or ``k8s``.

    ``local``, the default, runs steps in processes on this machine, or in the process of the run if its config says so.
    Dask is not offered, because its executor reports success without running mapped steps.
    """
    name = os.environ.get(EXECUTOR_VARIABLE, "").strip() or "local"
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
        from sv_pipeline.defs.celery.executor import celery_steps
        from sv_pipeline.defs.celery.settings import backend_url, broker_url

        broker_url(), backend_url()  # a missing broker is told when the definitions are loaded, not by a failing run
        return celery_steps
    if name == "k8s":
        from dagster_k8s import k8s_job_executor

        return k8s_job_executor
    raise dg.DagsterInvalidDefinitionError(f"{EXECUTOR_VARIABLE}={name!r}: use local, celery or k8s.")
