"""The edit feed from a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.testing.servers.webhook import Webhook
from sv_pipeline_tests.editable import editable_graph, neighbours_of_two_objects, two_parts_of_an_object
from sv_pipeline_tests.ingest.builds import CommandLine


@pytest.fixture
def graph(cli: CommandLine, tmp_path: Path) -> OpenGraph:
    return editable_graph(tmp_path / "graph", cli.home)


def test_finished_edits_are_shown_in_order_as_lines_or_json(cli: CommandLine, graph: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(graph)
    merge = graph.merge([one], [other], user="ada")
    graph.undo(merge.id, user="bob")
    lines = [json.loads(line) for line in cli("events", "small", "--json").out.splitlines()]
    assert [(e["number"], e["operation_id"], e["kind"], e["about"], e["user"]) for e in lines] == [
        (1, merge.id, "merge", None, "ada"),
        (2, merge.id + 1, "undo", merge.id, "bob"),
    ]
    assert lines[0]["new_root_ids"] == merge.roots.tolist()
    assert lines[0]["old_root_ids"] == merge.old_roots.tolist()
    later = cli("events", "small", "--since", merge.id, "--json").out.splitlines()
    assert [json.loads(line) for line in later] == lines[1:]
    said = cli("events", "small").out
    assert "merge by ada" in said
    assert f"undo of {merge.id} by bob" in said


def test_receivers_are_named_in_the_yaml_changed_later_and_watched(
    cli: CommandLine, graph: OpenGraph, tmp_path: Path
) -> None:
    raw = graph.dataset.config.model_dump(mode="json", by_alias=True)
    path = tmp_path / "graph.yaml"

    def configured(*events: dict[str, str]) -> None:
        path.write_text(yaml.safe_dump({**raw, "events": list(events)}))
        answer = cli("attach", path)
        assert answer.code == 0, answer.err

    assert "has no receivers" in cli("events", "small", "--receivers").out
    with Webhook() as webhook:
        configured({"to": "webhook", "url": webhook.url}, {"to": "dagster"})
        assert "not registered yet" in cli("events", "small", "--receivers").out
        assert cli("events", "small", "--deliver").code == 0
        one, other = neighbours_of_two_objects(graph)
        merge = graph.merge([one], [other])
        assert "1 delivered, 0 to go" in cli("events", "small", "--deliver").out
        assert [event["operation_id"] for event in webhook.taken] == [merge.id]
    graph.undo(merge.id)
    down = cli("events", "small", "--deliver")
    assert down.code == 1
    assert "not all events were delivered" in down.err
    said = cli("events", "small", "--receivers")
    assert "has 1 of 2 events, failing since" in said.out
    assert webhook.url not in down.out + down.err + said.out + said.err
    assert "a-secret-path" not in down.out + down.err + said.out + said.err
    [status, _] = json.loads(cli("events", "small", "--receivers", "--json").out)
    assert (status["number"], status["of"]) == (1, 2)
    assert cli("events", "small", "--move", "webhook", 2).code == 0
    assert cli("events", "small", "--deliver").code == 0
    assert "has no event 9" in cli("events", "small", "--move", "webhook", 9).err
    assert "has no receiver 'mail'" in cli("events", "small", "--move", "mail", 1).err
    configured()
    assert "has no receivers" in cli("events", "small", "--receivers").out


def test_an_operation_that_the_feed_does_not_have_is_named(cli: CommandLine, graph: OpenGraph) -> None:
    answer = cli("events", "small", "--since", 7)
    assert answer.code == 1
    assert "does not have operation 7" in answer.err


def test_the_message_of_pychunkedgraph_has_its_attributes_and_fields(cli: CommandLine, graph: OpenGraph) -> None:
    one, other = two_parts_of_an_object(graph, of_a_supervoxel=True)
    split = graph.split([one], [other], user="ada")
    [line] = cli("events", "small", "--json", "--format", "pychunkedgraph").out.splitlines()
    message = json.loads(line)
    assert message["attributes"] == {
        "table_id": "small",
        "user_id": "ada",
        "remesh": "true",
        "remesh_priority": "true",
        "downsample": "true",
    }
    payload = message["payload"]
    assert list(payload) == ["operation_id", "new_lvl2_ids", "new_root_ids", "old_root_ids", "seg_bboxes"]
    assert payload["operation_id"] == split.id
    assert (graph.graph.layout.layers(np.array(payload["new_lvl2_ids"], np.uint64)) == 2).all()
    assert np.shape(payload["seg_bboxes"])[1:] == (2, 3)


def test_follow_shows_an_edit_that_is_made_meanwhile(cli: CommandLine, graph: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(graph)
    graph.merge([one], [other])
    command = [sys.executable, "-m", "sv_pipeline.cli.main", "--home", str(cli.home), "events", "small"]
    command += ["--follow", "--json", "--interval", "0.1"]
    with subprocess.Popen([*command, "--since", "0"], stdout=subprocess.PIPE, env=os.environ.copy()) as process:
        assert process.stdout is not None
        try:
            assert json.loads(process.stdout.readline())["kind"] == "merge"
            undo = graph.undo(1)
            assert json.loads(process.stdout.readline())["operation_id"] == undo.id
        finally:
            process.kill()
