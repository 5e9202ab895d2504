"""An HTTP endpoint that accepts POSTs, can go down and come back at the same address, and can refuse documents."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["Webhook", "free_port"]


def free_port() -> int:
    """Return a port of this machine that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Webhook:
    """A receiver of edit events.

    Parameters
    ----------
    answer
        Returns the HTTP status of the answer to a JSON document; by default, it is always 200.
    """

    def __init__(self, answer: Callable[[Any], int] = lambda _: 200) -> None:
        self.port, self.answer = free_port(), answer
        self.taken: list[Any] = []
        """Documents that were answered with a status below 300, in the order in which they came."""
        self.refused: list[Any] = []
        self._server: http.server.ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Address of the endpoint."""
        return f"http://127.0.0.1:{self.port}/hooks/a-secret-path"

    def up(self) -> Webhook:
        """Start listening."""
        webhook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = webhook.answer(document)
                (webhook.taken if status < 300 else webhook.refused).append(document)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        http.server.ThreadingHTTPServer.allow_reuse_address = True
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def down(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Webhook:
        return self.up()

    def __exit__(self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self.down()
