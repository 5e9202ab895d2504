"""Calls to Bigtable: channels, credentials, retries, and the error of each status. Knows no rows.

Calls use gRPC with plain protobuf messages, because Google's Python clients spend most of a read wrapping cells.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import grpc  # type: ignore[import-untyped]
from grpc import experimental

from sv_pipeline.backoff import Backoff
from sv_pipeline.errors import (
    ConfigError,
    ConflictError,
    CorruptionError,
    InputError,
    NotFoundError,
    SvPipelineError,
    UnavailableError,
)
from sv_pipeline.patience import waiting_for
from sv_pipeline.table.bigtable import protocol

__all__ = ["Connection", "Patience", "error_of"]

log = logging.getLogger(__name__)

EMULATOR = "BIGTABLE_EMULATOR_HOST"
DATA_HOST = "bigtable.googleapis.com"
ADMIN_HOST = "bigtableadmin.googleapis.com"
ROUTING_HEADER = "x-goog-request-params"
"""Header by which Google sends a request to the server of its table."""
SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
BACKOFF = Backoff(0.05, 5.0)
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # The reading thread itself receives the messages, which saves a quarter of the time per message.
    (experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
]
RETRYABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
UNARY_SECONDS = 20.0
UNARY_IN_FLIGHT = 64  # a connection to Google takes 100
STREAM_SECONDS = 300.0

_DATA = "/google.bigtable.v2.Bigtable/"
_ADMIN = "/google.bigtable.admin.v2.BigtableTableAdmin/"
_METHODS: dict[str, tuple[Any, Any]] = {
    _DATA + "ReadRows": (protocol.ReadRowsRequest, protocol.ReadRowsResponse),
    _DATA + "MutateRows": (protocol.MutateRowsRequest, protocol.MutateRowsResponse),
    _DATA + "ReadModifyWriteRow": (protocol.ReadModifyWriteRowRequest, protocol.ReadModifyWriteRowResponse),
    _DATA + "CheckAndMutateRow": (protocol.CheckAndMutateRowRequest, protocol.CheckAndMutateRowResponse),
    _ADMIN + "CreateTable": (protocol.CreateTableRequest, None),
    _ADMIN + "DeleteTable": (protocol.DeleteTableRequest, None),
}
_ADMIN_FIELDS = {"CreateTable": "parent", "DeleteTable": "name"}
"""The field of a request to the administration service by which it is routed; others are routed by ``table_name``."""
_connections: weakref.WeakSet[Connection] = weakref.WeakSet()
_abandoned: list[Any] = []  # channels of a parent process, which a child must neither use nor close


@dataclass
class Patience:
    """How long one call is retried: with growing pauses, until ``seconds`` have passed without any progress."""

    seconds: float
    _failures: int = 0
    _since: float = field(default_factory=time.monotonic)

    def progress(self) -> None:
        """Start over, because something has arrived."""
        self._failures = 0
        self._since = time.monotonic()

    def wait(self) -> bool:
        """Pause before the next attempt; return False if there should be none."""
        self._failures += 1
        if time.monotonic() - self._since + BACKOFF.after(self._failures) > self.seconds:
            return False
        time.sleep(BACKOFF.jittered(self._failures))
        return True


@dataclass(eq=False)
class Connection:
    """Channels to one table, opened on first use, and opened again in each forked process.

    Parameters
    ----------
    table_path
        ``projects/<project>/instances/<instance>/tables/<table>``.
    patience
        Seconds after which a call without any answer fails.
    count
        Function that is called for every request.
    """

    table_path: str
    patience: float
    count: Callable[[], None]
    _channels: dict[str, grpc.Channel] = field(default_factory=dict)
    _stubs: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _routing: tuple[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._routing = _routing_to("table_name", self.table_path)
        _connections.add(self)

    def unary(self, method: str, request: Any, what: str) -> Any:
        """Send a call and return its answer; it is retried while the server is not available.

        If an answer is lost after the call took effect, the call takes effect twice. An increment then only wastes a
        number. A conditional change finds its own earlier effect, so its answer may be "refused" although it was made.
        """
        return self._answer(method, request, what)

    def unary_many(
        self, method: str, requests: Sequence[Any], what: str, meanwhile: Callable[[], None] | None = None
    ) -> list[Any]:
        """Send calls concurrently, without a thread for each; return their answers in order.

        They are repeated as by `unary`. The first error is raised after all calls have ended.

        Parameters
        ----------
        what
            Description of one request; its row key follows.
        meanwhile
            Function that is called once the first calls are sent.
        """
        answers: list[Any] = []
        for first in range(0, len(requests), UNARY_IN_FLIGHT):
            some = requests[first : first + UNARY_IN_FLIGHT]
            calls: deque[Any] = deque()
            try:
                for request in some:
                    calls.append(self._call(method, request, UNARY_SECONDS))
                if meanwhile is not None and not first:
                    meanwhile()
                for request in some:
                    answers.append(self._answer(method, request, f"{what} of row {request.row_key!r}", calls.popleft()))
            finally:
                for call in calls:  # after an error
                    with suppress(grpc.RpcError):
                        next(call, None)
        return answers

    def _answer(self, method: str, request: Any, what: str, call: Any = None) -> Any:
        """Return the answer of a call, which may have been started; it is sent again while the server is not there."""
        patience = Patience(self.patience)
        with waiting_for(f"{what} of {self.table_path}") as wait:
            while True:
                call = call or self._call(method, request, UNARY_SECONDS)
                try:
                    # The message alone is awaited, not the status after it: a server sends none unless it succeeded.
                    if (answer := next(call, None)) is not None:
                        return answer
                    raise UnavailableError(f"{what} of {self.table_path} was not answered.", repeat="Try again.")
                except grpc.RpcError as error:
                    wait.reason = str(error.details() if isinstance(error, grpc.Call) else error)
                    self.retry_or_raise(error, patience, what)
                finally:
                    call.cancel()
                call = None

    def stream(self, method: str, request: Any) -> Any:
        """Start a streaming call; errors are raised while it is read."""
        return self._call(method, request, STREAM_SECONDS)

    def retry_or_raise(self, error: grpc.RpcError, patience: Patience, what: str) -> None:
        """Pause if the call should be repeated; otherwise raise the error of the status."""
        code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
        detail = str(error.details() if isinstance(error, grpc.Call) else error)
        if code in RETRYABLE and patience.wait():
            log.info("%s of %s is repeated: %s %s", what, self.table_path, code.name, detail)
            return
        raise error_of(code, detail, self.table_path, what) from error

    def close(self) -> None:
        """Close the channels; the next call opens new ones."""
        with self._lock:
            channels, self._channels, self._stubs = self._channels, {}, {}
        for channel in channels.values():
            channel.close()

    def _call(self, method: str, request: Any, timeout: float) -> Any:
        self.count()
        if (name := _ADMIN_FIELDS.get(method)) is not None:
            path, routing = _ADMIN + method, _routing_to(name, getattr(request, name))
        else:
            path, routing = _DATA + method, self._routing
        return self._stub(path)(request, timeout=timeout, metadata=[routing])

    def _stub(self, path: str) -> Any:
        if (stub := self._stubs.get(path)) is not None:
            return stub
        with self._lock:
            if path not in self._stubs:
                host = ADMIN_HOST if path.startswith(_ADMIN) else DATA_HOST
                if host not in self._channels:
                    self._channels[host] = _open_channel(host)
                self._stubs[path] = _make_stub(self._channels[host], path)
            return self._stubs[path]


def _routing_to(field_name: str, value: str) -> tuple[str, str]:
    return ROUTING_HEADER, urlencode({field_name: value}, safe="/")


def _start_afresh() -> None:
    for connection in list(_connections):
        _abandoned.extend([*connection._channels.values(), *connection._stubs.values()])
        connection._channels, connection._stubs, connection._lock = {}, {}, threading.Lock()


os.register_at_fork(after_in_child=_start_afresh)


def _make_stub(channel: grpc.Channel, path: str) -> Any:
    """Return a function that starts a call, whose answers are then read one by one; a unary call has one.

    gRPC sends both kinds of calls in the same way. In Python, one that is read needs no thread but the reader's, so
    unary calls, too, take half the time in this way if there are several.
    """
    request, response = _METHODS[path]
    return channel.unary_stream(
        path,
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString if response else bytes,
    )


def _open_channel(host: str) -> grpc.Channel:
    if emulator := os.environ.get(EMULATOR):
        return grpc.insecure_channel(emulator, options=OPTIONS)
    # Imported here, since these take a while to load, and an emulator needs no credentials.
    import google.auth
    from google.api_core import grpc_helpers

    try:
        credentials, _ = google.auth.default(scopes=SCOPES)
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise ConfigError(
            "there are no Google credentials for Bigtable.",
            remedy="Set GOOGLE_APPLICATION_CREDENTIALS to a key file, run `gcloud auth application-default login`, "
            f"set {EMULATOR} to the address of an emulator, or use backend_client.TYPE: sqlite.",
        ) from error
    return grpc_helpers.create_channel(f"{host}:443", credentials=credentials, default_scopes=SCOPES, options=OPTIONS)


def error_of(code: grpc.StatusCode, detail: str, table_path: str, what: str) -> SvPipelineError:
    """Return the error that a status means to the user."""
    where = f"{what} of {table_path}"
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFoundError(
            f"{table_path} does not exist ({detail}).",
            remedy="Check PROJECT, INSTANCE and graph id, or ingest it first.",
        )
    if code is grpc.StatusCode.ALREADY_EXISTS:
        return ConflictError(
            f"{table_path} exists already.", remedy="Choose another graph id, or remove the table deliberately."
        )
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return ConfigError(f"{where} was not allowed: {detail}.", remedy="Check the credentials and their roles.")
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return CorruptionError(f"{where} failed because of a missing precondition: {detail}.")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InputError(f"{where} was refused: {detail}.")
    emulator = os.environ.get(EMULATOR)
    place = f"the emulator at {emulator} ({EMULATOR})" if emulator else "Bigtable"
    return UnavailableError(
        f"{where} failed: {code.name} {detail}.",
        remedy=f"Check whether {place} can be reached.",
        repeat="Then try again.",
    )


def read_stream(call: Any, what: str) -> Iterator[Any]:
    """Yield the messages of a streaming call; the call ends with the reader, so nothing keeps running on the server.

    Parameters
    ----------
    call
        The call, which has been started.
    what
        Description of the request; the log names it while the server is silent for long.
    """
    messages = iter(call)
    try:
        while True:
            with waiting_for(what):
                message = next(messages, None)
            if message is None:
                return
            yield message
    finally:
        call.cancel()
