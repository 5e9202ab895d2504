"""Edits as somebody makes them in the UI: launched, looked at in a browser, executed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sv_pipeline.proofreading import OpenGraph
from sv_pipeline_tests.browser import browser_page
from sv_pipeline_tests.defs.dev_server import DevServer, dev_server
from sv_pipeline_tests.editable import editable_graph, two_parts_of_an_object

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("dagster_dev")]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> OpenGraph:
    folder = tmp_path_factory.mktemp("ui")
    return editable_graph(folder, folder / "home")


@pytest.fixture(scope="module")
def server(graph: OpenGraph, tmp_path_factory: pytest.TempPathFactory):
    with dev_server(graph.dataset.home, tmp_path_factory.mktemp("dagster")) as server:
        yield server


@pytest.fixture
def page():
    """A page of a real browser."""
    with browser_page(1500, 1000) as opened:
        yield opened


def split_config(graph: OpenGraph) -> dict[str, Any]:
    source, sink = two_parts_of_an_object(graph, of_a_supervoxel=True)
    return {"graph_id": "small", "source": [list(source)], "sink": [list(sink)], "user": "somebody"}


def test_a_split_is_seen_in_the_ui_and_made_once_however_often_it_is_executed(
    server: DevServer, graph: OpenGraph, page: Any, tmp_path: Path
) -> None:
    run = server.launch("split_job", split_config(graph))
    assert server.wait_for_run(run) == "SUCCESS"
    assert server.tags(run)["sv/op_id"] == "1"

    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{server.url}/runs/{run}")
    # The last picture of the log, in the few lines of it that are shown at once.
    page.get_by_text("[Show Markdown]").last.click()
    image = page.locator("img[alt=before_and_after]")
    image.wait_for()
    width, height = image.evaluate("i => [i.naturalWidth, i.naturalHeight]")
    shown = image.bounding_box()
    page.screenshot(path=tmp_path / "run.png")
    assert width > 800
    assert height > 300
    assert shown["width"] >= 0.95 * width  # the dialog shows it without shrinking or cutting it off
    assert all(url.startswith((server.url, "data:", "blob:")) for url in requests)

    again = server.reexecute(run, "ALL_STEPS")
    assert server.wait_for_run(again) == "SUCCESS"
    assert server.tags(again)["sv/op_id"] == "1"
    assert graph.operations()["kind"].tolist() == ["split"]


def test_the_launchpad_names_what_is_missing(server: DevServer, page: Any) -> None:
    page.goto(f"{server.url}/locations/sv_pipeline.definitions/jobs/split_job/playground")
    page.get_by_text("Missing required config entries ['graph_id', 'sink', 'source']").wait_for()
