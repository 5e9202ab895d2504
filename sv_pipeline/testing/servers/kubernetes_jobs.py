"""A controller of Jobs for tests: each index is a real process, with the environment of its pod.

It follows the rules of the real controller for what we use: parallelism, attempts per index, the pod failure policy,
the largest number of failed indexes, the time limit, and deletion. Speaks no HTTP; see `kubernetes`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sv_pipeline.processes import interrupts_held

__all__ = ["JobController", "RunningJob", "RunningPod", "indexes_as_text"]

INDEX = "batch.kubernetes.io/job-completion-index"
JOB_NAME = "batch.kubernetes.io/job-name"
TICK = 0.03
GRACE_SECONDS = 10.0
"""Time that a pod has to end after SIGTERM."""
MOST_OF_A_MESSAGE = 2048
"""Length of a termination message that is taken from the log, in bytes, as in a real cluster."""
NODES = ("node-a", "node-b")


def now() -> str:
    """Return the present time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def indexes_as_text(indexes: Iterable[int]) -> str:
    """Write indexes as the status of a Job does: ``0,2-5``."""
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}{',' if b == a + 1 else '-'}{b}" for a, b in runs)


@dataclass
class RunningPod:
    """A pod: one attempt of an index."""

    manifest: dict[str, Any]
    index: int
    process: subprocess.Popen[bytes]
    log: Path
    evicted: bool = False
    ended: int | None = None
    """Exit code, as a shell gives it; None while the pod runs."""

    @property
    def name(self) -> str:
        """Name of the pod."""
        return str(self.manifest["metadata"]["name"])

    def log_text(self) -> str:
        """Return everything that the pod wrote."""
        return self.log.read_text(errors="replace")


@dataclass
class RunningJob:
    """A Job, the state of its indexes, and its pods."""

    manifest: dict[str, Any]
    pods: list[RunningPod] = field(default_factory=list)
    completed: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    failures: dict[int, int] = field(default_factory=dict)
    """Number of failures of each index that count."""
    not_before: dict[int, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def spec(self) -> dict[str, Any]:
        """The Job's specification; a Job without indexes is one of a single index."""
        spec = self.manifest["spec"]
        attempts = spec.get("backoffLimitPerIndex", spec.get("backoffLimit", 6))
        return {"completions": 1, "parallelism": 1, **spec, "backoffLimitPerIndex": attempts}

    @property
    def name(self) -> str:
        """Name of the Job."""
        return str(self.manifest["metadata"]["name"])

    @property
    def active(self) -> list[RunningPod]:
        """Pods that run."""
        return [pod for pod in self.pods if pod.ended is None]

    @property
    def finished(self) -> bool:
        """Whether the Job has ended."""
        return any(c["type"] in ("Complete", "Failed") for c in self.manifest["status"].get("conditions", ()))


class JobController:
    """Runs Jobs until it is closed.

    Parameters
    ----------
    folder
        Where the logs of pods are written.
    node_environment
        Environment variables that every process of a node has, as those of an image.
    config_maps
        Config maps and secrets by name; a pod's environment may refer to them.
    back_off
        Seconds until an index that failed is tried again.
    """

    def __init__(
        self,
        folder: Path,
        node_environment: Mapping[str, str],
        config_maps: Mapping[str, Mapping[str, str]],
        back_off: float = 0.1,
    ) -> None:
        self.lock = threading.RLock()
        self.jobs: dict[tuple[str, str], RunningJob] = {}
        self.paused = False
        """While true, no pod is started, as in a cluster without room."""
        self._folder, self._environment, self._config_maps = folder, dict(node_environment), config_maps
        self._back_off = back_off
        self._ending: list[tuple[RunningPod, float]] = []
        """Pods that were told to end, and when they are killed."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job controller", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all pods."""
        self._closed.set()
        self._thread.join()
        with self.lock:
            left = [pod for job in self.jobs.values() for pod in job.active] + [pod for pod, _ in self._ending]
            for pod in left:
                self._signal(pod, signal.SIGKILL)
            for pod in left:
                pod.process.wait()

    def add(self, manifest: dict[str, Any]) -> RunningJob:
        """Begin a Job; KeyError if there is one of its name."""
        meta = manifest["metadata"]
        with self.lock:
            place = (meta["namespace"], meta["name"])
            if place in self.jobs:
                raise KeyError(meta["name"])
            meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "resourceVersion": "1", "generation": 1}
            manifest["status"] = {"startTime": now()}
            job = self.jobs[place] = RunningJob(manifest)
            self._refresh(job)
            return job

    def remove(self, namespace: str, name: str) -> RunningJob:
        """Delete a Job, and tell its pods to end; KeyError if there is none."""
        with self.lock:
            job = self.jobs.pop((namespace, name))
            self._end_pods(job)
            return job

    # -- one turn -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed.wait(TICK):
            with self.lock:
                self._reap()
                for job in self.jobs.values():
                    self._turn(job)

    def _turn(self, job: RunningJob) -> None:
        for pod in job.active:
            if pod.process.poll() is not None:
                self._note_end(pod)
                if not job.finished:
                    self._account(job, pod)
        if not job.finished:
            self._judge(job)
        if not job.finished and not self.paused:
            self._start_pods(job)
        self._refresh(job)

    def _account(self, job: RunningJob, pod: RunningPod) -> None:
        """Apply the pod failure policy to a pod that has ended."""
        if pod.ended == 0:
            job.completed.add(pod.index)
            return
        action = self._action(job, pod)
        if action == "Ignore":
            return
        if action == "FailIndex":
            job.failed.add(pod.index)
            return
        job.failures[pod.index] = job.failures.get(pod.index, 0) + 1
        job.not_before[pod.index] = time.monotonic() + self._back_off
        if job.failures[pod.index] > job.spec["backoffLimitPerIndex"]:
            job.failed.add(pod.index)

    @staticmethod
    def _action(job: RunningJob, pod: RunningPod) -> str:
        for rule in job.spec.get("podFailurePolicy", {}).get("rules", ()):
            if pod.evicted and any(c["type"] == "DisruptionTarget" for c in rule.get("onPodConditions", ())):
                return str(rule["action"])
            codes = rule.get("onExitCodes")
            if codes and (pod.ended in codes["values"]) == (codes["operator"] == "In"):
                return str(rule["action"])
        return "Count"

    def _judge(self, job: RunningJob) -> None:
        """End a Job when its indexes, its failures or its time have come to an end."""
        spec = job.spec
        most, limit = spec.get("maxFailedIndexes"), spec.get("activeDeadlineSeconds")
        if most is not None and len(job.failed) > most:
            self._end(job, "Failed", "MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number")
        elif limit is not None and time.monotonic() - job.began > limit:
            self._end(job, "Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
        elif len(job.completed | job.failed) == spec["completions"]:
            if job.failed:
                self._end(job, "Failed", "FailedIndexes", "Job has failed indexes")
            else:
                self._end(job, "Complete", "CompletionsReached", "Reached expected number of succeeded pods")

    def _end(self, job: RunningJob, kind: str, reason: str, message: str) -> None:
        self._end_pods(job)
        condition = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
        job.manifest["status"].setdefault("conditions", []).append(condition)

    def _refresh(self, job: RunningJob) -> None:
        status = job.manifest["status"]
        status |= {
            "active": len(job.active),
            "ready": len(job.active),
            "succeeded": len(job.completed),
            "failed": sum(1 for pod in job.pods if pod.ended),
            "completedIndexes": indexes_as_text(job.completed),
            "failedIndexes": indexes_as_text(job.failed),
        }

    # -- pods ---------------------------------------------------------------------------------------------------------

    def _start_pods(self, job: RunningJob) -> None:
        at_work = {pod.index for pod in job.active}
        ended = job.completed | job.failed
        for index in range(job.spec["completions"]):
            if len(job.active) >= job.spec["parallelism"]:
                return
            if index not in at_work | ended and time.monotonic() >= job.not_before.get(index, 0.0):
                job.pods.append(self._start_pod(job, index))

    def _start_pod(self, job: RunningJob, index: int) -> RunningPod:
        template = {"metadata": {}, **job.spec["template"]}
        name = f"{job.name}-{index}-{uuid.uuid4().hex[:5]}"
        labels = {**template["metadata"].get("labels", {}), JOB_NAME: job.name, INDEX: str(index)}
        annotations = {**template["metadata"].get("annotations", {}), INDEX: str(index)}
        meta = {
            "name": name,
            "namespace": job.manifest["metadata"]["namespace"],
            "uid": str(uuid.uuid4()),
            "creationTimestamp": datetime.now(UTC).isoformat(),
            "labels": labels,
            "annotations": annotations,
        }
        spec = {**template["spec"], "nodeName": NODES[index % len(NODES)]}
        manifest: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": spec,
            "status": {"phase": "Running", "conditions": [], "containerStatuses": []},
        }
        container = spec["containers"][0]
        log = self._folder / f"{name}.log"
        with log.open("wb") as stream, interrupts_held():
            process = subprocess.Popen(
                [*container.get("command", ()), *container.get("args", ())],
                env=self._environment_of(container, manifest, index),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._folder,
            )
        return RunningPod(manifest, index, process, log)

    def _environment_of(self, container: dict[str, Any], pod: dict[str, Any], index: int) -> dict[str, str]:
        environment = dict(self._environment)
        for source in container.get("envFrom", ()):
            (reference,) = source.values()
            environment |= self._config_maps[reference["name"]]
        for variable in container.get("env", ()):
            environment[variable["name"]] = self._value_of(variable, pod)
        return {**environment, "JOB_COMPLETION_INDEX": str(index)}

    def _value_of(self, variable: dict[str, Any], pod: dict[str, Any]) -> str:
        if "value" in variable:
            return str(variable["value"])
        source: dict[str, Any] = variable["valueFrom"]
        if "fieldRef" in source:
            path = source["fieldRef"]["fieldPath"]
            known = {"metadata.name": pod["metadata"]["name"], "metadata.namespace": pod["metadata"]["namespace"]}
            return str({**known, "spec.nodeName": pod["spec"]["nodeName"], "status.podIP": "127.0.0.1"}[path])
        reference = source.get("secretKeyRef") or source["configMapKeyRef"]
        return str(self._config_maps[reference["name"]][reference["key"]])

    @staticmethod
    def _write_end(pod: RunningPod) -> None:
        status = pod.manifest["status"]
        status["phase"] = "Failed" if pod.ended else "Succeeded"
        ended: dict[str, Any] = {"exitCode": pod.ended, "reason": "Error" if pod.ended else "Completed"}
        if pod.ended:
            ended["message"] = pod.log_text().encode()[-MOST_OF_A_MESSAGE:].decode(errors="replace")
        container = pod.manifest["spec"]["containers"][0]
        status["containerStatuses"] = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": container["image"],
                "ready": False,
                "restartCount": 0,
                "state": {"terminated": {**ended, "finishedAt": now()}},
            }
        ]
        if pod.evicted:
            status["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]

    def _end_pods(self, job: RunningJob) -> None:
        """Send SIGTERM to the pods of a Job; those that still run after a while get SIGKILL."""
        for pod in job.active:
            self._signal(pod, signal.SIGTERM)
            self._ending.append((pod, time.monotonic() + GRACE_SECONDS))

    def _reap(self) -> None:
        """Wait for pods that were told to end, and kill those that take too long."""
        for pod, deadline in list(self._ending):
            if pod.process.poll() is not None:
                self._ending.remove((pod, deadline))
                self._note_end(pod)
            elif time.monotonic() > deadline:
                self._signal(pod, signal.SIGKILL)

    @staticmethod
    def _note_end(pod: RunningPod) -> None:
        """Write into a pod how its process ended."""
        code = pod.process.wait()
        pod.ended = 128 - code if code < 0 else code
        JobController._write_end(pod)

    @staticmethod
    def _signal(pod: RunningPod, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pod.process.pid, number)
