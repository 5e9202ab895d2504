"""Settings of Celery, the same for the runs that submit steps and for the workers that execute them.

Celery's own defaults lose a step whose worker is killed: a message is acknowledged before the step begins. Here a
message is acknowledged when its step has ended, which is safe because every step of this project may run twice.
"""

from __future__ import annotations

import os
from typing import Any

import dagster as dg

from sv_pipeline.environment import number_in, whole_number_in

__all__ = [
    "BACKEND_VARIABLE",
    "BROKER_VARIABLE",
    "QUEUE",
    "SHORTEST_VISIBILITY",
    "backend_url",
    "broker_url",
    "settings_of_runs",
    "settings_of_workers",
]

BROKER_VARIABLE = "SV_PIPELINE_CELERY_BROKER"
BACKEND_VARIABLE = "SV_PIPELINE_CELERY_BACKEND"
VISIBILITY_VARIABLE = "SV_PIPELINE_CELERY_VISIBILITY_SECONDS"
ATTEMPTS_VARIABLE = "SV_PIPELINE_CELERY_ATTEMPTS"
GRACE_VARIABLE = "SV_PIPELINE_CELERY_GRACE_SECONDS"
QUEUE = "dagster"
"""The queue of steps, unless an op has the tag ``dagster-celery/queue``."""
SHORTEST_VISIBILITY = 60.0
_VISIBILITY = 6 * 3600.0
_ATTEMPTS = 3
_GRACE = 10.0


def broker_url() -> str:
    """Return the URL of the broker from SV_PIPELINE_CELERY_BROKER, or else from Celery's own CELERY_BROKER_URL.

    Raises
    ------
    DagsterInvalidDefinitionError
        If neither is set. Celery would otherwise try an AMQP server of this machine, and runs would only say that a
        connection was refused.
    """
    found = os.environ.get(BROKER_VARIABLE) or os.environ.get("CELERY_BROKER_URL")
    if not found:
        raise dg.DagsterInvalidDefinitionError(
            f"SV_PIPELINE_EXECUTOR is celery, but no broker is named. Set {BROKER_VARIABLE}, e.g. to "
            "redis://redis.example:6379/0, for the code server, the daemon and every worker alike."
        )
    return found


def backend_url() -> str:
    """Return the URL of the store of results: SV_PIPELINE_CELERY_BACKEND, or CELERY_RESULT_BACKEND, or the broker."""
    found = os.environ.get(BACKEND_VARIABLE) or os.environ.get("CELERY_RESULT_BACKEND")
    if not found and not broker_url().startswith(("redis://", "rediss://", "sentinel://")):
        raise dg.DagsterInvalidDefinitionError(
            f"the broker is no Redis server, so it cannot keep the results of steps. Set {BACKEND_VARIABLE}, e.g. to "
            "redis://redis.example:6379/1."
        )
    return found or broker_url()


def _common() -> dict[str, Any]:
    visibility = number_in(VISIBILITY_VARIABLE, _VISIBILITY, meaning="seconds")
    return {
        "task_default_queue": QUEUE,
        "task_default_priority": 5,
        "task_acks_late": True,
        # The step of a killed pool process is sent again, a bounded number of times: a step that needs more memory
        # than the worker has would otherwise be tried for ever.
        "task_retry_on_worker_lost": True,
        "task_reject_on_worker_lost": True,
        "task_track_started": True,
        "worker_prefetch_multiplier": 1,
        "broker_transport_options": {
            # After this time Redis gives an unacknowledged step to another worker. It must exceed the longest step,
            # since a step that is still running would be started a second time. A dead worker is noticed much earlier
            # by the run (see `steps`).
            "visibility_timeout": max(visibility, SHORTEST_VISIBILITY),
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A submission waits while the broker restarts: 3 minutes.
        "task_publish_retry_policy": {"max_retries": 60, "interval_start": 0, "interval_step": 0.5, "interval_max": 3},
    }


def settings_of_runs() -> dict[str, Any]:
    """Return the settings of the process of a run, which submits steps and waits for their results."""
    # Looks at results come back soon if Redis does not answer, so that a run can be canceled during an outage.
    quick = {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2}
    return {**_common(), "result_backend_transport_options": {"retry_policy": quick}}


def settings_of_workers() -> dict[str, Any]:
    """Return the settings of a worker."""
    attempts = whole_number_in(ATTEMPTS_VARIABLE, _ATTEMPTS, meaning="attempts")
    return {
        **_common(),
        # What a step prints goes to its log in Dagster as it is, not as warnings of Celery.
        "worker_redirect_stdouts": False,
        "task_annotations": {"*": {"max_retries": attempts, "default_retry_delay": 1}},
        # A result is kept until Redis can take it, even if that takes minutes.
        "result_backend_always_retry": True,
        # A step that was done, but could not be acknowledged because the broker was gone, is not done again.
        "worker_deduplicate_successful_tasks": True,
        "worker_soft_shutdown_timeout": number_in(GRACE_VARIABLE, _GRACE, meaning="seconds", may_be_zero=True),
    }
