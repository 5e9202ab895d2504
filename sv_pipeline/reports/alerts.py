"""Telling people that something needs them: the log, and a webhook where one is set. Never raises: it comes last."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from typing import Any

from sv_pipeline.posts import PostError, host_of, post
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
            post(self.webhook, body, {"Content-Type": "application/json"}, timeout=self.timeout)
        except PostError as error:
            # The URL is a secret as a whole: whoever has it can send. So nothing of it is shown but its host.
            log.error("the alert was not sent to the webhook at %s: %s", host_of(self.webhook), error)  # noqa: TRY400
            return False
        return True


def alerts_from_environment() -> Alerts:
    """What SV_PIPELINE_ALERT_WEBHOOK says."""
    webhook = os.environ.get(WEBHOOK_VARIABLE, "")
    remember([webhook, {"webhook_secret": webhook}])
    return Alerts(webhook)
