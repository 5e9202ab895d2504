"""The worker processes of one machine: started when first needed, replaced when one dies. Knows batches, not stages.

Workers never outlive their coordinator: killed (even with SIGKILL) or interrupted, it takes them along. That is safe at
any moment, because a batch counts as done by its markers alone.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache

from sv_pipeline.errors import SvPipelineError
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.batches import Batch
from sv_pipeline.registry import Dataset, open_dataset

__all__ = ["BrokenProcessPool", "WorkerPool"]

logger = logging.getLogger(__name__)


class WorkerPool:
    """Runs batches: in this process if there is one worker or one batch, else in ``workers`` processes.

    A context manager. The processes live as long as it does, so each of them starts and opens the dataset once.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(
        self,
        dataset: Dataset,
        batches: Sequence[Batch],
        *,
        advance: Callable[[int], None],
        coordinator_address: str | None = None,
    ) -> None:
        """Run batches; the first error keeps others from starting, and is raised when those that run have ended.

        Raises
        ------
        BrokenProcessPool
            If a worker process died. The next call starts new ones.
        """
        if self._workers == 1 or len(batches) <= 1:
            for batch in batches:
                stages.run_batch(dataset, batch, coordinator_address=coordinator_address, advance=advance)
            return

        def start(batch: Batch) -> Future[stages.BatchReport]:
            with _interrupts_held():
                return self._start().submit(_work, dataset.graph_id, dataset.home, batch.key, coordinator_address)

        try:
            _run_all(batches, start, self._workers, advance)
        except BrokenProcessPool:
            self._stop()
            raise
        except SvPipelineError:
            raise
        except BaseException:
            # An interrupt, or a defect: nobody waits for what the workers are at.
            self._stop(terminate=True)
            raise

    def _start(self) -> ProcessPoolExecutor:
        if self._executor is None:
            # spawn: TensorStore and gRPC run threads that do not survive a fork.
            context = multiprocessing.get_context("spawn")
            level = logging.getLogger().getEffectiveLevel()
            self._executor = ProcessPoolExecutor(
                self._workers, mp_context=context, initializer=_begin_worker, initargs=(level,)
            )
        return self._executor

    def _stop(self, *, terminate: bool = False) -> None:
        executor, self._executor = self._executor, None
        if executor is None:
            return
        if terminate:
            for process in list((executor._processes or {}).values()):
                process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)


def _run_all(
    batches: Sequence[Batch],
    start: Callable[[Batch], Future[stages.BatchReport]],
    at_once: int,
    advance: Callable[[int], None],
) -> None:
    """Keep so many batches running. After the first error none is started; it is raised when those that run end."""
    waiting = deque(batches)
    running: dict[Future[stages.BatchReport], Batch] = {}
    first: BaseException | None = None
    while running or (waiting and first is None):
        # Not all at once: what an executor has queued for its workers cannot be taken back after an error.
        while waiting and first is None and len(running) < at_once:
            batch = waiting.popleft()
            running[start(batch)] = batch
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            batch, error = running.pop(future), future.exception()
            if error is None:
                advance(future.result().chunks)
            elif isinstance(error, BrokenProcessPool):
                raise error
            elif first is None:
                first = error
            else:
                logger.warning("batch %s failed too: %s", batch.key, error)
    if first is not None:
        raise first


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that are started in the block never see Ctrl-C, which reaches the whole process group.

    This process gets it after the block; it alone decides, and ends its workers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- inside a worker --------------------------------------------------------------------------------------------------


def _begin_worker(log_level: int) -> None:
    logging.basicConfig(level=log_level, format="%(levelname)s in worker %(process)d: %(message)s")
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose coordinator was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@lru_cache(maxsize=4)
def _dataset(graph_id: str, home: str) -> Dataset:
    return open_dataset(graph_id, home)


def _work(graph_id: str, home: str, key: str, coordinator_address: str | None) -> stages.BatchReport:
    """One batch, by names alone."""
    return stages.run_batch(_dataset(graph_id, home), Batch.parse(key), coordinator_address=coordinator_address)
