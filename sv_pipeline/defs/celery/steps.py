"""A step at Celery workers as its run sees it: submitted, watched, given to another worker if its own died, canceled.

| what happened | how the run notices it | what it does |
| --- | --- | --- |
| a worker was killed | the step has begun, but no worker names it as running | submits the step again |
| the broker lost a message | the step has not begun, no worker has it, the queue is empty | submits the step again |
| no worker listens | no worker answers | says so in the log of the run, and waits |
| the broker does not answer | looks at it fail | says so in the log of the run, and waits |
| the run is canceled | Dagster calls `SubmittedStep.revoke` | withdraws the step, and waits a little for its worker |
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import celery
from celery import states
from celery.exceptions import BackendError, TaskRevokedError, WorkerLostError
from celery.result import AsyncResult
from kombu.exceptions import OperationalError

from sv_pipeline.defs.celery.settings import QUEUE
from sv_pipeline.redaction import redacted

__all__ = ["Cluster", "SubmittedStep"]

LOOK_SECONDS = 3.0
"""Time between looks at the workers."""
LOOKS_UNTIL_LOST = 3
"""A step that is missing in so many looks, one after the other, is lost."""
MOST_SUBMISSIONS = 4
REPEAT_SECONDS = 300.0
"""Time after which a message about missing workers is repeated in the log of a run."""
CANCEL_SECONDS = 30.0
"""Time that a canceled run waits for workers that have begun a step."""
BUSY_SECONDS = 0.2
"""Shortest time between two looks at one step. Dagster's loop looks without a pause while it stops."""


@dataclass(frozen=True)
class Look:
    """What the workers and the queue said at one moment."""

    number: int
    workers: frozenset[str]
    held: frozenset[str]
    """Ids of the tasks that workers execute or have taken from the queue."""
    waiting: int
    """Messages in the queues of this run."""


@dataclass
class Cluster:
    """The workers at a broker, looked at by a thread of this process every few seconds."""

    app: celery.Celery
    log: logging.Logger | Any
    queues: set[str] = field(default_factory=lambda: {QUEUE})
    tasks: dict[str, str] = field(default_factory=dict)
    """The id of the latest task of each step that has no result yet."""
    latest: Look = field(default=Look(0, frozenset(), frozenset(), 0))

    def __post_init__(self) -> None:
        backend = self.app.backend
        self.errors: tuple[type[Exception], ...] = (
            OSError, BackendError, OperationalError, *getattr(backend, "connection_errors", ()),
            *getattr(backend, "channel_errors", ()),
        )  # fmt: skip
        self._stop = threading.Event()
        self._said: dict[str, float] = {}
        self._thread = threading.Thread(target=self._watch, name="celery watch", daemon=True)

    def __enter__(self) -> Cluster:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def say(self, kind: str, text: str) -> None:
        """Write a warning to the log of the run, and the same kind of warning not again for some minutes."""
        now = time.monotonic()
        if now - self._said.get(kind, -REPEAT_SECONDS) >= REPEAT_SECONDS:
            self._said[kind] = now
            self.log.warning(text)

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self.latest = self._look()
            except self.errors as error:
                self.say("broker", f"the broker {self._address()} does not answer ({redacted(str(error))}); waiting.")
                continue
            if self.latest.workers:
                self._said.pop("workers", None)
            else:
                self.say(
                    "workers",
                    f"no Celery worker listens at {self._address()}: the steps of this run wait in the queue until "
                    "one is started (python -m sv_pipeline.defs.celery.worker, with the same broker). "
                    "The run can be canceled.",
                )

    def _look(self) -> Look:
        answers = self.app.control.inspect(timeout=1.0).query_task(list(self.tasks.values())) or {}
        with self.app.connection_for_read() as connection:
            waiting = sum(_messages_in(connection, queue) for queue in self.queues)
        held = frozenset(str(task) for tasks in answers.values() for task in tasks)
        return Look(self.latest.number + 1, frozenset(answers), held, waiting)

    def _address(self) -> str:
        return str(self.app.connection_for_read().as_uri())


def _messages_in(connection: Any, queue: str) -> int:
    with connection.channel() as channel:
        try:
            return int(channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:
            return 0  # Redis has no empty queues


@dataclass
class SubmittedStep:
    """A step at the workers, with the methods of a Celery result that Dagster's loop uses: ready, get and revoke."""

    key: str
    cluster: Cluster
    submit: Callable[[], AsyncResult]

    def __post_init__(self) -> None:
        self._result = self._submit()
        self._submissions = 1
        self._missing = 0
        self._seen = self.cluster.latest.number
        self._looked = 0.0
        self._revoked: float | None = None
        self._failure: Exception | None = None

    def ready(self) -> bool:
        """Whether `get` returns or raises at once. Never raises."""
        time.sleep(max(0.0, min(BUSY_SECONDS, self._looked + BUSY_SECONDS - time.monotonic())))
        self._looked = time.monotonic()
        if self._failure is not None:
            return True
        try:
            if self._result.ready():
                self.cluster.tasks.pop(self.key, None)
                return True
            begun = self._result.state == states.STARTED
        except self.cluster.errors:
            return self._revoked is not None
        if self._revoked is not None:
            return not begun or time.monotonic() - self._revoked > CANCEL_SECONDS
        if self._is_lost(begun):
            self._submit_again()
        return False

    def get(self) -> Any:
        """Return the serialized events of the step.

        Raises
        ------
        TaskRevokedError
            If the step was canceled before it ended.
        WorkerLostError
            If all workers that began the step died.
        """
        if self._failure is not None:
            raise self._failure
        if self._revoked is not None and not self._is_done():
            raise TaskRevokedError(self.key)
        return self._result.get(timeout=60)

    def revoke(self) -> None:
        """Withdraw the step; a worker that has begun it stops it."""
        self._revoked = time.monotonic()
        try:
            self._result.revoke(terminate=True)
        except self.cluster.errors as error:
            self.cluster.log.warning("step %s could not be withdrawn from the broker: %s", self.key, error)

    def _submit(self) -> AsyncResult:
        result = self.submit()
        self.cluster.tasks[self.key] = str(result.id)
        return result

    def _is_done(self) -> bool:
        try:
            return bool(self._result.ready())
        except self.cluster.errors:
            return False

    def _is_lost(self, begun: bool) -> bool:
        """Whether several looks in a row found the step neither at a worker nor, possibly, in the queue."""
        look = self.cluster.latest
        if look.number > self._seen:
            self._seen = look.number
            # While no worker answers, e.g. because all connect to the broker again, nothing is known about the step.
            is_missing = bool(look.workers) and self._result.id not in look.held and (begun or look.waiting == 0)
            self._missing = self._missing + 1 if is_missing else 0
        return self._missing >= LOOKS_UNTIL_LOST

    def _submit_again(self) -> None:
        if self._submissions >= MOST_SUBMISSIONS:
            self._failure = WorkerLostError(
                f"the workers that executed step {self.key} died {self._submissions} times. Look for memory limits of "
                "the workers (ingest.chunks_per_batch, --concurrency)."
            )
            return
        self.cluster.log.warning("the worker of step %s died, or its message was lost: it is submitted again", self.key)
        try:
            self._result.revoke()  # if Redis finds the old message later, workers drop it
            self._result = self._submit()
        except self.cluster.errors:
            return
        self._submissions += 1
        self._missing = 0
