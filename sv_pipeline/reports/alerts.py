"""Telling people that something needs them: the log, and a webhook where one is set. Never raises: it comes last."""

from __future__ import annotations

import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Any

from sv_pipeline.redaction import redacted, redacted_value, remember

__all__ = ["WEBHOOK_VARIABLE", "Alerts", "alerts_from_environment"]

WEBHOOK_VARIABLE = "SV_PIPELINE_ALERT_WEBHOOK"
TIMEOUT_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alerts:
    """Where alerts go."""

    webhook: str = ""
    """URL that gets ``{"text": ..., ...}`` by POST, as Slack and most others take it; empty = the log only."""
    timeout: float = TIMEOUT_SECONDS
    """Seconds for all of the request, however slowly the answer comes."""

    @property
    def _host(self) -> str:
        return redacted(self.webhook.partition("://")[2].partition("/")[0]).rpartition("@")[2]

    def send(self, text: str, *, good: bool = False, **details: Any) -> bool:
        """Send one alert, or good news; whether the webhook (if there is one) has taken it."""
        text = redacted(text)
        log.log(logging.INFO if good else logging.ERROR, "%s: %s", "NEWS" if good else "ALERT", text)
        if not self.webhook:
            return True
        if not self.webhook.startswith(("http://", "https://")):
            log.error("the alert was not sent: %s does not hold an http(s) URL", WEBHOOK_VARIABLE)
            return False
        body = json.dumps({"text": text, **redacted_value(details)}, default=str).encode()
        try:
            request = urllib.request.Request(  # noqa: S310 - checked above
                self.webhook, body, {"Content-Type": "application/json"}, method="POST"
            )
            self._post(request)
        # URLError, HTTPError and timeouts are OSErrors; an answer that is no HTTP is an HTTPException.
        except (OSError, ValueError, http.client.HTTPException) as error:
            # The URL is a secret as a whole: who has it can send. So nothing of it is shown but its host.
            said = str(error).replace(self.webhook, "the URL") or type(error).__name__
            log.error("the alert was not sent to the webhook at %s: %s", self._host, said)  # noqa: TRY400
            return False
        return True

    def _post(self, request: urllib.request.Request) -> None:
        """Send a request in a thread of its own: a socket's timeout bounds each piece of an answer, not all of it."""
        answer: Future[None] = Future()

        def post() -> None:
            try:
                with _OPENER.open(request, timeout=self.timeout):
                    answer.set_result(None)
            except urllib.error.HTTPError as error:
                error.close()  # it holds the connection
                answer.set_exception(error)
            except (OSError, ValueError, http.client.HTTPException) as error:
                answer.set_exception(error)

        Thread(target=post, name="alert", daemon=True).start()
        try:
            answer.result(self.timeout)
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {self.timeout:g} s") from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would go on as a GET without the alert, whose answer looks as if the alert had arrived."""

    def redirect_request(self, _request: Any, body: Any, code: int, *_: Any) -> None:
        body.close()
        raise OSError(f"it answers {code}, a redirect: {WEBHOOK_VARIABLE} has to hold the address that takes alerts")


_OPENER = urllib.request.build_opener(_NoRedirects)


def alerts_from_environment() -> Alerts:
    """What SV_PIPELINE_ALERT_WEBHOOK says."""
    webhook = os.environ.get(WEBHOOK_VARIABLE, "")
    remember([webhook, {"webhook_secret": webhook}])
    return Alerts(webhook)
