"""Why an index of a Job has failed, or why its pods do not start: from the pods, and from the chunks' ingest rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sv_pipeline import errors
from sv_pipeline.errors import ConfigError, NotFoundError, SvPipelineError, UnavailableError
from sv_pipeline.ingest.batches import Batch, Stage
from sv_pipeline.ingest.indexed_jobs.cluster import KubernetesApi
from sv_pipeline.ingest.indexed_jobs.manifest import CONTAINER
from sv_pipeline.ingest.reservations import read_task_rows
from sv_pipeline.ingest.work import WorkPlan
from sv_pipeline.registry import Dataset

__all__ = ["explain_failure", "indexes_in", "what_pods_wait_for"]

INDEX = "batch.kubernetes.io/job-completion-index"
KINDS = {
    kind.kind: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SvPipelineError) and kind is not errors.DamagedError
}
OUR_LAST_LINE = re.compile(r"error \((\w+)\):\s*(.+)", re.DOTALL)
MOST_TEXT = 1000
"""Number of characters of a pod's log in a message."""


def indexes_in(text: str | None) -> Iterator[int]:
    """Yield the indexes of a list such as ``"1,3-5"``, as the status of a Job writes it, in ascending order."""
    for part in (text or "").split(","):
        if part.strip():
            first, _, last = part.partition("-")
            yield from range(int(first), int(last or first) + 1)


def explain_failure(cluster: KubernetesApi, dataset: Dataset, job: Any, plan: WorkPlan | None) -> SvPipelineError:
    """Return an error that names the first index that failed for good, why, and on which node.

    The class of the error is that of the worker's own error, so a retry policy treats both in the same way.
    """
    name = job.metadata.name
    failed = list(indexes_in(job.status.failed_indexes))
    if not failed:
        said = "; ".join(f"{c.reason}: {c.message}" for c in job.status.conditions or () if c.type == "Failed")
        return UnavailableError(f"Job {name} failed ({said}).", remedy=f"Look at it: kubectl describe job {name}.")
    batch = Batch.parse(plan.batches[failed[0]]) if plan is not None else None
    work = "" if batch is None else f" ({batch.key})"
    others = "" if len(failed) == 1 else f", as {len(failed) - 1} others"
    pods = [pod for pod in cluster.pods_of(name) if _index_of(pod) == failed[0] and pod.status.phase == "Failed"]
    how, text = _end_of(cluster, pods[-1]) if pods else ("its pods are gone", "")
    message = f"index {failed[0]} of Job {name}{work} failed for good{others}: {how}."
    ours = OUR_LAST_LINE.search(text)
    kind, said = KINDS.get(ours[1], UnavailableError) if ours else UnavailableError, ours[2].strip() if ours else text
    if row := _row_error(dataset, batch):
        message += f" Its ingest row says: {row}"
    elif said:
        message += f" It said: {said[-MOST_TEXT:]}"
    if "OOMKilled" in how:
        kind_of_work = batch.stage.value if batch is not None else "default"
        return ConfigError(
            message,
            remedy=f"Raise resources.{kind_of_work}.memory in the settings of the Jobs, or make batches smaller "
            "(ingest.chunks_per_batch).",
            repeat="Then run again.",
        )
    return kind(message, remedy="Finished chunks are kept.", repeat="Run again after the repair.")


def _row_error(dataset: Dataset, batch: Batch | None) -> str | None:
    """Return the error in the ingest row of the first failed chunk of a batch; None if no row has one."""
    if batch is None or batch.stage is not Stage.GRAPH:
        return None
    try:
        graph = dataset.graph
    except NotFoundError:
        return None
    coordinates = batch.coordinates(graph.grid)
    rows = read_task_rows(graph, batch.layer, graph.layout.chunk_ids(batch.layer, coordinates))
    for chunk, row in zip(coordinates.tolist(), rows, strict=True):
        if row.done is None and row.failed is not None:
            return f"chunk {tuple(chunk)}: {row.failed['error']}"
    return None


def _end_of(cluster: KubernetesApi, pod: Any) -> tuple[str, str]:
    """Return how a pod ended, in words, and the last lines that it wrote."""
    where = f"pod {pod.metadata.name} on node {pod.spec.node_name or 'none'}"
    ended = next((s.state.terminated for s in pod.status.container_statuses or () if s.name == CONTAINER), None)
    if ended is None:
        return f"{where} failed ({pod.status.reason or 'without a reason'}: {pod.status.message or 'no message'})", ""
    number = f"exit code {ended.exit_code}"
    if ended.exit_code > 128:
        number += f", signal {ended.exit_code - 128}"
    reason = pod.status.reason or ended.reason or "Error"
    text = (ended.message or "").strip() or cluster.last_lines(pod.metadata.name)
    return f"{where} ended with {reason} ({number})", text


def _index_of(pod: Any) -> int:
    return int((pod.metadata.annotations or {}).get(INDEX, -1))


def what_pods_wait_for(cluster: KubernetesApi, name: str) -> str:
    """Return why a pod of a Job does not start, such as an image that cannot be pulled; empty if none waits."""
    for pod in cluster.pods_of(name):
        for status in pod.status.container_statuses or ():
            waiting = status.state.waiting if status.state else None
            if waiting is not None and waiting.reason != "ContainerCreating":
                return f"pod {pod.metadata.name} waits: {waiting.reason}, {waiting.message or 'no message'}"
        for condition in pod.status.conditions or ():
            if condition.type == "PodScheduled" and condition.status == "False":
                return f"pod {pod.metadata.name} waits: {condition.reason}, {condition.message or 'no message'}"
    return ""
