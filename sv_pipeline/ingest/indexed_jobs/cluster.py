"""The calls of the Kubernetes API that the runner makes, repeated while the server does not answer. Decides nothing.

| answer | what follows |
| --- | --- |
| no answer, 429, 5xx | The call is repeated, with growing pauses, for ``api_patience_seconds``. |
| 404 for a Job | ``None``: there is no such Job. |
| 409 for a new Job | ``False``: there is one of this name. It may be our own, whose answer was lost. |
| 410 for a page of a list | The list is read again from its start. |
| 401, 403, other 4xx | A ConfigError with the server's reason. |
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

from sv_pipeline.backoff import Backoff
from sv_pipeline.errors import ConfigError, UnavailableError
from sv_pipeline.ingest.indexed_jobs.settings import JobSettings

try:
    import kubernetes
    import urllib3
    from kubernetes.client.exceptions import ApiException
except ImportError as error:
    raise ConfigError(
        "batches are to run in Kubernetes, but the client of Kubernetes is not installed.",
        remedy="Install sv_pipeline[k8s].",
    ) from error

__all__ = ["KubernetesApi"]

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

SECONDS_FOR_ONE_REQUEST = (10.0, 60.0)
"""Limits for connecting and for an answer."""
PAUSES = Backoff(0.5, longest=20.0)
PODS_AT_ONCE = 500
LISTINGS = 10
"""How often a list of pods is begun while the server forgets its place in it."""
MAY_PASS = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


class KubernetesApi:
    """Jobs and pods of one namespace, through the API server that this process is configured for."""

    def __init__(self, settings: JobSettings) -> None:
        self.namespace = settings.namespace
        self._patience = settings.api_patience_seconds
        api = _client(settings)
        self._batch, self._core = kubernetes.client.BatchV1Api(api), kubernetes.client.CoreV1Api(api)

    def create_job(self, manifest: dict[str, Any]) -> bool:
        """Create a Job; return False if there is one of its name."""
        name = manifest["metadata"]["name"]
        try:
            self._call(f"create Job {name}", self._batch.create_namespaced_job, self.namespace, manifest)
        except ApiException as error:
            if error.status == HTTPStatus.CONFLICT:
                return False
            raise self._refused(error, f"create Job {name}") from error
        return True

    def job(self, name: str) -> Any | None:
        """Return a Job as the client's model; None if there is none."""
        try:
            return self._call(f"read Job {name}", self._batch.read_namespaced_job, name, self.namespace)
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise self._refused(error, f"read Job {name}") from error

    def delete_job(self, name: str, *, patience: float | None = None) -> None:
        """Delete a Job and its pods; nothing happens if there is none.

        Parameters
        ----------
        patience
            How long to repeat the call while there is no answer, in seconds; default: the patience of the settings.
        """
        try:
            self._call(
                f"delete Job {name}",
                self._batch.delete_namespaced_job,
                name,
                self.namespace,
                propagation_policy="Background",
                patience=patience,
            )
        except ApiException as error:
            if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise self._refused(error, f"delete Job {name}") from error

    def pods_of(self, name: str) -> list[Any]:
        """Return the pods of a Job that still exist, as the client's models, oldest first."""
        for _ in range(LISTINGS):
            try:
                pods = self._pages(name)
            except ApiException as error:
                if error.status != HTTPStatus.GONE:
                    raise self._refused(error, f"list the pods of Job {name}") from error
                continue  # the list was too slow, and the server has forgotten its place in it
            return sorted(pods, key=lambda pod: str(pod.metadata.creation_timestamp))
        raise UnavailableError(
            f"the Kubernetes API forgot {LISTINGS} times where it was in the list of the pods of Job {name}.",
            remedy="The API server is overloaded, or the network is very slow.",
            repeat="Run again later; finished chunks are kept.",
        )

    def _pages(self, name: str) -> list[Any]:
        pods: list[Any] = []
        place: str | None = None
        while True:
            more: dict[str, Any] = {"_continue": place} if place else {}
            page = self._call(
                f"list the pods of Job {name}",
                self._core.list_namespaced_pod,
                self.namespace,
                label_selector=f"batch.kubernetes.io/job-name={name}",
                limit=PODS_AT_ONCE,
                **more,
            )
            pods += page.items
            place = page.metadata._continue
            if not place:
                return pods

    def last_lines(self, pod: str, lines: int = 20) -> str:
        """Return the end of a pod's log; empty if the log is gone or cannot be read."""
        try:
            answer = self._call(
                f"read the log of pod {pod}",
                self._core.read_namespaced_pod_log,
                pod,
                self.namespace,
                tail_lines=lines,
                _preload_content=False,  # the client would return the text of a bytes object
            )
        except ApiException as error:
            logger.info("the log of pod %s cannot be read: %s", pod, _reason(error))
            return ""
        return str(answer.data.decode(errors="replace")).strip()

    def _call(
        self, what: str, method: Callable[..., Answer], *arguments: Any, patience: float | None = None, **options: Any
    ) -> Answer:
        """Call the API until it answers.

        Raises
        ------
        ApiException
            If the answer is a refusal that will not pass.
        UnavailableError
            If there was no answer within the patience of the settings.
        """
        began, failures = time.monotonic(), 0
        while True:
            try:
                return method(*arguments, **options, _request_timeout=SECONDS_FOR_ONE_REQUEST)
            except ApiException as error:
                if error.status not in MAY_PASS:
                    raise
                said = f"HTTP {error.status}: {_reason(error)}"
                cause: Exception = error
            except (urllib3.exceptions.HTTPError, OSError) as error:
                said = f"{type(error).__name__}: {error}"
                cause = error
            failures += 1
            if time.monotonic() - began > (self._patience if patience is None else patience):
                raise UnavailableError(
                    f"the Kubernetes API does not answer ({what}; {said}).",
                    remedy="The Job goes on without us.",
                    repeat="Run again when the API answers: the Job is found by its name.",
                ) from cause
            if failures in (1, 10) or failures % 100 == 0:
                logger.warning("the Kubernetes API does not answer (%s): %s; trying again", what, said)
            time.sleep(PAUSES.jittered(failures))

    def _refused(self, error: ApiException, what: str) -> ConfigError:
        said = f"the Kubernetes API refuses to {what} in namespace {self.namespace!r}: {_reason(error)}"
        remedy = "Correct the settings of the Jobs."
        if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            remedy = "Bind the role of deploy/kubernetes/rbac.yaml to the service account of this process."
        elif error.status == HTTPStatus.NOT_FOUND:
            remedy = "Create the namespace, or correct 'namespace' in the settings of the Jobs."
        return ConfigError(said, remedy=remedy)


def _client(settings: JobSettings) -> Any:
    """Return a client for the cluster around this process, or else for that of the kubeconfig file."""
    configuration = kubernetes.client.Configuration()
    try:
        try:
            kubernetes.config.load_incluster_config(client_configuration=configuration)
        except kubernetes.config.ConfigException:
            kubernetes.config.load_kube_config(
                config_file=os.environ.get("KUBECONFIG"),  # the client itself reads it once, when it is imported
                context=settings.context,
                client_configuration=configuration,
            )
    except (kubernetes.config.ConfigException, OSError) as error:
        raise ConfigError(
            f"no Kubernetes cluster is configured for this process: {error}.",
            remedy="Run in a pod with a service account, or set KUBECONFIG to a kubeconfig file.",
        ) from error
    configuration.retries = False  # `KubernetesApi` repeats calls itself, and says so
    return kubernetes.client.ApiClient(configuration)


def _reason(error: ApiException) -> str:
    """What the server said: the message of its Status object, or else the reason of the answer."""
    try:
        said = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        said = error.reason
    return f"{str(said).strip().rstrip('.')}."
