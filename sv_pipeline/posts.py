"""HTTP POSTs to other services: with a time limit, without redirects, and with messages that name only the host."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any

from sv_pipeline.redaction import redacted

__all__ = ["PostError", "host_of", "post"]

SHOWN_OF_AN_ANSWER, LARGEST_ANSWER = 300, 1 << 20
"""Sizes in bytes."""


class PostError(Exception):
    """A POST failed; of the address, the message contains only the host.

    Parameters
    ----------
    message
        Why it failed.
    status
        HTTP status of the answer; None if there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def host_of(url: str) -> str:
    """Return the host of an address, with its port."""
    return redacted(url.partition("://")[2].partition("/")[0].partition("?")[0]).rpartition("@")[2]


def post(url: str, body: bytes, headers: Mapping[str, str], *, timeout: float) -> bytes:
    """Send a POST and return the answer.

    Parameters
    ----------
    url
        An http(s) URL.
    body, headers
        Content of the request.
    timeout
        Seconds for the whole request, however slowly the answer arrives. The request is sent in a thread of its own,
        because the timeout of a socket limits each piece of an answer and not the whole.

    Raises
    ------
    PostError
        If the server did not accept it: no answer in time, a status other than 2xx, or a redirect.
    """
    answer: Future[bytes] = Future()

    def send() -> None:
        try:
            request = urllib.request.Request(url, body, dict(headers), method="POST")  # noqa: S310 - callers check it
            with _OPENER.open(request, timeout=timeout) as response:
                answer.set_result(response.read(LARGEST_ANSWER))
        except urllib.error.HTTPError as error:
            with error:  # it holds the connection
                answer.set_exception(_refused(url, error))
        # URLError and timeouts are OSErrors; an answer that is not HTTP raises HTTPException.
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer.set_exception(PostError(_without(url, str(error) or type(error).__name__)))

    Thread(target=send, name="post", daemon=True).start()
    try:
        return answer.result(timeout)
    except TimeoutError:
        raise PostError(f"no answer within {timeout:g} s") from None


def _refused(url: str, error: urllib.error.HTTPError) -> PostError:
    try:
        said = error.read(SHOWN_OF_AN_ANSWER).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException):
        said = ""
    text = f"HTTP Error {error.code}: {error.reason} {said}".strip()
    return PostError(_without(url, text), error.code)


def _without(url: str, said: str) -> str:
    """Remove the address from a text that quotes it, since everybody who knows the address can send."""
    return redacted(said.replace(url, "the URL"))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A handler that refuses redirects: a redirected POST becomes a GET without body, which seems to succeed."""

    def redirect_request(self, _request: Any, body: Any, code: int, *_: Any) -> None:
        body.close()
        raise OSError(f"the server answers {code}, a redirect: use the address that accepts the request itself")


_OPENER = urllib.request.build_opener(_NoRedirects)
