"""The viewer for everybody, asked over HTTP: each link opens a window of its own at its place."""

from __future__ import annotations

import re
from collections.abc import Iterator

import neuroglancer
import pytest
import requests

from sv_pipeline.errors import ConfigError
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.reports.viewer_links import VIEWER_VARIABLE, operation_link, viewer_link
from sv_pipeline.viewer.team import TeamViewer, port_and_token
from sv_pipeline_tests.editable import neighbours_of_two_objects

pytestmark = pytest.mark.xdist_group("viewer")


@pytest.fixture
def team(graph: OpenGraph, monkeypatch: pytest.MonkeyPatch) -> Iterator[TeamViewer]:
    neuroglancer.server.start()
    viewer = TeamViewer(graph.dataset.home, neuroglancer.random_token.make_random_token(), most_windows=2)
    monkeypatch.setenv(VIEWER_VARIABLE, viewer.address)
    yield viewer
    viewer.close()


def test_a_link_opens_a_window_of_its_own_at_its_place(graph: OpenGraph, team: TeamViewer) -> None:
    one, other = neighbours_of_two_objects(graph)
    made = graph.merge([one], [other])
    first, second = (requests.get(viewer_link(graph.dataset, position=one), timeout=30) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.url != second.url, "two visitors do not share a view"
    server = neuroglancer.server.global_server
    assert re.fullmatch(rf"{server.server_url}/v/\w+/", first.url)
    window = team._windows[0]
    assert list(window.viewer.state.position) == [axis + 0.5 for axis in one]
    assert window.session is None, "nobody knows who clicks a link, so nothing can be edited"
    past = requests.get(operation_link(graph.dataset, made.id), timeout=30)
    assert past.status_code == 200
    assert {"before", "after"} <= {layer.name for layer in team._windows[-1].viewer.state.layers}
    assert len(team._windows) == 2
    assert "closed" in window.viewer.config_state.raw_state["statusMessages"]


def test_the_address_alone_lists_the_graphs_and_nothing_is_told_without_the_token(
    graph: OpenGraph, team: TeamViewer
) -> None:
    listed = requests.get(f"{team.address}/", timeout=30)
    assert f'<a href="{graph.dataset.graph_id}">' in listed.text
    without = team.address.rpartition("/")[0]
    for path in ("", "/", "/graph", f"/{'0' * 40}/", f"/{'0' * 40}/graph"):
        assert requests.get(without + path, timeout=30).status_code == 404


@pytest.mark.parametrize(
    ("link", "status", "said"),
    [
        ("nothing", 404, "graph &#x27;nothing&#x27; is not known"),
        ("{}?operation=7", 404, "operation 7"),
        ("{}?operation=x", 400, "not the number of an operation"),
        ("{}?operation=1&at=2", 400, "not both"),
        ("{}?at=yesterday", 400, "is not a moment"),
        ("{}?position=1,2", 400, "Write x,y,z"),
        ("{}?position=-5,100000,3", 400, "outside the volume"),
        ("{}?edit=1", 400, "no option &#x27;edit&#x27;"),
        ("%3Cb%3E", 400, "&lt;b&gt;"),
    ],
)
def test_a_link_that_leads_nowhere_says_why(
    graph: OpenGraph, team: TeamViewer, link: str, status: int, said: str
) -> None:
    answer = requests.get(f"{team.address}/{link.format(graph.dataset.graph_id)}", timeout=30)
    assert (answer.status_code, said in answer.text) == (status, True), answer.text


def test_the_address_of_the_environment_is_served_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VIEWER_VARIABLE, "http://lab.org:8093/open/0123456789abcdef0123")
    assert port_and_token() == (8093, "0123456789abcdef0123")
    monkeypatch.setenv(VIEWER_VARIABLE, "https://lab.org/viewer/open/0123456789abcdef0123/")
    assert port_and_token() == (0, "0123456789abcdef0123")
    monkeypatch.delenv(VIEWER_VARIABLE)
    port, token = port_and_token()
    assert port == 0
    assert len(token) >= 32
    monkeypatch.setenv(VIEWER_VARIABLE, "http://lab.org:8093/")
    with pytest.raises(ConfigError, match="does not end in /open/"):
        port_and_token()
