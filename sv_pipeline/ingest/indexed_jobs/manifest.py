"""The manifest of an Indexed Job: a work plan and the settings, as the API of Kubernetes wants them. Calls nothing.

| how a pod ends | what the Job does with its index |
| --- | --- |
| exit code 0 | It is complete. |
| exit code 65: another attempt would fail in the same way | It has failed; there is no further attempt. |
| evicted, preempted or drained | There is another attempt, which does not count. |
| anything else, such as SIGKILL for memory | There is another attempt, up to ``backoff_limit_per_index``. |
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from sv_pipeline.ingest.batches import Batch
from sv_pipeline.ingest.indexed_jobs.settings import JobSettings
from sv_pipeline.ingest.work import WorkPlan
from sv_pipeline.memory import MEMORY_VARIABLE

__all__ = ["CONTAINER", "PLAN", "TEMPLATE", "WILL_FAIL_AGAIN", "base_name", "job_manifest"]

CONTAINER = "worker"
PREFIX = "sv-pipeline"
PLAN = f"{PREFIX}/plan"
"""Annotation with the name of the work plan."""
TEMPLATE = f"{PREFIX}/template"
"""Annotation with the digest of everything in the Job but its plan."""
WILL_FAIL_AGAIN = 65
"""Exit code of a worker whose failure another attempt would meet again."""
FROM_THE_POD = {
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "NODE_NAME": "spec.nodeName",
}
"""Environment variables that tell a worker where it runs."""


def base_name(home: str, graph_id: str, batch: Batch) -> str:
    """Return the name that all Jobs of one stage and layer of a graph share; a number of the Job is appended to it.

    It depends on nothing else. A retry of a step, another run, and an ingest in a terminal therefore find the Job that
    is at work, and do not start a second one beside it.
    """
    digest = hashlib.sha256(json.dumps([home, graph_id, batch.stage, batch.layer]).encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9]+", "-", graph_id.lower())[:24].strip("-")
    return "-".join(part for part in ("sv", slug, batch.stage.value, f"l{batch.layer:02d}", digest) if part)


def job_manifest(settings: JobSettings, plan: WorkPlan, *, name: str, home: str) -> dict[str, Any]:
    """Return the Job whose index ``i`` runs batch ``i`` of a plan. All batches belong to one stage and layer."""
    first = Batch.parse(plan.batches[0])
    resources = settings.resources_for(first.stage, first.layer)
    labels = {
        "app.kubernetes.io/name": PREFIX,
        "app.kubernetes.io/component": "worker",
        f"{PREFIX}/graph": re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9]+$", "", plan.graph_id)[:63] or "graph",
        f"{PREFIX}/stage": first.stage.value,
        f"{PREFIX}/layer": str(first.layer),
    }
    spec = _without_none(
        {
            "completionMode": "Indexed",
            "completions": len(plan.batches),
            "parallelism": min(len(plan.batches), resources.parallelism or settings.parallelism),
            "backoffLimitPerIndex": settings.backoff_limit_per_index,
            "maxFailedIndexes": _most_failures(settings, len(plan.batches)),
            "activeDeadlineSeconds": settings.active_deadline_seconds,
            "ttlSecondsAfterFinished": settings.ttl_seconds_after_finished,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailIndex",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [WILL_FAIL_AGAIN]},
                    },
                ]
            },
            "template": {
                "metadata": {"labels": labels},
                "spec": _pod(settings, plan, home),
            },
        }
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": settings.namespace,
            "labels": labels,
            "annotations": {
                f"{PREFIX}/graph": plan.graph_id,
                PLAN: plan.name,
                TEMPLATE: _template_digest(settings, plan),
            },
        },
        "spec": spec,
    }


def _pod(settings: JobSettings, plan: WorkPlan, home: str) -> dict[str, Any]:
    first = Batch.parse(plan.batches[0])
    resources = settings.resources_for(first.stage, first.layer)
    requests = _without_none(
        {"memory": resources.memory, "cpu": resources.cpu, "ephemeral-storage": resources.ephemeral_storage}
    )
    limits = {name: amount for name, amount in requests.items() if name != "cpu"}
    env = {MEMORY_VARIABLE: str(resources.budget_mb), **settings.env}
    where = [{"name": n, "valueFrom": {"fieldRef": {"fieldPath": path}}} for n, path in FROM_THE_POD.items()]
    worker = {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": list(settings.command),
        "args": ["--home", home, "work", plan.graph_id, plan.name],
        "env": [*where, *({"name": name, "value": value} for name, value in env.items())],
        "envFrom": [
            *({"configMapRef": {"name": name}} for name in settings.env_config_maps),
            *({"secretRef": {"name": name}} for name in settings.env_secrets),
        ],
        "resources": {"requests": requests, "limits": limits},
        # The last lines of the log become the pod's message, which stays readable as long as the pod exists.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return _without_none(
        {
            "restartPolicy": "Never",
            "serviceAccountName": settings.service_account,
            "automountServiceAccountToken": False,  # a worker never calls the API of the cluster
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "nodeSelector": settings.node_selector or None,
            "tolerations": list(settings.tolerations) or None,
            "priorityClassName": settings.priority_class,
            "containers": [worker],
        }
    )


def _most_failures(settings: JobSettings, completions: int) -> int | None:
    """Value of ``maxFailedIndexes``; the API requires one for very large Jobs."""
    if settings.max_failed_indexes is None:
        return 10_000 if completions > 100_000 else None
    return min(settings.max_failed_indexes, completions)


def _template_digest(settings: JobSettings, plan: WorkPlan) -> str:
    """Digest of what a change of the settings or of the coordinator changes for the pods of a Job."""
    first = Batch.parse(plan.batches[0])
    watching = {"poll_seconds", "api_patience_seconds", "keep_finished_jobs", "parallelism", "context", "resources"}
    own = settings.resources_for(first.stage, first.layer).model_dump(exclude={"parallelism"})
    said = [settings.model_dump(mode="json", exclude=watching), own, plan.coordinator]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
