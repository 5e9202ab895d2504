"""The sensor that tells others of finished edits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from sv_pipeline.defs.events import edit_events_sensor
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.event_receivers import Receiver
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.registry import Registry
from sv_pipeline.testing.servers.webhook import Webhook
from sv_pipeline_tests.editable import editable_graph, neighbours_of_two_objects


@pytest.fixture
def graph(tmp_path: Path) -> OpenGraph:
    return editable_graph(tmp_path / "graph", tmp_path / "home")


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as server:
        yield server


def tick(graph: OpenGraph, cursor: str | None) -> dg.SensorResult:
    with dg.DagsterInstance.ephemeral() as instance, dg.build_sensor_context(instance, cursor) as context:
        found = edit_events_sensor(context, pipeline=PipelineResource(home=graph.dataset.home))
    assert isinstance(found, dg.SensorResult)
    return found


def operations(result: dg.SensorResult) -> list[Any]:
    return [event.metadata["operation_id"].value for event in result.asset_events]


def test_nobody_is_told_where_nobody_is_named(graph: OpenGraph) -> None:
    found = tick(graph, None)
    assert "no graph has receivers" in str(found.skip_reason)


def test_events_are_observed_and_delivered_and_go_on_after_the_cursor(
    graph: OpenGraph, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SV_PIPELINE_EVENTS_DAGSTER", "on")
    monkeypatch.setenv("SV_PIPELINE_EVENTS_WEBHOOK", webhook.url)
    first = tick(graph, None)
    assert not first.asset_events
    one, other = neighbours_of_two_objects(graph)
    merge = graph.merge([one], [other], user="ada")
    undo = graph.undo(merge.id, user="bob")
    second = tick(graph, first.cursor)
    assert operations(second) == [merge.id, undo.id]
    observed = second.asset_events[0]
    assert observed.partition == "small"
    event = observed.metadata["event"].value
    assert event["new_root_ids"] == [str(root) for root in merge.roots.tolist()], "no JavaScript number holds them"
    assert [document["operation_id"] for document in webhook.taken] == [merge.id, undo.id]
    assert operations(tick(graph, first.cursor)) == [merge.id, undo.id], "a tick that was lost is made again"
    webhook.down()
    redo = graph.redo(merge.id)
    third = tick(graph, second.cursor)
    assert operations(third) == [redo.id], "a receiver that is down does not keep events from others"
    assert operations(tick(graph, third.cursor)) == []
    webhook.up()
    said = tick(graph, third.cursor)
    assert webhook.taken[-1]["operation_id"] == redo.id
    assert "1 delivered" in str(said.skip_reason)


def test_dagster_gets_each_event_once_though_yaml_and_environment_both_name_it(
    graph: OpenGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SV_PIPELINE_EVENTS_DAGSTER", "on")
    config = graph.dataset.config.model_copy(update={"events": (Receiver(to="dagster"),)})
    Registry(graph.dataset.home).register(config)
    first = tick(graph, None)
    one, other = neighbours_of_two_objects(graph)
    merge = graph.merge([one], [other])
    assert operations(tick(graph, first.cursor)) == [merge.id]


def test_a_graph_that_cannot_be_read_keeps_its_place(graph: OpenGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SV_PIPELINE_EVENTS_DAGSTER", "on")
    first = tick(graph, None)
    path = Path(graph.dataset.home) / "graphs" / "small.json"
    content = path.read_text()
    path.write_text("{")
    broken = tick(graph, first.cursor)
    assert json.loads(broken.cursor or "") == json.loads(first.cursor or "")
    assert "does not hold the configuration" in str(broken.skip_reason)
    path.write_text(content)
