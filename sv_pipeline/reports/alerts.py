"""Telling people that something needs them: the log, and a webhook where one is set. Never raises: it comes last."""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

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

    def send(self, text: str, *, good: bool = False, **details: Any) -> bool:
        """Send one alert, or good news; whether the webhook (if there is one) has taken it."""
        log.log(logging.INFO if good else logging.ERROR, "%s: %s", "NEWS" if good else "ALERT", text)
        if not self.webhook:
            return True
        if not self.webhook.startswith(("http://", "https://")):
            log.error("the alert was not sent: %r is no http(s) URL", self.webhook)
            return False
        body = json.dumps({"text": text, **details}, default=str).encode()
        request = urllib.request.Request(  # noqa: S310 - checked above
            self.webhook, body, {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout):  # noqa: S310
                return True
        except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors
            log.error("the alert was not sent to the webhook: %s", error)  # noqa: TRY400 - the log says it in one line
            return False


def alerts_from_environment() -> Alerts:
    """What SV_PIPELINE_ALERT_WEBHOOK says."""
    return Alerts(os.environ.get(WEBHOOK_VARIABLE, ""))
