"""A Kubernetes API server for tests: Jobs, their pods and logs over HTTP, with faults; each index is a real process.

It implements what the runner of Indexed Jobs calls, checks each new Job against the schema of the real API, and answers
errors as the real server does. `running_kubernetes` starts it in this process, and writes a kubeconfig file for it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import yaml

from sv_pipeline.testing.servers.kubernetes_jobs import JobController, RunningJob, RunningPod

__all__ = ["ApiFault", "KubernetesServer", "running_kubernetes"]

RESET = 444
JOBS = re.compile(r"^/apis/batch/v1/namespaces/([^/]+)/jobs(?:/([^/]+))?(?:/status)?$")
PODS = re.compile(r"^/api/v1/namespaces/([^/]+)/pods(?:/([^/]+)/log)?$")
REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "AlreadyExists",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}


@dataclass
class ApiFault:
    """A fault that matching requests meet."""

    status: int
    """Status of the answer; `RESET` resets the connection instead, 0 only delays."""
    method: str | None = None
    match: str = ""
    """Regular expression that is searched for in the path with its query."""
    phase: str = "before"
    """``before``: the request is not carried out; ``after``: it is, but its answer is lost."""
    times: int | None = None
    delay: float = 0.0
    """Seconds before anything is done."""


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class KubernetesServer:
    """A running server, as a test sees it."""

    controller: JobController
    kubeconfig: Path
    namespaces: set[str]
    faults: list[ApiFault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request."""
    page_size: int | None = None
    """Largest number of pods in one answer; default: what the client asks for."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def jobs(self) -> list[RunningJob]:
        """The Jobs that exist."""
        with self.controller.lock:
            return list(self.controller.jobs.values())

    def pods(self) -> list[RunningPod]:
        """Return the pods of all Jobs that exist."""
        with self.controller.lock:
            return [pod for job in self.controller.jobs.values() for pod in job.pods]

    def created(self) -> int:
        """Return how many requests to create a Job have come."""
        return sum(1 for method, _ in self.requests if method == "POST")

    def kill(self, pod: RunningPod) -> None:
        """SIGKILL for the process of a pod, as the kernel does it when memory runs out."""
        with suppress(ProcessLookupError):
            os.killpg(pod.process.pid, signal.SIGKILL)

    def evict(self, pod: RunningPod) -> None:
        """Drain the pod's node: the pod is marked as disrupted, and its process gets SIGKILL at once."""
        with self.controller.lock:
            pod.evicted = True
            self.kill(pod)

    def delete(self, job: RunningJob) -> None:
        """Delete a Job, as an operator does."""
        self.controller.remove(job.manifest["metadata"]["namespace"], job.name)

    def fault_for(self, method: str, path: str) -> ApiFault | None:
        """Log a request, and return the fault that it meets."""
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.method in (None, method) and re.search(fault.match, path) and fault.times != 0:
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    # -- what the API does --------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: Mapping[str, str], content: Any) -> Any:
        """Carry out a request, and return the object or the text to answer with."""
        if found := JOBS.match(path):
            return self._job_call(method, found[1], found[2], content)
        if (found := PODS.match(path)) and method == "GET":
            return self._log(found[1], found[2], query) if found[2] else self._pods(found[1], query)
        raise _RefusedError(404, "the server could not find the requested resource")

    def _job_call(self, method: str, namespace: str, name: str | None, content: Any) -> Any:
        if namespace not in self.namespaces:
            raise _RefusedError(404, f'namespaces "{namespace}" not found')
        with self.controller.lock:
            if method == "POST":
                return self._create(namespace, content)
            job = self.controller.jobs.get((namespace, str(name)))
            if job is None:
                raise _RefusedError(404, f'jobs.batch "{name}" not found')
            if method == "DELETE":
                self.controller.remove(namespace, job.name)
                return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
            return job.manifest

    def _create(self, namespace: str, manifest: dict[str, Any]) -> Any:
        name = manifest["metadata"]["name"]
        try:
            kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            raise _RefusedError(422, f'Job.batch "{name}" is invalid: {error.message}') from error
        for wrong in _broken_rules(manifest):
            raise _RefusedError(422, f'Job.batch "{name}" is invalid: {wrong}')
        manifest["metadata"].setdefault("namespace", namespace)
        try:
            return self.controller.add(manifest).manifest
        except KeyError as error:
            raise _RefusedError(409, f'jobs.batch "{name}" already exists') from error

    def _pods(self, namespace: str, query: Mapping[str, str]) -> Any:
        wanted = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
        found = [
            pod.manifest
            for pod in self.pods()
            if pod.manifest["metadata"]["namespace"] == namespace
            and wanted.items() <= pod.manifest["metadata"]["labels"].items()
        ]
        first = int(query.get("continue", 0))
        size = min(int(query.get("limit", 500)), self.page_size or 500)
        more = {"continue": str(first + size)} if first + size < len(found) else {}
        items = found[first : first + size]
        return {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1", **more}, "items": items}

    def _log(self, namespace: str, name: str, query: Mapping[str, str]) -> str:
        for pod in self.pods():
            if (pod.manifest["metadata"]["namespace"], pod.name) == (namespace, name):
                lines = pod.log_text().splitlines(keepends=True)
                return "".join(lines[-int(query.get("tailLines", len(lines) or 1)) :])
        raise _RefusedError(404, f'pods "{name}" not found')


def _broken_rules(manifest: dict[str, Any]) -> Iterator[str]:
    """Rules of the real server that its schema does not express."""
    spec, name = manifest["spec"], manifest["metadata"]["name"]
    pod = spec["template"]["spec"]
    if spec.get("completionMode") != "Indexed" and "backoffLimitPerIndex" in spec:
        yield "spec.backoffLimitPerIndex: may only be set for Indexed jobs"
    if "podFailurePolicy" in spec and pod.get("restartPolicy") != "Never":
        yield "spec.template.spec.restartPolicy: only Never is supported when podFailurePolicy is specified"
    completions = spec.get("completions", 1)
    if len(f"{name}-{completions - 1}") > 63 or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name):
        yield "metadata.name: will not able to create pod with invalid DNS label"
    if completions > 100_000 and not (spec.get("maxFailedIndexes") or 0) <= 10_000 >= spec["parallelism"]:
        yield "spec.parallelism: must be less than or equal to 10000 when completions are above 100000"
    if spec.get("maxFailedIndexes", 0) > completions:
        yield "spec.maxFailedIndexes: must be less than or equal to completions"
    for labels in (manifest["metadata"].get("labels", {}), spec["template"].get("metadata", {}).get("labels", {})):
        for key, value in labels.items():
            if not re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?", value):
                yield f"metadata.labels: Invalid value for {key}: {value!r}"


# -- HTTP -------------------------------------------------------------------------------------------------------------


class _ApiRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: KubernetesServer

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        fault = self.api.fault_for(self.command, self.path)
        if fault is not None:
            time.sleep(fault.delay)
            if fault.status and fault.phase == "before":
                self._meet(fault)
                return
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        try:
            answer = self.api.answer(self.command, parts.path, query, json.loads(body) if body else None)
        except _RefusedError as refusal:
            self._send(refusal.status, _status(refusal.status, str(refusal)))
            return
        if fault is not None and fault.status:
            self._meet(fault)
            return
        self._send(201 if self.command == "POST" else 200, answer)

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815 - the names that the base class looks for

    def _meet(self, fault: ApiFault) -> None:
        if fault.status == RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        self._send(fault.status, _status(fault.status, "a fault of the test"))

    def _send(self, status: int, content: Any) -> None:
        text = content if isinstance(content, str) else None
        data = (text if text is not None else json.dumps(content)).encode()
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if text is None else "text/plain")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)


def _status(code: int, message: str) -> dict[str, Any]:
    reason = REASONS.get(code, "Unknown")
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


@contextmanager
def running_kubernetes(
    folder: Path,
    *,
    namespaces: set[str] | None = None,
    config_maps: Mapping[str, Mapping[str, str]] | None = None,
    node_environment: Mapping[str, str] | None = None,
) -> Iterator[KubernetesServer]:
    """Run a server; its attribute ``kubeconfig`` is what KUBECONFIG must name.

    Parameters
    ----------
    folder
        Folder for the kubeconfig file and the logs of pods.
    namespaces
        Namespaces of the cluster; default: ``sv-pipeline``.
    config_maps
        Config maps and secrets, by name, to which the environment of a pod may refer.
    node_environment
        What a pod's process has beside the environment of its manifest; default: only what Python needs to start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    python = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}", "HOME": str(folder)}
    if path := os.environ.get("PYTHONPATH"):
        python["PYTHONPATH"] = path
    controller = JobController(folder, python if node_environment is None else node_environment, config_maps or {})
    server = KubernetesServer(controller, folder / "kubeconfig.yaml", namespaces or {"sv-pipeline"})
    handler: Callable[..., BaseHTTPRequestHandler] = type("Handler", (_ApiRequest,), {"api": server})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        server.kubeconfig.write_text(yaml.safe_dump(_kubeconfig(f"http://127.0.0.1:{http.server_port}")))
        thread = threading.Thread(target=http.serve_forever, name="kubernetes server", daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
            controller.close()


def _kubeconfig(url: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {}}],
    }
