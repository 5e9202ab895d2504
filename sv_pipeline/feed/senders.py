"""Sends messages to a receiver: a webhook, or a topic of Google Pub/Sub through its REST interface."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sv_pipeline.errors import ConfigError, SvPipelineError, UnavailableError
from sv_pipeline.event_receivers import EventFormat, Receiver
from sv_pipeline.feed.event import Message
from sv_pipeline.posts import PostError, host_of, post

__all__ = ["Sender", "sender_of"]

TIMEOUT_SECONDS = 10.0
EMULATOR_VARIABLE = "PUBSUB_EMULATOR_HOST"
"""Google's own environment variable: ``host:port`` of an emulator, which needs no credentials."""
PUBSUB = "https://pubsub.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/pubsub"
KEPT = "The events are kept, and delivered in their order once the receiver takes them."


class Sender(Protocol):
    """Sends messages to one receiver."""

    at_once: int
    """Number of messages that go into one request."""

    def send(self, messages: Sequence[Message]) -> None:
        """Send messages, in their order, in one request, and return when the receiver has confirmed all of them.

        Raises
        ------
        UnavailableError
            If the receiver has not confirmed them; it may still have received them.
        """


def sender_of(receiver: Receiver) -> Sender:
    """Return the sender for a receiver; raise ConfigError for Dagster, whose sensor fetches its events itself."""
    if receiver.to == "pubsub":
        assert receiver.topic is not None
        return PubsubSender(receiver.topic)
    if receiver.to == "webhook":
        return WebhookSender(receiver.address, receiver.format)
    raise ConfigError(
        f"the receiver {receiver.name!r} gets its events from Dagster's sensor.",
        remedy="Run Dagster's daemon, and switch the sensor edit_events_sensor on.",
    )


@dataclass
class WebhookSender:
    """Sends one POST for each event: its payload as JSON, or attributes and payload in the form of PyChunkedGraph."""

    url: str = field(repr=False)
    format: EventFormat = EventFormat.SV_PIPELINE
    at_once: int = 1

    def send(self, messages: Sequence[Message]) -> None:
        """See `Sender`."""
        for message in messages:
            body = message.body
            if self.format is EventFormat.PYCHUNKEDGRAPH:
                body = json.dumps({"attributes": message.attributes, "payload": message.payload}).encode()
            try:
                post(self.url, body, {"Content-Type": "application/json"}, timeout=TIMEOUT_SECONDS)
            except PostError as error:
                raise UnavailableError(
                    f"the webhook at {host_of(self.url)} did not take event {message.number}: {error}.", remedy=KEPT
                ) from error


@dataclass
class PubsubSender:
    """Publishes to a topic; all messages of a graph have the same ordering key."""

    topic: str
    at_once: int = 50
    _credentials: Any = field(default=None, init=False, repr=False)

    def send(self, messages: Sequence[Message]) -> None:
        """See `Sender`."""
        body = json.dumps(
            {
                "messages": [
                    {
                        "data": base64.b64encode(message.body).decode(),
                        "attributes": message.attributes,
                        "orderingKey": message.ordering_key,
                    }
                    for message in messages
                ]
            }
        ).encode()
        emulator = os.environ.get(EMULATOR_VARIABLE, "").strip()
        place = f"http://{emulator}" if emulator else PUBSUB
        headers = {"Content-Type": "application/json"} | ({} if emulator else self._authorization())
        try:
            post(f"{place}/v1/{self.topic}:publish", body, headers, timeout=TIMEOUT_SECONDS)
        except PostError as error:
            first = messages[0].number
            raise _not_published(self.topic, host_of(place + "/"), first, error) from error

    def _authorization(self) -> dict[str, str]:
        """Return the authorization header from the default Google credentials of this machine."""
        # Imported here: it takes a second, and only this receiver needs it.
        import google.auth
        import google.auth.exceptions
        from google.auth.transport.requests import Request

        try:
            if self._credentials is None:
                self._credentials, _ = google.auth.default(scopes=[SCOPE])
            if not self._credentials.valid:
                self._credentials.refresh(Request())
        except google.auth.exceptions.DefaultCredentialsError as error:
            raise ConfigError(
                f"events cannot be published to {self.topic}: this machine has no credentials for Google Cloud.",
                remedy="Run 'gcloud auth application-default login', or set GOOGLE_APPLICATION_CREDENTIALS.",
            ) from error
        except google.auth.exceptions.GoogleAuthError as error:
            raise UnavailableError(f"Google gave no token to publish to {self.topic}: {error}.", remedy=KEPT) from error
        return {"Authorization": f"Bearer {self._credentials.token}"}


def _not_published(topic: str, host: str, number: int, error: PostError) -> SvPipelineError:
    said = f"Pub/Sub at {host} did not take event {number} for {topic}: {error}."
    remedies = {
        403: "Give the account that delivers events the role roles/pubsub.publisher on the topic. ",
        404: "Create the topic, or correct its name. ",
    }
    return UnavailableError(said, remedy=remedies.get(error.status or 0, "") + KEPT)
