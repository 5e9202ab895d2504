"""A whole ingest without Dagster: stage after stage, with batches in a pool of processes or in pods.

A worker process that dies breaks its pool, but not the ingest: its unfinished batches are planned again, a few times.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sv_pipeline.config import IngestMode, PopulateMethod
from sv_pipeline.errors import InputError, UnavailableError
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.batches import Batch, Stage
from sv_pipeline.ingest.missing_chunks import missing_chunks
from sv_pipeline.ingest.pool import BrokenProcessPool
from sv_pipeline.ingest.runner import BatchRunner, runner_from_environment
from sv_pipeline.progress import Progress
from sv_pipeline.registry import Dataset
from sv_pipeline.storage.coordinator import known_address, running_coordinator
from sv_pipeline.storage.presence import building

__all__ = ["IngestReport", "Progress", "ingest"]

logger = logging.getLogger(__name__)
ATTEMPTS_AFTER_CRASH = 3


@dataclass
class IngestReport:
    """The result of an ingest, by step."""

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
    """Build everything that is missing, in order. May be called again after any failure.

    Parameters
    ----------
    mode
        What to build: graph, voxels, both, or only the set-up; default: the configuration's mode.
    layers
        Layers to build; no fork is made if they are given. Default: all.
    workers
        Number of processes on this machine; 1 = this process only. Default: the configuration's number.
    progress
        Receives the steps and their progress.

    Raises
    ------
    ConfigError
        If the graph has no such layer.
    ConflictError
        If the graph is being retired.
    SvPipelineError
        The first failure. Finished chunks stay finished.
    """
    mode = mode or dataset.config.ingest.mode
    workers = workers or dataset.config.ingest.workers
    with building(dataset.home, dataset.graph_id), contextlib.ExitStack() as stack:
        run = _IngestRun(
            dataset, mode, stack.enter_context(runner_from_environment(workers)), progress or Progress(), stack
        )
        return _ingest(run, layers)


@dataclass
class _IngestRun:
    """State of one call of :func:`ingest`."""

    dataset: Dataset
    mode: IngestMode
    runner: BatchRunner
    progress: Progress
    until_the_end: contextlib.ExitStack
    coordinator: str | None = None
    coordinator_is_ours: bool = False

    def step(self, name: str, plan: Callable[[], list[Batch]], size: Callable[[], int]) -> None:
        """Plan a step and run its batches; plan and run it again if a worker or our coordinator dies.

        ``size`` is called after ``plan``, and returns the number of chunks of the step, done or not.
        """
        for _ in range(ATTEMPTS_AFTER_CRASH):
            batches = plan()
            total = size()
            self.progress.begin(name, total, total - sum(b.stop - b.first for b in batches))
            if any(batch.stage is Stage.VOXELS for batch in batches):
                self._need_coordinator()
            try:
                self.runner.run(
                    self.dataset, batches, advance=self.progress.advance, coordinator_address=self.coordinator
                )
            except BrokenProcessPool:
                logger.warning("a worker process of %s died; its unfinished batches are planned again", name)
            except UnavailableError as error:
                if not self._lost_coordinator():
                    raise
                logger.warning("the OCDBT coordinator of %s died (%s); another one is started", name, error)
            else:
                self.progress.end()
                return
        raise UnavailableError(
            f"worker processes, or the coordinator, died {ATTEMPTS_AFTER_CRASH} times in {name}.",
            remedy="Look for memory limits (ingest.workers, ingest.chunks_per_batch).",
            repeat="Then run again.",
        )

    def _need_coordinator(self) -> None:
        """Find the configured coordinator, or start one for the rest of the run, if the populate method needs one."""
        config = self.dataset.config.ocdbt_config
        if self.coordinator is not None or config.populate_method is not PopulateMethod.COORDINATOR:
            return
        self.coordinator = known_address(config.coordinator_address)
        if self.coordinator is None:
            self.coordinator = self.until_the_end.enter_context(running_coordinator())
            self.coordinator_is_ours = True
            logger.info("started an OCDBT coordinator at %s for this run", self.coordinator)

    def _lost_coordinator(self) -> bool:
        """Return whether our own coordinator has died; if so, it is forgotten so that another one is started."""
        if self.coordinator is None or not self.coordinator_is_ours:
            return False
        host, _, port = self.coordinator.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            self.coordinator, self.coordinator_is_ours = None, False
            return True
        return False


def _ingest(run: _IngestRun, layers: Sequence[int] | None) -> IngestReport:
    dataset, mode = run.dataset, run.mode
    with contextlib.suppress(InputError):  # of a watershed that does not exist yet, the layers are not known
        stages.layers_of(dataset, layers)
    report = IngestReport(dataset.graph_id)
    needed = stages.needs_watershed(dataset)
    if missing := missing_chunks(dataset, needed=needed):
        report.steps["missing_chunks"] = missing
    if needed:
        for stage, finish in ((Stage.LABELS, stages.finish_labels), (Stage.EDGES, stages.finish_edges)):
            run.step(
                f"watershed: {stage}",
                lambda s=stage: stages.plan_watershed(dataset, s),  # type: ignore[misc]
                lambda: dataset.grid.count(2),
            )
            report.steps[f"watershed_{stage}"] = finish(dataset)
    report.steps["setup"] = stages.setup(dataset, mode)
    if mode is IngestMode.SETUP:
        return report
    for layer in stages.layers_of(dataset, layers):
        run.step(
            f"layer {layer}",
            lambda n=layer: stages.plan_layer(dataset, n, mode),  # type: ignore[misc]
            lambda n=layer: stages.step_size(dataset, n, mode),  # type: ignore[misc]
        )
        report.steps[f"layer_{layer}"] = stages.finish_layer(dataset, layer, mode)
    if layers is None and mode is not IngestMode.GRAPH:
        stages.make_fork(dataset)
        report.steps["fork"] = "ready"
    return report
