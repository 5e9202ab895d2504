"""Starts a Celery worker for the steps of this project: ``python -m sv_pipeline.defs.celery.worker --concurrency 4``.

The process is the worker itself, no wrapper. All options are those of ``celery worker``.

SIGTERM, SIGINT and SIGQUIT stop it: no step is begun any more, and running steps have
SV_PIPELINE_CELERY_GRACE_SECONDS (10) to end. Then the pool processes are stopped, and their steps are given to other
workers. After SIGKILL, the pool processes end within a second, and the runs give their steps to other workers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a worker until it is stopped."""
    # Celery reads it when it is imported. Without it, SIGTERM waits for running steps, however long they take.
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")
    from sv_pipeline.defs.celery.app import app

    options = list(sys.argv[1:] if arguments is None else arguments)
    app.worker_main(["worker", "--loglevel", "INFO", "--without-gossip", *options])


if __name__ == "__main__":
    main()
