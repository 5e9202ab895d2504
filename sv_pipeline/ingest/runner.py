"""What runs the batches of a step: the interface of the runners, and the choice among them by SV_PIPELINE_FANOUT.

| SV_PIPELINE_FANOUT | runner | where a batch runs |
| --- | --- | --- |
| ``local`` (default) | `pool.WorkerPool` | in a process of this machine |
| ``kubernetes`` | `indexed_jobs.IndexedJobs` | in a pod: one index of a Kubernetes Job |

No runner is believed: a step is complete when every chunk has its done-marker.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from sv_pipeline.errors import ConfigError
from sv_pipeline.ingest.batches import Batch
from sv_pipeline.ingest.pool import WorkerPool
from sv_pipeline.registry import Dataset

__all__ = ["FANOUT_VARIABLE", "BatchRunner", "fans_out_to_kubernetes", "runner_from_environment"]

FANOUT_VARIABLE = "SV_PIPELINE_FANOUT"


class BatchRunner(Protocol):
    """Runs batches, reports their progress, and returns when all have ended. A context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def run(
        self,
        dataset: Dataset,
        batches: Sequence[Batch],
        *,
        advance: Callable[[int], None],
        coordinator_address: str | None = None,
    ) -> object:
        """Run batches of one step; running a batch again that is done, or half done, is harmless.

        Parameters
        ----------
        advance
            Called with the number of chunks whenever further chunks are done.
        coordinator_address
            ``host:port`` of an OCDBT coordinator that every worker reaches, for batches that need one.

        Raises
        ------
        SvPipelineError
            The first failure, after all other batches have ended.
        """


def fans_out_to_kubernetes() -> bool:
    """Whether batches run in pods; ConfigError if SV_PIPELINE_FANOUT names no runner."""
    name = os.environ.get(FANOUT_VARIABLE, "").strip() or "local"
    if name not in ("local", "kubernetes"):
        raise ConfigError(f"{FANOUT_VARIABLE} is {name!r}.", remedy="Set it to local or kubernetes.")
    return name == "kubernetes"


def runner_from_environment(workers: int, *, is_cancelled: Callable[[], bool] = lambda: True) -> BatchRunner:
    """Return the runner that SV_PIPELINE_FANOUT names.

    Parameters
    ----------
    workers
        Number of processes of the local pool. Pods are counted by the settings of the Job instead.
    is_cancelled
        Called when this process is interrupted: whether nobody wants the work any more. Otherwise pods go on, and the
        next attempt finds them. By default an interrupt ends the work.
    """
    if not fans_out_to_kubernetes():
        return WorkerPool(workers)
    # Imported here, since the client of Kubernetes is an extra and takes a second to load.
    from sv_pipeline.ingest.indexed_jobs.runner import IndexedJobs
    from sv_pipeline.ingest.indexed_jobs.settings import settings_from_environment

    return IndexedJobs(settings_from_environment(), is_cancelled=is_cancelled)
