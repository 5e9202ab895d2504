"""An alert counts as sent only if the webhook itself has taken it, and no webhook holds its sender up."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from sv_pipeline.reports.alerts import Alerts


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Its URL, and the requests that it has got: it answers with the status that the path names."""
    got: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            got.append(f"POST {self.path}")
            self.answer(int(self.path[1:]))

        def do_GET(self) -> None:
            got.append(f"GET {self.path}")
            self.answer(200)

        def answer(self, status: int) -> None:
            self.send_response(status)
            if status // 100 == 3:
                self.send_header("Location", "/200")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", got
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [200, 204, 301, 302, 303, 307, 308, 404, 429, 500, 503])
def test_it_is_sent_if_the_webhook_takes_it(
    server: tuple[str, list[str]], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    url, got = server
    assert Alerts(f"{url}{status}").send("something is wrong") is (status < 300)
    assert got == [f"POST /{status}"], "a redirect would turn it into a GET without the alert"
    assert ("was not sent" in caplog.text) is (status >= 300)
    assert str(status) in caplog.text or status < 300


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n", b"\x00\xff no http\r\n"])
def test_an_answer_that_comes_slowly_is_not_waited_for(answer: bytes) -> None:
    """Each piece comes in time, the whole never does."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)
                while answer.startswith(b"HTTP") and not over.wait(0.1):
                    connection.sendall(b"X: 1\r\n")
                over.wait(20)

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        began = time.monotonic()
        assert not Alerts(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=0.4).send("text")
        assert time.monotonic() - began < 10
        over.set()
        thread.join()
