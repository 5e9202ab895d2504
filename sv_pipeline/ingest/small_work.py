"""Batches that are few and quick are run where they were planned; the rest is left to other processes or machines.

Handing a batch out may take longer than the batch itself. ``SmallWork`` therefore begins by itself, in a pool of this
machine, and returns what is left after a while.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sv_pipeline.environment import number_in
from sv_pipeline.errors import ConfigError, UnavailableError
from sv_pipeline.ingest.batches import Batch
from sv_pipeline.ingest.pool import BrokenProcessPool, WorkerPool
from sv_pipeline.registry import Dataset

__all__ = ["BATCHES_VARIABLE", "SECONDS_VARIABLE", "SmallWork"]

BATCHES_VARIABLE = "SV_PIPELINE_BATCHES_IN_STEP"
SECONDS_VARIABLE = "SV_PIPELINE_SECONDS_IN_STEP"


@dataclass(frozen=True)
class SmallWork:
    """How much is run in the process that planned it.

    Parameters
    ----------
    batches
        A stage with more batches than this is not begun here; 0 = nothing is.
    seconds
        Time after which no batch is begun here.
    """

    batches: int = 8
    seconds: float = 20.0

    @classmethod
    def from_environment(cls, batches: int = 8) -> SmallWork:
        """Read SV_PIPELINE_BATCHES_IN_STEP (default: ``batches``) and SV_PIPELINE_SECONDS_IN_STEP (20)."""
        number = number_in(BATCHES_VARIABLE, batches, meaning="batches", may_be_zero=True)
        if number != int(number):
            raise ConfigError(
                f"{BATCHES_VARIABLE} is {os.environ[BATCHES_VARIABLE]!r}.",
                remedy=f"Set it to a whole number of batches, such as {batches}.",
            )
        return cls(int(number), number_in(SECONDS_VARIABLE, cls.seconds, meaning="seconds", may_be_zero=True))

    @classmethod
    def everything(cls) -> SmallWork:
        """Return limits that leave nothing to others."""
        return cls(1 << 62, float("inf"))

    def run(
        self,
        dataset: Dataset,
        batches: Sequence[Batch],
        coordinator_address: str | None = None,
        *,
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[Batch]:
        """Run batches if they are few, as long as there is time; return those that were not begun.

        Parameters
        ----------
        advance
            Called with the number of chunks whenever further chunks are done.

        Raises
        ------
        UnavailableError
            If a process of the pool died. What is done stays done.
        """
        if not batches or len(batches) > self.batches:
            return list(batches)
        until = time.monotonic() + self.seconds
        try:
            with WorkerPool(dataset.config.ingest.workers) as pool:
                return pool.run(dataset, batches, advance=advance, coordinator_address=coordinator_address, until=until)
        except BrokenProcessPool as error:
            raise UnavailableError(
                "a worker process died.", remedy="Look for memory limits (ingest.workers).", repeat="Then run again."
            ) from error
