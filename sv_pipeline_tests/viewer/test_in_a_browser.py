"""The viewer as somebody uses it: in a real browser, with the mouse and the keys, judged by the pixels."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import neuroglancer
import numpy as np
import pytest
import requests
from PIL import Image

from sv_pipeline.config import parse_config
from sv_pipeline.ingest import run, stages
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.reports.viewer_links import neuroglancer_link
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline.testing.volumes import neuropil
from sv_pipeline.testing.worlds import configuration
from sv_pipeline.viewer.window import SIDES, ViewerWindow
from sv_pipeline_tests.browser import browser_page
from sv_pipeline_tests.editable import (
    BACKGROUND,
    neighbours_of_two_objects,
    two_parts_of_an_object,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("viewer")]

Voxel = tuple[int, int, int]
Colour = tuple[int, int, int]
SOFTWARE_WEBGL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
RED, BLUE = (tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in SIDES.values())
GOOGLE = "https://storage.googleapis.com"
PATIENCE = 90.0
PIXELS = 24
"""Width of a voxel in the cross-section."""
IS_AT = "place => (viewer.state.toJSON().position || [NaN]).every((axis, i) => Math.abs(axis - place[i]) < 1e-3)"
TWO_FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with browser_page(520, 380, *SOFTWARE_WEBGL) as opened:
        yield opened


class Seen:
    """A viewer in a browser that shows one xy cross-section, the mouse always in its middle."""

    def __init__(self, window: Any, page: Any) -> None:
        self.window, self.page = window, page
        page.goto(window.url)
        with window.viewer.txn() as state:
            state.layout = "xy"
            state.show_axis_lines = state.show_scale_bar = False
            state.cross_section_scale = 1 / PIXELS
        page.wait_for_selector("canvas")

    def look_at(self, voxel: Voxel) -> None:
        """Move the view, and wait until the browser has drawn it there, however busy the machine is."""
        position = [axis + 0.5 for axis in voxel]
        with self.window.viewer.txn() as state:
            state.position = position
        self.page.wait_for_function(IS_AT, arg=position, timeout=PATIENCE * 1000)
        self.page.evaluate(TWO_FRAMES)

    def middle(self) -> tuple[float, float]:
        box = self.page.locator(".neuroglancer-rendered-data-panel").first.bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def colour(self, voxel: Voxel, *, aside: int = 3 * PIXELS // 8) -> Colour:
        """The colour inside a voxel, aside from its middle, where a point may be drawn."""
        self.look_at(voxel)
        x, y = self.middle()
        clip = {"x": x + aside - 2, "y": y + aside - 2, "width": 4, "height": 4}
        pixels = np.asarray(Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB"))
        return tuple(np.median(pixels.reshape(-1, 3), axis=0).astype(int).tolist())

    def press(self, key: str, voxel: Voxel | None = None) -> None:
        if voxel is not None:
            self.look_at(voxel)
        x, y = self.middle()
        self.page.mouse.move(x - 5, y)
        self.page.mouse.move(x, y)
        self.page.wait_for_timeout(200)
        self.page.keyboard.press(f"Shift+{key}")

    def wait_for_text(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for(timeout=PATIENCE * 1000)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, what
            self.page.wait_for_timeout(200)


def apart(one: Colour, other: Colour) -> int:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def is_nearer(colour: Colour, one: Colour, other: Colour) -> bool:
    return apart(colour, one) < apart(colour, other)


def is_grey(colour: Colour) -> bool:
    return max(colour) - min(colour) < 8


def test_a_split_is_placed_previewed_made_and_undone_and_the_colours_follow(graph: OpenGraph, page: Any) -> None:
    one, other = two_parts_of_an_object(graph)
    near, far = neighbours_of_two_objects(graph)
    window = ViewerWindow(graph, edit=True, user="somebody", poll_seconds=0.5)
    try:
        seen = Seen(window, page)
        seen.wait_for(lambda: not is_grey(seen.colour(near)), "an object has a colour")
        seen.wait_for(lambda: apart(seen.colour(near), seen.colour(far)) > 30, "two objects have two colours")
        seen.wait_for(lambda: apart(seen.colour(one), seen.colour(other)) < 10, "one object has one colour")

        seen.press("KeyS", one)
        seen.wait_for_text("1 source point and 0 sink points")
        seen.press("KeyD", other)
        seen.wait_for_text("1 source point and 1 sink point")
        assert (window.session.sources, window.session.sinks) == ([one], [other])
        for voxel, marker in ((one, RED), (other, BLUE)):
            seen.wait_for(lambda v=voxel, c=marker: apart(seen.colour(v, aside=0), c) < 40, "a point has a marker")
        seen.wait_for(lambda: apart(seen.colour(one), seen.colour(other)) < 10, "one object has one colour")
        seen.press("KeyP")
        seen.wait_for_text("Preview: ")
        seen.wait_for(lambda: is_nearer(seen.colour(one), RED, BLUE), "the source side is red")
        seen.wait_for(lambda: is_nearer(seen.colour(other), BLUE, RED), "the sink side is blue")

        seen.press("Enter")
        seen.wait_for_text("Operation 1 (split) is made")
        assert len(set(graph.roots([one, other]).tolist())) == 2
        seen.wait_for(lambda: apart(seen.colour(one), seen.colour(other)) > 30, "two objects have two colours")

        seen.press("KeyU")
        seen.wait_for_text("Operation 1 is undone")
        seen.wait_for(lambda: apart(seen.colour(one), seen.colour(other)) < 10, "one object has one colour again")

        assert is_grey(seen.colour(BACKGROUND))
        graph.merge([near], [far], user="somebody else")  # an edit that is not made in the viewer appears by itself
        seen.wait_for_text("merge by somebody else")
        seen.wait_for(lambda: apart(seen.colour(near), seen.colour(far)) < 10, "the merged objects have one colour")
    finally:
        window.close()


def test_neuroglancer_alone_shows_a_graph_in_a_bucket(page: Any, gcs_server: GcsControl, tmp_path: Path) -> None:
    """The link of `info` in the client of the Python package, which asks Google's address; ours answers there."""
    raw = configuration(neuropil((32, 32, 16), seed=5), tmp_path, "tissue", chunk_size=(32, 32, 16))
    raw["data_source"] = {"WATERSHED": f"{gcs_server.new_bucket()}ws"}
    raw["ocdbt_config"] = {"populate_method": "parts"}
    dataset = stages.register(parse_config(raw), str(tmp_path / "home"))
    run.ingest(dataset, workers=1)
    link = neuroglancer_link(dataset)
    assert link is not None
    assert "ocdbt:" in link
    labels = dataset.fork.open(0)[..., 8].read().result()
    x, y = map(int, np.argwhere(labels[1:-1, 1:-1] > 0)[0] + 1)
    asked: list[str] = []

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        given = requests.get(route.request.url.replace(GOOGLE, gcs_server.url), headers=route.request.headers)
        route.fulfill(
            status=given.status_code,
            headers={**given.headers, "Access-Control-Allow-Origin": "*"},
            body=given.content,
        )

    page.context.route(f"{GOOGLE}/**", answer)
    viewer = neuroglancer.Viewer()
    viewer.set_state(neuroglancer.parse_url(link))
    seen = Seen(SimpleNamespace(url=viewer.get_viewer_url(), viewer=viewer), page)
    seen.wait_for(lambda: not is_grey(seen.colour((x, y, 8))), "a supervoxel has a colour")
    assert any("base%2Fmanifest.ocdbt" in url for url in asked)
