"""Runs batches as the indexes of a Job: creates or finds it, watches it, and believes only the done-markers.

| what happens | what the runner does |
| --- | --- |
| a Job is at work on this stage and layer already, from a step that was killed | It watches that one. |
| that Job has other settings, such as another image | It deletes it, and makes another one. |
| all chunks have their markers | It ends, whatever the Job says. |
| the Job ends, or is deleted by someone, and chunks are missing | It makes a Job for them, a few times. |
| an index fails for good | It raises the first index's reason when the Job has ended, which finishes all others. |
| this process is interrupted | It deletes the Job if the work was cancelled; otherwise the Job goes on. |
| this process is killed | The Job goes on; the next attempt finds it by its name. |
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import groupby
from types import TracebackType
from typing import Any, Self

import numpy as np

from sv_pipeline.config import BackendType
from sv_pipeline.errors import ConfigError, SvPipelineError, UnavailableError
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.batches import Batch, Stage, cut_batches
from sv_pipeline.ingest.indexed_jobs.cluster import KubernetesApi
from sv_pipeline.ingest.indexed_jobs.explaining import explain_failure, what_pods_wait_for
from sv_pipeline.ingest.indexed_jobs.manifest import PLAN, TEMPLATE, base_name, job_manifest
from sv_pipeline.ingest.indexed_jobs.settings import JobSettings
from sv_pipeline.ingest.work import WorkPlan, read_plan, remove_plan, write_plan
from sv_pipeline.processes import interrupts_held
from sv_pipeline.registry import Dataset
from sv_pipeline.storage import kv

__all__ = ["IndexedJobs"]

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How many Jobs the runner makes for the same batches before it gives up."""
SHARE_OF_TIME_FOR_MARKERS = 0.1
"""Largest share of the time that is spent on reading markers."""
SECONDS_BETWEEN_LOOKS = 60.0
"""How often markers are looked at while the Job reports nothing new."""
SECONDS_BETWEEN_REPORTS = 60.0
SECONDS_TO_CANCEL = 15.0
"""How long the deletion of a Job is tried after an interrupt, which schedulers follow with a kill."""
SECONDS_TO_END = 30.0
"""How long a Job whose chunks are all done may take to end by itself before it is deleted."""


class _End(Enum):
    """How the watch over a Job ended."""

    DONE = "all chunks are done"
    COMPLETE = "it was complete"
    FAILED = "it failed"
    GONE = "it was deleted by someone"


class IndexedJobs:
    """Runs batches in a cluster. A context manager, as every `ingest.runner.BatchRunner`.

    Parameters
    ----------
    settings
        How the Jobs run.
    is_cancelled
        Called when this process is interrupted: whether the Job is to be deleted.
    """

    def __init__(self, settings: JobSettings, *, is_cancelled: Callable[[], bool] = lambda: True) -> None:
        self._settings = settings
        self._is_cancelled = is_cancelled
        self._cluster = KubernetesApi(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Leave Jobs as they are."""

    def run(
        self,
        dataset: Dataset,
        batches: Sequence[Batch],
        *,
        advance: Callable[[int], None],
        coordinator_address: str | None = None,
    ) -> None:
        """Run batches, one Job after the other for each stage and layer; see `ingest.runner.BatchRunner.run`."""
        _warn_of_local_places(dataset)
        if (coordinator_address or "").startswith(("127.", "localhost:")):
            raise ConfigError(
                f"graph {dataset.graph_id!r} has populate_method: coordinator, and pods do not reach a coordinator at "
                f"{coordinator_address}.",
                remedy="Set SV_PIPELINE_COORDINATOR to host:port of a coordinator that pods reach, or choose "
                "populate_method: parts.",
            )
        for (stage, _), group in groupby(batches, key=lambda batch: (batch.stage, batch.layer)):
            per_batch = 1 if stage is Stage.VOXELS else dataset.config.ingest.chunks_per_batch
            pieces = cut_batches(list(group), per_batch, self._settings.most_batches)
            work = _Work(self._settings, self._cluster, dataset, pieces, advance, coordinator_address)
            work.finish(self._is_cancelled)


class _Work:
    """The batches of one stage and layer, until they are done."""

    def __init__(
        self,
        settings: JobSettings,
        cluster: KubernetesApi,
        dataset: Dataset,
        batches: list[Batch],
        advance: Callable[[int], None],
        coordinator_address: str | None,
    ) -> None:
        self._settings, self._cluster, self._dataset = settings, cluster, dataset
        self._left = batches
        self._missing = sum(batch.stop - batch.first for batch in batches)
        self._advance = advance
        self._coordinator = coordinator_address
        self._name = base_name(kv.as_url(dataset.home), dataset.graph_id, batches[0])
        self._next_look = 0.0
        self._at_work: str | None = None
        """Name of the Job that an interrupt has to end. It is set before the Job is made, as an answer takes time."""

    def finish(self, is_cancelled: Callable[[], bool]) -> None:
        """Run Jobs until every batch is done."""
        try:
            self._finish()
        except Exception:
            raise
        except BaseException:
            self._leave(is_cancelled)
            raise

    def _finish(self) -> None:
        number = 0
        for _ in range(ATTEMPTS):
            number, job = self._make_or_find(number + 1)
            end, job = (_End.GONE, None) if job is None else self._watch(job)
            self._look_at_markers()
            if not self._left:
                self._clean_up(job, end)
                return
            if end is _End.FAILED:
                raise self._failure(job)
            logger.warning(
                "Job %s-%d has ended (%s), but %d of its batches are not done; another one is made for them",
                self._name,
                number,
                end.value,
                len(self._left),
            )
        raise UnavailableError(
            f"{ATTEMPTS} Jobs {self._name}-* have ended without an error, but {len(self._left)} batches are not done, "
            f"first {self._left[0].key}.",
            remedy="Someone deletes the Jobs, or the pods write to another home folder or table than this process.",
            repeat="Then run again.",
        )

    # -- beginning ----------------------------------------------------------------------------------------------------

    def _make_or_find(self, number: int) -> tuple[int, Any]:
        """Return the Job that is at work on this layer, or else a new one, and its number.

        The Job is None if somebody has deleted the new one before it was seen. It counts as one that has ended:
        otherwise a cluster in which every Job is deleted at once would be asked for new ones without end.
        """
        plan = WorkPlan.of(self._dataset.graph_id, self._left, self._coordinator)
        write_plan(self._dataset.home, plan)
        home = kv.as_url(self._dataset.home)
        while True:
            name = f"{self._name}-{number}"
            manifest = job_manifest(self._settings, plan, name=name, home=home)
            self._at_work = name
            made = self._cluster.create_job(manifest)
            job: Any = self._cluster.job(name)
            if made:
                logger.info("Job %s runs %d batches", name, len(plan.batches))
                return number, job
            if _is_gone(job):
                number += 1
            elif _condition(job) is not None:
                self._at_work = None  # an earlier Job that has ended, and that was left to be looked at
                number += 1
            elif job.metadata.annotations.get(TEMPLATE) == manifest["metadata"]["annotations"][TEMPLATE]:
                logger.info("Job %s is at work on this layer already; it is watched", name)
                return number, job
            else:
                logger.warning("Job %s runs with other settings; it is deleted, and another one is made", name)
                self._cluster.delete_job(name)
                number += 1

    # -- watching -----------------------------------------------------------------------------------------------------

    def _watch(self, job: Any) -> tuple[_End, Any]:
        """Look at a Job until it has ended, or nothing is left to do; return it as it was last seen."""
        name, uid = job.metadata.name, job.metadata.uid
        completed = None
        looked_at = said_at = time.monotonic()
        while True:
            seen: Any = self._cluster.job(name)
            if _is_gone(seen) or seen.metadata.uid != uid:
                return _End.GONE, job
            job = seen
            if (condition := _condition(job)) is not None:
                return (_End.COMPLETE if condition.type == "Complete" else _End.FAILED), job
            now = time.monotonic()
            is_news = job.status.completed_indexes != completed or now - looked_at > SECONDS_BETWEEN_LOOKS
            if is_news and now >= self._next_look:
                completed, looked_at = job.status.completed_indexes, now
                self._look_at_markers()
                if not self._left:
                    return _End.DONE, job
            if now - said_at > SECONDS_BETWEEN_REPORTS:
                said_at = now
                self._report(job)
            time.sleep(self._settings.poll_seconds)

    def _look_at_markers(self) -> None:
        """Find the batches that are not done, and report the chunks that are done since the last look."""
        if not self._left:
            return
        began = time.monotonic()
        mask = stages.missing_mask(self._dataset, self._left[0].stage, self._left[0].layer)
        missing = np.concatenate([[0], np.cumsum(mask)])
        counts = [int(missing[batch.stop] - missing[batch.first]) for batch in self._left]
        self._left = [batch for batch, count in zip(self._left, counts, strict=True) if count]
        if done := self._missing - sum(counts):
            self._missing -= done
            self._advance(done)
        now = time.monotonic()
        self._next_look = now + (now - began) / SHARE_OF_TIME_FOR_MARKERS

    def _report(self, job: Any) -> None:
        status = job.status
        waits = what_pods_wait_for(self._cluster, job.metadata.name) if not status.succeeded else ""
        logger.info(
            "Job %s: %d of %d batches done, %d pods active%s",
            job.metadata.name,
            status.succeeded or 0,
            job.spec.completions,
            status.active or 0,
            f"; {waits}" if waits else "",
        )

    # -- ending -------------------------------------------------------------------------------------------------------

    def _failure(self, job: Any) -> SvPipelineError:
        condition = _condition(job)
        if condition is not None and condition.reason == "DeadlineExceeded":
            return ConfigError(
                f"Job {job.metadata.name} was stopped at its time limit of {job.spec.active_deadline_seconds} s; "
                f"{len(self._left)} batches are not done.",
                remedy="Raise active_deadline_seconds or parallelism in the settings of the Jobs.",
                repeat="Then run again; finished chunks are kept.",
            )
        try:
            plan = read_plan(self._dataset.home, self._dataset.graph_id, job.metadata.annotations[PLAN])
        except SvPipelineError as error:
            logger.warning("%s", error)
            plan = None
        return explain_failure(self._cluster, self._dataset, job, plan)

    def _clean_up(self, job: Any, end: _End) -> None:
        """Remove a Job whose chunks are all done, unless it is to stay; one that still runs gets a moment to end."""
        name = job.metadata.name
        if end is _End.GONE:
            return
        deadline = time.monotonic() + SECONDS_TO_END
        while end is _End.DONE and time.monotonic() < deadline:
            seen = self._cluster.job(name)
            if seen is None or _condition(seen) is not None:
                end = _End.COMPLETE
            else:
                time.sleep(min(self._settings.poll_seconds, 1.0))
        if end is _End.DONE or not self._settings.keep_finished_jobs:
            self._cluster.delete_job(name)
            remove_plan(self._dataset.home, self._dataset.graph_id, job.metadata.annotations[PLAN])

    def _leave(self, is_cancelled: Callable[[], bool]) -> None:
        if self._at_work is None:
            return
        # Schedulers repeat their signals, and Dagster forwards them to the processes of steps: the second one must not
        # keep the Job from being deleted.
        with interrupts_held(signal.SIGTERM):
            if is_cancelled():
                logger.warning("cancelled: Job %s is deleted; finished chunks are kept", self._at_work)
                self._cluster.delete_job(self._at_work, patience=SECONDS_TO_CANCEL)
            else:
                logger.warning("interrupted, but not cancelled: Job %s goes on", self._at_work)


def _is_gone(job: Any | None) -> bool:
    """Tell whether a Job is deleted, or being deleted."""
    return job is None or job.metadata.deletion_timestamp is not None


def _condition(job: Any) -> Any | None:
    """Return the condition that says how a Job has ended; None while it runs."""
    for condition in job.status.conditions or ():
        if condition.type in ("Complete", "Failed") and condition.status == "True":
            return condition
    return None


def _warn_of_local_places(dataset: Dataset) -> None:
    """Log which places of a dataset are files, since pods only find them on a file system that they share."""
    local = [kv.as_url(dataset.home)] if kv.as_url(dataset.home).startswith("file:") else []
    if dataset.config.backend_client.type is BackendType.SQLITE:
        local.append("the SQLite table")
    if local:
        logger.warning("%s: pods find this only on a file system that they share with us", " and ".join(local))
