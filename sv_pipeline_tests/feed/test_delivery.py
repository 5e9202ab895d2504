"""Events reach their receivers at least once and in order: receivers that are down, senders that die or are stopped."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from sv_pipeline import edits
from sv_pipeline.errors import ConfigError
from sv_pipeline.event_receivers import Receiver, Start, receivers_of
from sv_pipeline.failpoints import VARIABLE
from sv_pipeline.feed import delivery
from sv_pipeline.feed.delivery import deliver, move_to, next_events, places
from sv_pipeline.testing.fixtures import need
from sv_pipeline.testing.servers.pubsub import find_pubsub_emulator, running_pubsub_emulator
from sv_pipeline.testing.servers.webhook import Webhook
from sv_pipeline_tests.editable import editable_graph, neighbours_of_two_objects
from sv_pipeline_tests.edits.conftest import Edited
from sv_pipeline_tests.edits.conftest import make_graph as make_graph


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as server:
        yield server


@pytest.fixture
def edited(make_graph: Callable[..., Edited]) -> Edited:
    return make_graph((5, 2, 2), seed=6, objects=0.3, cross=0.03)


def receiver_at(webhook: Webhook, **options: Any) -> Receiver:
    return Receiver(**{"to": "webhook", "url": webhook.url, "start": Start.BEGINNING, **options})


def some_edits(edited: Edited, count: int) -> list[int]:
    """A merge that is undone and made again, so often; the operations."""
    merge = edited.merge(*edited.pairs(same=False)[0])
    made = [merge.operation_id]
    for i in range(count - 1):
        change = edits.redo if i % 2 else edits.undo
        made.append(change(edited.graph, merge.operation_id, "tester").operation_id)
    return made


def operations(documents: list[Any]) -> list[int]:
    return [document["operation_id"] for document in documents]


def test_a_receiver_that_was_down_gets_everything_once_in_order(edited: Edited, webhook: Webhook) -> None:
    receiver = receiver_at(webhook)
    made = some_edits(edited, 2)
    assert deliver(edited.graph, receiver).delivered == 2
    webhook.down()
    made += some_edits_again(edited, made[0], 3)
    for _ in range(2):
        outcome = deliver(edited.graph, receiver)
        assert (outcome.delivered, outcome.behind) == (0, 3)
        assert "did not take event 3" in outcome.error
        assert "a-secret-path" not in outcome.error
    place = places(edited.graph.table)["webhook"]
    assert place.number == 2
    assert place.failing_since is not None
    webhook.up()
    outcome = deliver(edited.graph, receiver)
    assert (outcome.delivered, outcome.behind, outcome.error) == (3, 0, "")
    assert operations(webhook.taken) == made
    assert [document["number"] for document in webhook.taken] == [1, 2, 3, 4, 5]
    assert places(edited.graph.table)["webhook"].error == ""


def some_edits_again(edited: Edited, merge: int, count: int) -> list[int]:
    changes = (edits.redo, edits.undo)
    return [changes[i % 2](edited.graph, merge, "tester").operation_id for i in range(count)]


@pytest.mark.parametrize("status", [301, 400, 404, 429, 500, 503])
def test_an_event_that_is_refused_holds_those_behind_it_until_it_is_taken_or_passed(
    edited: Edited, webhook: Webhook, status: int
) -> None:
    receiver, made = receiver_at(webhook), some_edits(edited, 3)
    webhook.answer = lambda document: status if document["operation_id"] == made[1] else 200
    outcome = deliver(edited.graph, receiver)
    assert (outcome.delivered, outcome.behind) == (1, 2)
    assert str(status) in outcome.error
    assert operations(webhook.taken) == made[:1]
    move_to(edited.graph.table, receiver, 2)
    assert deliver(edited.graph, receiver).delivered == 1
    assert operations(webhook.taken) == [made[0], made[2]]


def test_a_new_receiver_begins_now_or_at_the_beginning(edited: Edited, webhook: Webhook) -> None:
    made = some_edits(edited, 2)
    late = receiver_at(webhook, start=Start.NOW)
    assert deliver(edited.graph, late).delivered == 0
    [again] = some_edits_again(edited, made[0], 1)
    assert deliver(edited.graph, late).delivered == 1
    assert operations(webhook.taken) == [again]
    assert deliver(edited.graph, receiver_at(webhook, name="other")).delivered == 3
    assert operations(webhook.taken) == [again, *made, again]


def test_two_senders_do_not_work_for_one_receiver_at_once(edited: Edited, webhook: Webhook) -> None:
    receiver = receiver_at(webhook)
    some_edits(edited, 2)
    inner: list[delivery.Delivery] = []

    def answer(_: Any) -> int:
        inner.append(deliver(edited.graph, receiver))
        return 200

    webhook.answer = answer
    assert deliver(edited.graph, receiver).delivered == 2
    assert all(outcome.busy for outcome in inner)
    assert len(webhook.taken) == 2


def test_a_sender_that_was_stopped_for_too_long_does_not_move_the_receiver_back(
    edited: Edited, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "LOCK_EXPIRY", delivery.LOCK_EXPIRY * 0)
    receiver, made = receiver_at(webhook), some_edits(edited, 3)
    inner: list[delivery.Delivery] = []

    def answer(_: Any) -> int:
        if not inner:
            inner.append(delivery.Delivery("begun"))
            inner.append(deliver(edited.graph, receiver))
        return 200

    webhook.answer = answer
    outer = deliver(edited.graph, receiver)
    assert outer.busy
    assert inner[-1].delivered == 3
    assert places(edited.graph.table)["webhook"].number == 3
    assert set(operations(webhook.taken)) == set(made)


def test_the_sensor_s_own_place_goes_on_where_it_was(edited: Edited) -> None:
    events, place = next_events(edited.graph, None, Start.BEGINNING)
    assert events == []
    made = some_edits(edited, 3)
    events, after = next_events(edited.graph, place, Start.BEGINNING, limit=2)
    assert [event.operation_id for event in events] == made[:2]
    assert next_events(edited.graph, after, Start.NOW)[0][0].operation_id == made[2]
    events, fresh = next_events(edited.graph, {"feed": "of another table", "number": 99}, Start.NOW)
    assert events == []
    assert fresh is not None
    assert fresh["number"] == 3, "the table was made again: a place in the old feed says nothing"


# -- Pub/Sub ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pubsub() -> Iterator[str]:
    jar = find_pubsub_emulator()
    need(jar, "the Pub/Sub emulator of the Google Cloud SDK, and a Java")
    with running_pubsub_emulator(str(jar)) as address:
        yield f"http://{address}/v1"


def pulled(pubsub: str, subscription: str, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 20
    while len(found) < count and time.monotonic() < deadline:
        answer = requests.post(f"{pubsub}/{subscription}:pull", json={"maxMessages": 100}, timeout=30).json()
        got = answer.get("receivedMessages", [])
        found += [one["message"] for one in got]
        if ids := [one["ackId"] for one in got]:
            requests.post(f"{pubsub}/{subscription}:acknowledge", json={"ackIds": ids}, timeout=30)
    return found


@pytest.mark.parametrize("form", ["sv_pipeline", "pychunkedgraph"])
def test_messages_arrive_through_pubsub_in_order(pubsub: str, edited: Edited, form: str) -> None:
    name = f"edits{uuid.uuid4().hex[:8]}"
    topic, subscription = f"projects/p/topics/{name}", f"projects/p/subscriptions/{name}"
    receiver = Receiver(to="pubsub", topic=topic, format=form, start="beginning")
    made = some_edits(edited, 3)
    outcome = deliver(edited.graph, receiver)
    assert outcome.delivered == 0
    assert "Create the topic" in outcome.error
    assert requests.put(f"{pubsub}/{topic}", json={}, timeout=30).ok
    assert requests.put(f"{pubsub}/{subscription}", json={"topic": topic, "enableMessageOrdering": True}, timeout=30).ok
    assert deliver(edited.graph, receiver).delivered == 3
    messages = pulled(pubsub, subscription, 3)
    payloads = [json.loads(base64.b64decode(message["data"])) for message in messages]
    assert operations(payloads) == made
    if form == "pychunkedgraph":
        assert messages[0]["attributes"] == {
            "table_id": edited.graph.table.name,
            "user_id": "tester",
            "remesh": "true",
            "remesh_priority": "true",
        }
        assert set(payloads[0]) == {"operation_id", "new_lvl2_ids", "new_root_ids", "old_root_ids"}
    else:
        assert messages[0]["attributes"]["kind"] == "merge"


# -- senders that die -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["deliver", "delivered", "delivery noted", "feed appended"])
def test_a_sender_that_is_killed_loses_nothing_and_repeats_at_most_what_was_under_way(
    tmp_path: Path, webhook: Webhook, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = editable_graph(tmp_path / "graph", tmp_path / "home")
    one, other = neighbours_of_two_objects(graph)
    command = [sys.executable, "-m", "sv_pipeline.cli.main", "--home", str(tmp_path / "home")]
    command += ["events", "small", "--deliver"]
    environment = {**os.environ, "SV_PIPELINE_EVENTS_WEBHOOK": webhook.url}
    monkeypatch.setenv("SV_PIPELINE_EVENTS_WEBHOOK", webhook.url)
    [receiver] = receivers_of(())
    move_to(graph.graph.table, receiver, 0)
    made = [graph.merge([one], [other]).id]
    made += [(graph.redo if i % 2 else graph.undo)(made[0]).id for i in range(3)]
    monkeypatch.setattr(delivery, "LOCK_EXPIRY", delivery.LOCK_EXPIRY * 0)
    died = subprocess.run(command, env={**environment, VARIABLE: f"{step}:kill"}, check=False, capture_output=True)
    assert died.returncode == -signal.SIGKILL
    outcome = deliver(graph.graph, receiver)
    assert (outcome.behind, outcome.error) == (0, "")
    got = operations(webhook.taken)
    assert list(dict.fromkeys(got)) == made
    assert len(got) - len(made) == (step == "delivered"), "only what the dead sender could not note comes twice"


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"to": "webhook"}, "needs url or url_variable"),
        ({"to": "webhook", "url": "ftp://host/x"}, "http:// or https://"),
        ({"to": "webhook", "url": "http://host/x", "topic": "projects/p/topics/abc"}, "needs url or url_variable"),
        ({"to": "pubsub", "topic": "edits"}, "projects/my-project/topics/edits"),
        ({"to": "dagster", "url": "http://host/x"}, "needs nothing else"),
        ({"to": "mail"}, "pubsub"),
        ({"to": "dagster", "format": "pickle"}, "pychunkedgraph"),
    ],
)
def test_a_receiver_that_cannot_be_is_refused_by_its_field(wrong: dict[str, Any], said: str) -> None:
    from sv_pipeline.config import parse_config

    raw = {"graph_id": "g", "data_source": {"WATERSHED": "/w"}, "events": [wrong]}
    with pytest.raises(ConfigError, match=r"events\.0") as caught:
        parse_config(raw)
    assert said in str(caught.value)


def test_the_environment_names_receivers_for_all_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SV_PIPELINE_EVENTS_TOPIC", "projects/p/topics/edits")
    monkeypatch.setenv("SV_PIPELINE_EVENTS_WEBHOOK", "https://hooks.example/secret")
    monkeypatch.setenv("SV_PIPELINE_EVENTS_DAGSTER", "on")
    monkeypatch.setenv("SV_PIPELINE_EVENTS_FORMAT", "pychunkedgraph")
    found = receivers_of([Receiver(to="dagster")])
    assert [receiver.name for receiver in found] == ["dagster", "all-pubsub", "all-webhook", "all-dagster"]
    assert found[1].format == "pychunkedgraph"
    monkeypatch.setenv("SV_PIPELINE_EVENTS_WEBHOOK", "hooks.example")
    with pytest.raises(ConfigError, match="does not hold an http"):
        _ = found[2].address


@pytest.mark.parametrize("variable", ["SV_PIPELINE_EVENTS_FORMAT", "SV_PIPELINE_EVENTS_TOPIC"])
def test_a_variable_that_cannot_be_used_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "edits")
    with pytest.raises(ConfigError, match=variable):
        receivers_of([])


def test_credentials_that_are_missing_are_one_clear_error(edited: Edited, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    some_edits(edited, 1)
    outcome = deliver(edited.graph, Receiver(to="pubsub", topic="projects/p/topics/edits", start="beginning"))
    assert "no credentials for Google Cloud" in outcome.error


def test_the_position_of_dagster_cannot_be_set_in_the_table(edited: Edited) -> None:
    with pytest.raises(ConfigError, match="sensor"):
        move_to(edited.graph.table, Receiver(to="dagster"), 0)
