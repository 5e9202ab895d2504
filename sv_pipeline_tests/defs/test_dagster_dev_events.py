"""Edit events as an operator sees them: the daemon's sensor delivers them, also after a webhook was down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sv_pipeline.feed.delivery import places
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.testing.servers.webhook import Webhook
from sv_pipeline_tests.defs.dev_server import DevServer, dev_server, wait_for
from sv_pipeline_tests.editable import editable_graph, neighbours_of_two_objects

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("dagster_dev")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dev")


@pytest.fixture(scope="module")
def graph(place: Path) -> OpenGraph:
    return editable_graph(place / "graph", place / "home")


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    with Webhook() as server:
        yield server


@pytest.fixture(scope="module")
def server(place: Path, graph: OpenGraph, webhook: Webhook) -> Iterator[DevServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SV_PIPELINE_EVENTS_WEBHOOK", webhook.url)
        patch.setenv("SV_PIPELINE_EVENTS_DAGSTER", "on")
        with dev_server(str(place / "home"), place / "dagster_home") as server:
            yield server


def observed(server: DevServer) -> list[int]:
    """Operations of the observations of the asset ``fork``, oldest first."""
    text = (
        'query{assetOrError(assetKey:{path:["fork"]}){... on Asset{assetObservations(limit:100)'
        "{partition metadataEntries{label ... on IntMetadataEntry{intValue}}}}}}"
    )
    found: list[dict[str, Any]] = server.query(text)["assetOrError"].get("assetObservations", [])
    entries = [entry for one in reversed(found) for entry in one["metadataEntries"]]
    return [int(entry["intValue"]) for entry in entries if entry["label"] == "operation_id"]


def test_edits_reach_the_webhook_and_the_asset_though_the_webhook_goes_down(
    server: DevServer, graph: OpenGraph, webhook: Webhook
) -> None:
    wait_for(lambda: "all-webhook" in places(graph.graph.table), "the sensor registers the webhook", 90)
    one, other = neighbours_of_two_objects(graph)
    made = [graph.merge([one], [other]).id]
    wait_for(lambda: [event["operation_id"] for event in webhook.taken] == made, "the first event", 60)
    webhook.down()
    made += [graph.undo(made[0]).id, graph.redo(made[0]).id]
    wait_for(lambda: places(graph.graph.table)["all-webhook"].failing_since, "the sensor finds it down", 60)
    webhook.up()
    wait_for(lambda: [event["operation_id"] for event in webhook.taken] == made, "all events, once, in order", 60)
    wait_for(lambda: observed(server) == made, "each is an observation of the fork", 60)
