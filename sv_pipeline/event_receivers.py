"""Receivers of the edit feed, as users configure them: where events are sent, and in which format. Sends nothing.

In the dataset YAML of a graph::

    events:
      - {to: pubsub, topic: projects/PROJECT/topics/TOPIC, format: pychunkedgraph}
      - {to: webhook, url_variable: EDITS_WEBHOOK}
      - {to: dagster}

Receivers for all graphs of an installation are configured by environment variables: ``SV_PIPELINE_EVENTS_TOPIC``,
``SV_PIPELINE_EVENTS_WEBHOOK``, ``SV_PIPELINE_EVENTS_DAGSTER=on``, ``SV_PIPELINE_EVENTS_FORMAT``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sv_pipeline.environment import is_switched_on
from sv_pipeline.errors import ConfigError
from sv_pipeline.redaction import remember

__all__ = ["EventFormat", "Receiver", "Start", "receivers_of", "require_own_names"]

TOPIC_VARIABLE = "SV_PIPELINE_EVENTS_TOPIC"
WEBHOOK_VARIABLE = "SV_PIPELINE_EVENTS_WEBHOOK"
DAGSTER_VARIABLE = "SV_PIPELINE_EVENTS_DAGSTER"
FORMAT_VARIABLE = "SV_PIPELINE_EVENTS_FORMAT"
TOPIC = re.compile(r"projects/[A-Za-z0-9:._-]+/topics/[A-Za-z][A-Za-z0-9._~+%-]{2,254}")


class EventFormat(StrEnum):
    """Format of an event."""

    SV_PIPELINE = "sv_pipeline"
    """Our own format, with everything that is known about the event."""
    PYCHUNKEDGRAPH = "pychunkedgraph"
    """The attributes and fields of the message that PyChunkedGraph publishes after an edit, as JSON."""


class Start(StrEnum):
    """The first event that a new receiver gets."""

    NOW = "now"
    """The first event after the receiver was registered, which its first delivery does."""
    BEGINNING = "beginning"
    """The first event of the feed."""


class Receiver(BaseModel):
    """One receiver of the events of a graph."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    to: Literal["pubsub", "webhook", "dagster"]
    """Kind: a topic of Google Pub/Sub, an HTTP endpoint, or observations of the asset ``fork`` in Dagster."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)] = ""
    """Name under which the table stores the receiver's position in the feed; default: the value of ``to``."""
    topic: str | None = None
    """Topic of a pubsub receiver: ``projects/PROJECT/topics/TOPIC``."""
    url: str | None = None
    """URL of a webhook. Everybody who knows it can send events, so ``url_variable`` is safer."""
    url_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable that holds the URL of a webhook."""
    format: EventFormat = EventFormat.SV_PIPELINE
    start: Start = Start.NOW

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_kind(cls, data: object) -> object:
        if isinstance(data, dict) and not data.get("name") and isinstance(data.get("to"), str):
            return {**data, "name": data["to"]}
        return data

    @field_validator("topic")
    @classmethod
    def _a_topic(cls, value: str | None) -> str | None:
        if value is not None and not TOPIC.fullmatch(value):
            raise ValueError("a topic is needed, such as projects/my-project/topics/edits")
        return value

    @field_validator("url")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value is not None:
            remember({"webhook_secret": value})
            if not value.startswith(("http://", "https://")):
                raise ValueError("an http:// or https:// URL is needed")
        return value

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        given = {name for name in ("topic", "url", "url_variable") if getattr(self, name) is not None}
        wanted: list[set[str]] = [set()]
        if self.to != "dagster":
            wanted = [{"topic"}] if self.to == "pubsub" else [{"url"}, {"url_variable"}]
        if given not in wanted:
            needed = " or ".join(name for one in wanted for name in one) or "nothing else"
            raise ValueError(
                f"a receiver of kind {self.to} needs {needed}, but has {', '.join(sorted(given)) or 'none'}"
            )
        return self

    @property
    def address(self) -> str:
        """URL of a webhook; raises ConfigError if the variable that should hold it does not."""
        url = self.url if self.url_variable is None else os.environ.get(self.url_variable, "")
        remember({"webhook_secret": url})
        if not url or not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"the receiver {self.name!r} of edit events has no address: {self.url_variable} does not hold an "
                "http(s) URL.",
                remedy="Set that variable where events are delivered.",
            )
        return url


def receivers_of(configured: Iterable[Receiver]) -> tuple[Receiver, ...]:
    """Return the receivers of a graph: those of its configuration, and those in the environment for all graphs.

    Raises
    ------
    ConfigError
        If a receiver in the environment cannot be used, or two receivers have the same name.
    """
    found = [*configured, *_from_environment()]
    try:
        require_own_names(found)
    except ValueError as error:
        raise ConfigError(f"{error}.") from error
    return tuple(found)


def require_own_names(receivers: Iterable[Receiver]) -> None:
    """Raise ValueError if two receivers have the same name."""
    names = [receiver.name for receiver in receivers]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two receivers of edit events have the name {twice[0]!r}: give each a 'name' of its own")


def _from_environment() -> list[Receiver]:
    form = os.environ.get(FORMAT_VARIABLE, "").strip() or EventFormat.SV_PIPELINE.value
    if form not in set(EventFormat):
        raise ConfigError(f"{FORMAT_VARIABLE} is {form!r}.", remedy=f"Set it to {' or '.join(EventFormat)}.")
    found = []
    if topic := os.environ.get(TOPIC_VARIABLE, "").strip():
        if not TOPIC.fullmatch(topic):
            raise ConfigError(f"{TOPIC_VARIABLE} is {topic!r}.", remedy="Set it to projects/PROJECT/topics/TOPIC.")
        found.append(Receiver(to="pubsub", name="all-pubsub", topic=topic, format=EventFormat(form)))
    if os.environ.get(WEBHOOK_VARIABLE, "").strip():
        found.append(
            Receiver(to="webhook", name="all-webhook", url_variable=WEBHOOK_VARIABLE, format=EventFormat(form))
        )
    if os.environ.get(DAGSTER_VARIABLE, "").strip() and is_switched_on(DAGSTER_VARIABLE):
        found.append(Receiver(to="dagster", name="all-dagster"))
    return found
