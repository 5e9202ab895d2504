"""Alerts to people, by the log and by a webhook if one is set. Sending never raises, since it is the last resort."""

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
    """Destination of alerts."""

    webhook: str = ""
    """URL that receives ``{"text": ..., ...}`` by POST, as Slack and similar services expect; empty = only the log."""
    timeout: float = TIMEOUT_SECONDS
    """Maximum time of the whole request, in seconds."""

    def send(self, text: str, *, good: bool = False, **details: Any) -> bool:
        """Send one alert, or good news, and return whether the webhook, if there is one, has accepted it."""
        text = redacted(text)
        log.log(logging.INFO if good else logging.ERROR, "%s: %s", "NEWS" if good else "ALERT", text)
        if not self.webhook:
            return True
        if not self.webhook.startswith(("http://", "https://")):
            log.error("the alert was not sent: %s does not hold an http(s) URL", WEBHOOK_VARIABLE)
            return False
        body = json.dumps({"text": text, "good": good, **redacted_value(details)}, default=str).encode()
        try:
            post(self.webhook, body, {"Content-Type": "application/json"}, timeout=self.timeout)
        except PostError as error:
            # The whole URL is a secret, since it is all that is needed to send. Only its host is shown.
            log.error("the alert was not sent to the webhook at %s: %s", host_of(self.webhook), error)  # noqa: TRY400
            return False
        return True


def alerts_from_environment() -> Alerts:
    """Read the destination from the environment variable SV_PIPELINE_ALERT_WEBHOOK."""
    webhook = os.environ.get(WEBHOOK_VARIABLE, "")
    remember([webhook, {"webhook_secret": webhook}])
    return Alerts(webhook)
