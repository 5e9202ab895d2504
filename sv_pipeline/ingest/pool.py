"""A pool of worker processes on one machine, started when the work is worth it and replaced when one dies.

The pool knows batches, not stages. Starting processes takes longer than a small ingest, so this process does small work
itself. Workers never outlive the process that started them: they end when it is interrupted or killed, even with
SIGKILL. That is safe at any moment, because only its markers make a batch count as done.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import lru_cache

from sv_pipeline.environment import number_in
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.batches import Batch
from sv_pipeline.ingest.planning import expected_seconds
from sv_pipeline.processes import BrokenProcessPool, Workers, count_up
from sv_pipeline.registry import Dataset, open_dataset

__all__ = ["ALONE_VARIABLE", "BrokenProcessPool", "WorkerPool"]

logger = logging.getLogger(__name__)
ALONE_VARIABLE = "SV_PIPELINE_SECONDS_ALONE"
ALONE_SECONDS = 1.0
"""Time of work, of all steps together, that is done in this process before others are started. Their start, and their
imports, take about as long as they would save of it."""
RAMP_FROM_CHUNKS = 20_000
"""Number of unfinished chunks from which the workers of a layer start one after the other."""
SECONDS_BETWEEN_LOOKS = 0.5
"""Seconds after which the pool looks again how far the batches are, and whether another worker may start."""


class WorkerPool:
    """Runs batches: in ``workers`` processes, or in this one if there is one worker, one batch or little work.

    The pool is a context manager. Its processes live until it is closed, so each opens the dataset only once.

    Raises
    ------
    ConfigError
        If SV_PIPELINE_SECONDS_ALONE, the time of work after which processes are started, is no number of seconds.
    """

    def __init__(self, workers: int) -> None:
        self._count = workers
        self._workers: Workers | None = None
        self._seconds_alone = number_in(ALONE_VARIABLE, ALONE_SECONDS, meaning="seconds", may_be_zero=True)
        """What is left of the time of work in this process."""

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
        until: float = math.inf,
    ) -> list[Batch]:
        """Run batches. After the first error no batch is started; it is raised when all running batches have ended.

        Parameters
        ----------
        until
            Value of ``time.monotonic()`` from which on no batch is started.

        Returns
        -------
        list
            The batches that were not started.

        Raises
        ------
        BrokenProcessPool
            If a worker process died. The next call starts new ones.
        """

        def run_here(until: float) -> list[Batch]:
            waiting = deque(batches)
            while waiting and time.monotonic() < until:
                batch = waiting.popleft()
                stages.run_batch(dataset, batch, coordinator_address=coordinator_address, advance=advance)
            return list(waiting)

        if self._count == 1 or len(batches) <= 1:
            return run_here(until)
        if self._workers is None and expected_seconds(dataset, batches) < self._seconds_alone:
            # Should the work be more than was expected, processes are started for what is left of it.
            began = time.monotonic()
            batches = run_here(min(until, began + self._seconds_alone))
            self._seconds_alone -= time.monotonic() - began
            if not batches or time.monotonic() >= until:
                return list(batches)

        def start(batch: Batch, counter: int) -> Future[stages.BatchReport]:
            workers = self._start()
            workers.counters[counter] = 0
            return workers.submit(_work, dataset.graph_id, dataset.home, batch.key, coordinator_address, counter)

        def counted(counter: int) -> int:
            return int(self._start().counters[counter])

        try:
            running = _Running(start, counted, advance, list(range(self._count)))
            return _run_all(batches, running, _ramp(dataset, batches, self._count), until)
        except BrokenProcessPool:
            self._stop()
            raise
        except SvPipelineError:
            raise
        except BaseException:
            # An interrupt or a defect: the results of the workers are not needed any more.
            self._stop(terminate=True)
            raise

    def _start(self) -> Workers:
        if self._workers is None:
            self._workers = Workers(self._count, counters=self._count)
        return self._workers

    def _stop(self, *, terminate: bool = False) -> None:
        workers, self._workers = self._workers, None
        if workers is None:
            return
        if terminate:
            workers.terminate()
        else:
            workers.shutdown(wait=True, cancel_futures=True)


def _ramp(dataset: Dataset, batches: Sequence[Batch], workers: int) -> Callable[[], int]:
    """Return a function that tells how many batches may run now.

    Workers of a large layer start one after the other: a table that gets the writes of all of them at once has not had
    the time to divide its rows among its nodes. In a small layer, waiting would take longer than it saves.
    """
    seconds = dataset.config.ingest.ramp_seconds
    if not seconds or sum(batch.stop - batch.first for batch in batches) < RAMP_FROM_CHUNKS:
        return lambda: workers
    started = time.monotonic()
    return lambda: min(workers, 1 + int((workers - 1) * (time.monotonic() - started) / seconds))


@dataclass(eq=False)
class _Running:
    """The batches at work, each with a counter by which its worker reports the chunks that are done."""

    start: Callable[[Batch, int], Future[stages.BatchReport]]
    counted: Callable[[int], int]
    advance: Callable[[int], None]
    counters: list[int]
    """Counters that no batch uses."""
    batches: dict[Future[stages.BatchReport], tuple[Batch, int]] = field(default_factory=dict)
    reported: dict[int, int] = field(default_factory=dict)
    """Chunks of the batch of each counter that were reported."""

    def begin(self, batch: Batch) -> None:
        counter = self.counters.pop()
        self.reported[counter] = 0
        self.batches[self.start(batch, counter)] = batch, counter

    def look(self, seconds: float) -> set[Future[stages.BatchReport]]:
        """Wait for the end of any batch, at most so long; report what is done meanwhile."""
        ended = wait(self.batches, seconds, return_when=FIRST_COMPLETED).done
        for _, counter in self.batches.values():
            self._report(counter, self.counted(counter))
        return ended

    def end(self, future: Future[stages.BatchReport]) -> tuple[Batch, BaseException | None]:
        """Return a batch that has ended, and its error."""
        batch, counter = self.batches.pop(future)
        if (error := future.exception()) is None:
            self._report(counter, future.result().chunks)
        self.counters.append(counter)
        return batch, error

    def _report(self, counter: int, done: int) -> None:
        if done > self.reported[counter]:
            self.advance(done - self.reported[counter])
            self.reported[counter] = done


def _run_all(batches: Sequence[Batch], running: _Running, at_once: Callable[[], int], until: float) -> list[Batch]:
    """Keep ``at_once()`` batches running, and return those not started.

    After the first error none is started; it is raised when the others end.
    """
    waiting = deque(batches)
    first: BaseException | None = None
    while running.batches or (waiting and first is None and time.monotonic() < until):
        # Not all are submitted at once, since batches that an executor has queued cannot be canceled after an error.
        while waiting and first is None and len(running.batches) < at_once() and time.monotonic() < until:
            running.begin(waiting.popleft())
        for future in running.look(SECONDS_BETWEEN_LOOKS):
            batch, error = running.end(future)
            if error is None:
                continue
            if isinstance(error, BrokenProcessPool):
                raise error
            if first is None:
                first = error
            else:
                logger.warning("batch %s failed too: %s", batch.key, error)
    if first is not None:
        raise first
    return list(waiting)


# -- inside a worker --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _dataset(graph_id: str, home: str) -> Dataset:
    return open_dataset(graph_id, home)


def _work(graph_id: str, home: str, key: str, coordinator_address: str | None, counter: int) -> stages.BatchReport:
    """Run one batch in a worker process, which gets only names and opens the dataset itself."""
    return stages.run_batch(
        _dataset(graph_id, home),
        Batch.parse(key),
        coordinator_address=coordinator_address,
        advance=lambda chunks: count_up(counter, chunks),
    )
