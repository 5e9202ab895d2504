"""Links to viewers: commands and addresses of our own, and what neuroglancer alone opens."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import tensorstore as ts

from sv_pipeline.config import parse_config
from sv_pipeline.edits import EditRefused
from sv_pipeline.errors import ConfigError
from sv_pipeline.ingest import run, stages
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.viewer_links import (
    NEUROGLANCER_VARIABLE,
    VIEWER_VARIABLE,
    neuroglancer_link,
    neuroglancer_source,
    operation_link,
    viewer_address,
    viewer_link,
)
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline.testing.volumes import cells
from sv_pipeline.testing.worlds import configuration
from sv_pipeline_tests.editable import editable_graph, neighbours_of_two_objects


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenGraph]:
    monkeypatch.delenv(VIEWER_VARIABLE, raising=False)
    with editable_graph(tmp_path, tmp_path / "a home") as opened:
        yield opened


def test_a_link_is_a_command_or_an_address_at_the_place(graph: OpenGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = graph.dataset
    command = ["sv-pipeline", "--home", dataset.home, "view", "small"]
    assert " " in dataset.home
    assert shlex.split(viewer_link(dataset)) == command
    assert shlex.split(viewer_link(dataset, position=(3, 4, -5))) == [*command, "--position", "3,4,-5"]
    one, other = neighbours_of_two_objects(graph)
    made = graph.merge([one], [other])
    assert shlex.split(operation_link(dataset, made.id)) == [*command, "--operation", "1"]
    with pytest.raises(EditRefused):
        graph.merge([one], [other])
    # The second was refused: there is nothing before and after it, but it has a place, or is not in the log at all.
    assert "--operation" not in operation_link(dataset, 2)
    monkeypatch.setenv(VIEWER_VARIABLE, "https://lab.org/viewer/open/abc/")
    assert viewer_link(dataset) == "https://lab.org/viewer/open/abc/small"
    assert operation_link(dataset, made.id) == "https://lab.org/viewer/open/abc/small?operation=1"
    assert viewer_link(dataset, position=(3, 4, -5)).endswith("/small?position=3,4,-5")
    assert neuroglancer_link(dataset) is None, "a browser cannot read local files"


@pytest.mark.parametrize("text", ["lab.org/viewer", "file:///viewer", "https://lab.org/open/abc?graph=1"])
def test_a_variable_that_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VIEWER_VARIABLE, text)
    with pytest.raises(ConfigError, match=VIEWER_VARIABLE):
        viewer_address()


@pytest.mark.parametrize("refers", [True, False])
def test_a_graph_in_a_bucket_has_a_link_to_neuroglancer_alone(
    gcs_server: GcsControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refers: bool
) -> None:
    dataset = in_bucket(gcs_server, tmp_path, "auto" if refers else "parts")
    found = neuroglancer_source(dataset)
    assert found is not None
    name, source = found
    assert name == "supervoxels before edits"
    # What neuroglancer reads by this source is what TensorStore reads by it.
    folder, *formats = source.split("|")
    kvstore = {"driver": "ocdbt", "base": folder} if "ocdbt:" in formats else folder
    opened = ts.open({"driver": "neuroglancer_precomputed", "kvstore": kvstore}).result()
    assert ("ocdbt:" in formats) is not refers
    assert (opened[..., 0].read().result() == dataset.fork.open(0).read().result()).all()
    monkeypatch.setenv(NEUROGLANCER_VARIABLE, "https://ng.lab.org")
    link = neuroglancer_link(dataset)
    assert link is not None
    client, _, state = link.partition("/#!")
    assert client == "https://ng.lab.org"
    shown = json.loads(unquote(state))
    assert shown["layers"][0]["source"] == source
    assert shown["position"] == [10, 8, 6]


def in_bucket(gcs: GcsControl, folder: Path, method: str) -> Dataset:
    raw = configuration(cells((20, 16, 12), 12, 4), folder, "tissue")
    raw["data_source"] = {"WATERSHED": f"{gcs.new_bucket()}ws"}
    raw["ocdbt_config"] = {**raw.get("ocdbt_config", {}), "populate_method": method}
    dataset = stages.register(parse_config(raw), str(folder / "home"))
    run.ingest(dataset, workers=1)
    return dataset
