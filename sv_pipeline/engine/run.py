"""A whole ingest on one machine: stage after stage, batches in a pool of processes. No Dagster needed.

A worker process that dies breaks its pool, not the ingest: what it left unfinished is planned again, a few times.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sv_pipeline.config import IngestMode, PopulateMethod
from sv_pipeline.engine import stages
from sv_pipeline.engine.batches import Batch, Stage
from sv_pipeline.errors import UnavailableError
from sv_pipeline.registry import Dataset, open_dataset
from sv_pipeline.segmentation.coordinator import ADDRESS_VARIABLE, running_coordinator

__all__ = ["IngestReport", "Progress", "ingest", "run_batches"]

logger = logging.getLogger(__name__)
ATTEMPTS_AFTER_CRASH = 3


class Progress:
    """Receives what happens; the base class ignores it."""

    def begin(self, name: str, total: int) -> None:
        """A step of ``total`` chunks begins."""

    def advance(self, chunks: int) -> None:
        """So many chunks of the step are done."""

    def end(self) -> None:
        """The step is complete."""


@dataclass
class IngestReport:
    """What an ingest did, step by step."""

    graph_id: str
    steps: dict[str, Any] = field(default_factory=dict)


def ingest(
    dataset: Dataset,
    *,
    mode: IngestMode | None = None,
    layers: Sequence[int] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Everything that is missing, in order; may be called again after any failure.

    Parameters
    ----------
    mode
        Graph, voxels, both, or set-up only; default: the configuration's.
    layers
        Only these layers of the graph (no fork is made then); default: all.
    workers
        Processes; default: the configuration's. 1 = this process.

    Raises
    ------
    SvPipelineError
        The first failure; what was finished stays finished.
    """
    mode = mode or dataset.config.ingest.mode
    workers = workers or dataset.config.ingest.workers
    progress = progress or Progress()
    report = IngestReport(dataset.graph_id)
    if stages.needs_watershed(dataset):
        for stage, finish in ((Stage.LABELS, stages.finish_labels), (Stage.EDGES, stages.finish_edges)):
            _run(dataset, f"watershed: {stage}", lambda s=stage: stages.plan_watershed(dataset, s), workers, progress)  # type: ignore[misc]
            report.steps[f"watershed_{stage}"] = finish(dataset)
    report.steps["setup"] = stages.setup(dataset, mode)
    if mode is IngestMode.SETUP:
        return report
    with _coordinator(dataset, mode, workers) as address:
        for layer in layers or stages.layers_of(dataset):
            _run(
                dataset,
                f"layer {layer}",
                lambda n=layer: stages.plan_layer(dataset, n, mode),  # type: ignore[misc]
                workers,
                progress,
                address,
            )
            report.steps[f"layer_{layer}"] = stages.finish_layer(dataset, layer, mode)
    if layers is None and mode is not IngestMode.GRAPH:
        stages.make_fork(dataset)
        report.steps["fork"] = "ready"
    return report


@contextlib.contextmanager
def _coordinator(dataset: Dataset, mode: IngestMode, workers: int) -> Iterator[str | None]:
    """The configured coordinator, or one of our own for the time of the run where the method needs one."""
    config = dataset.config.ocdbt_config
    if mode is IngestMode.GRAPH or config.populate_method is not PopulateMethod.COORDINATOR:
        yield None
    elif address := config.coordinator_address or os.environ.get(ADDRESS_VARIABLE):
        yield address
    else:
        with running_coordinator() as address:
            logger.info("started an OCDBT coordinator at %s for this run (%d workers)", address, workers)
            yield address


def _run(
    dataset: Dataset,
    name: str,
    plan: Callable[[], list[Batch]],
    workers: int,
    progress: Progress,
    address: str | None = None,
) -> None:
    """Plan and run until nothing is left; planned again when a worker died."""
    for attempt in range(ATTEMPTS_AFTER_CRASH):
        batches = plan()
        progress.begin(name, sum(b.stop - b.first for b in batches))
        try:
            run_batches(dataset, batches, workers=workers, progress=progress, coordinator_address=address)
        except BrokenProcessPool as error:
            logger.warning("a worker process of %s died; what it left is planned again", name)
            if attempt + 1 == ATTEMPTS_AFTER_CRASH:
                raise UnavailableError(
                    f"worker processes died {ATTEMPTS_AFTER_CRASH} times in {name}.",
                    remedy="Look for memory limits (ingest.workers, ingest.chunks_per_batch), then run again.",
                ) from error
        else:
            progress.end()
            return


def run_batches(
    dataset: Dataset,
    batches: Sequence[Batch],
    *,
    workers: int,
    progress: Progress,
    coordinator_address: str | None = None,
) -> None:
    """Run batches in this process (one worker, or one batch), else in a pool; the first error stops the rest."""
    if workers == 1 or len(batches) <= 1:
        for batch in batches:
            stages.run_batch(dataset, batch, coordinator_address=coordinator_address, advance=progress.advance)
        return
    # spawn: TensorStore and gRPC run threads that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(batches)), mp_context=context) as pool:
        pending: set[Future[stages.BatchReport]] = {
            pool.submit(_work, dataset.graph_id, dataset.home, batch.key, coordinator_address) for batch in batches
        }
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    progress.advance(future.result().chunks)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@lru_cache(maxsize=4)
def _dataset(graph_id: str, home: str) -> Dataset:
    return open_dataset(graph_id, home)


def _work(graph_id: str, home: str, key: str, coordinator_address: str | None) -> stages.BatchReport:
    """Entry point of a pool worker: one batch, by names alone."""
    return stages.run_batch(_dataset(graph_id, home), Batch.parse(key), coordinator_address=coordinator_address)
