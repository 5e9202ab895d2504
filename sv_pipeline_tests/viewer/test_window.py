"""The server of a viewer, asked over HTTP as the browser asks it."""

from __future__ import annotations

import io
import json
import re
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import neuroglancer
import numpy as np
import pytest
import requests

from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.registry import Dataset
from sv_pipeline.testing.worlds import World
from sv_pipeline.viewer.window import KEYS, ViewerWindow
from sv_pipeline_tests.editable import neighbours_of_two_objects, two_parts_of_an_object

pytestmark = pytest.mark.xdist_group("viewer")


@pytest.fixture
def open_window(graph: OpenGraph) -> Iterator[Callable[..., ViewerWindow]]:
    windows: list[ViewerWindow] = []

    def opened(**options: Any) -> ViewerWindow:
        windows.append(ViewerWindow(options.pop("graph", graph), poll_seconds=0.2, **options))
        return windows[-1]

    yield opened
    for window in windows:
        window.close()


def server_of(window: ViewerWindow) -> str:
    return window.url.partition("/v/")[0]


def source_of(window: ViewerWindow, layer: str) -> str:
    """The key of a layer's volume, as the state of the viewer tells it to the browser."""
    layers = {one["name"]: one for one in window.viewer.shared_state.raw_state["layers"]}
    text = re.search(r"python://volume/([\w.]+)", json.dumps(layers[layer]["source"]))
    assert text is not None
    return text[1]


def chunk(window: ViewerWindow, layer: str, factor: str, start: str, end: str) -> requests.Response:
    path = f"neuroglancer/npz/{source_of(window, layer)}/{factor}/{start}/{end}"
    return requests.get(f"{server_of(window)}/{path}", timeout=30)


def voxels(window: ViewerWindow, layer: str = "objects", factor: str = "1,1,1", end: str = "64,64,32") -> np.ndarray:
    answer = chunk(window, layer, factor, "0,0,0", end)
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(zlib.decompress(answer.content)))


def act(window: ViewerWindow, action: str, voxel: tuple[int, int, int] | None = None) -> None:
    """Send an action as the browser does when a key is pressed while the mouse is on a voxel."""
    state: dict[str, Any] = {"viewerState": {}, "selectedValues": {}}
    if voxel is not None:
        state["mousePosition"] = [axis + 0.25 for axis in voxel]
    body = json.dumps({"action": action, "state": state})
    assert requests.post(f"{server_of(window)}/action/{window.viewer.token}", data=body, timeout=30).status_code == 200


def text_of(window: ViewerWindow, kind: str = "edit") -> str:
    return str(window.viewer.config_state.raw_state.get("statusMessages", {}).get(kind, ""))


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_chunk_shows_the_objects_at_any_resolution(
    graph: OpenGraph, open_window: Callable[..., ViewerWindow]
) -> None:
    world, window = World(graph.dataset), open_window()
    objects = world.objects(world.voxels())
    assert np.array_equal(voxels(window), objects)
    assert np.array_equal(voxels(window, "supervoxels"), world.voxels())
    mip_1 = np.asarray(graph.dataset.fork.open(1).read(order="F").result())
    assert np.array_equal(voxels(window, factor="2,2,1", end="32,32,32"), world.objects(mip_1))


def test_nothing_is_served_without_the_token(open_window: Callable[..., ViewerWindow]) -> None:
    window = open_window(edit=True)
    token, server = window.viewer.token, server_of(window)
    key = source_of(window, "objects")
    assert len(token) >= 32
    assert requests.get(window.url, timeout=30).status_code == 200
    assert server.startswith("http://127.0.0.1:")
    other = "0" * len(token)
    paths = [f"v/{other}/", "v//", "", f"neuroglancer/info/{key.replace(token, other)}", f"events/{other}?c=1&gc=&gs="]
    paths += [f"neuroglancer/npz/{key.replace(token, other)}/1,1,1/0,0,0/8,8,8"]
    assert {requests.get(f"{server}/{path}", timeout=30).status_code for path in paths} == {404}
    assert {
        requests.post(f"{server}/{path}/{other}", data="{}", timeout=30).status_code for path in ("action", "state")
    } == {404}
    # Neuroglancer can hand out credentials of the user who runs it; this viewer does not.
    assert requests.post(f"{server}/credentials/{token}", data='{"key": "google"}', timeout=30).status_code == 403


@pytest.mark.parametrize(
    ("factor", "start", "end"),
    [
        ("1,1,1", "0,0,0", "65,64,32"),
        ("0,1,1", "0,0,0", "8,8,8"),
        ("1,1", "0,0,0", "8,8,8"),
        ("1,1,1", "8,8,8", "8,8,8"),
        ("1,1,1", "-8,0,0", "8,8,8"),
        ("99999999,1,1", "0,0,0", "1,1,1"),
    ],
)
def test_a_chunk_that_is_not_part_of_the_volume_is_refused(
    open_window: Callable[..., ViewerWindow], factor: str, start: str, end: str
) -> None:
    assert chunk(open_window(), "objects", factor, start, end).status_code in (400, 404)


def test_a_viewer_without_edit_has_no_actions(graph: OpenGraph, open_window: Callable[..., ViewerWindow]) -> None:
    window = open_window()
    one, other = neighbours_of_two_objects(graph)
    act(window, "source-point", one)
    act(window, "sink-point", other)
    act(window, "preview-merge")
    act(window, "commit")
    time.sleep(0.5)
    assert not {name for name, _ in KEYS.values()} & set(window.viewer.config_state.raw_state.get("actions", []))
    assert len(graph.operations()) == 0


def test_keys_place_points_preview_and_commit(graph: OpenGraph, open_window: Callable[..., ViewerWindow]) -> None:
    window = open_window(edit=True, user="somebody")
    one, other = two_parts_of_an_object(graph, of_a_supervoxel=True)
    act(window, "source-point")  # the mouse is beside the volume
    wait_for(lambda: "move it over a cross-section" in text_of(window))
    act(window, "source-point", one)
    act(window, "sink-point", other)
    act(window, "preview-split")
    wait_for(lambda: text_of(window).startswith("Preview: "))
    said = text_of(window)
    sides = voxels(window, "preview")
    assert (sides[one], sides[other]) == (1, 2)
    shown = [layer["name"] for layer in window.viewer.shared_state.raw_state["layers"] if layer.get("visible", True)]
    assert shown == ["source points", "sink points", "preview", *(["doubtful place"] if "Warning" in said else [])]
    before = voxels(window)
    act(window, "commit")
    wait_for(lambda: text_of(window).startswith("Operation 1 (split) is made"))
    after = voxels(window)
    assert before[one] == before[other]
    assert after[one] != after[other]
    colours = window.viewer.state.layers["objects"].layer.segment_colors
    assert colours[int(after[one])] != colours[int(after[other])]
    assert graph.operations().loc[1, "user"] == "somebody"
    assert "preview" not in [layer["name"] for layer in window.viewer.shared_state.raw_state["layers"]]


def test_edits_of_others_appear(graph: OpenGraph, open_window: Callable[..., ViewerWindow]) -> None:
    window = open_window()
    one, other = neighbours_of_two_objects(graph)
    key = source_of(window, "objects")

    def generation() -> int:
        return int(requests.get(f"{server_of(window)}/neuroglancer/info/{key}", timeout=30).json()["generation"])

    before = generation()
    graph.merge([one], [other], user="somebody else")
    wait_for(lambda: text_of(window, "edits") == "Newest edit: operation 1, merge by somebody else.")
    assert generation() > before
    shown = voxels(window)
    assert shown[one] == shown[other]


def select(window: ViewerWindow, segments: dict[int, bool]) -> None:
    with window.viewer.txn() as state:
        state.layers["objects"].layer.starred_segments.update(segments)


def selected(window: ViewerWindow) -> dict[int, bool]:
    """Selected objects, and whether each is shown, as the browser reads it."""
    layers = {one["name"]: one for one in window.viewer.shared_state.raw_state["layers"]}
    return {int(one.lstrip("!")): not one.startswith("!") for one in layers["objects"].get("segments", [])}


def test_selected_objects_that_edits_replace_give_their_selection_on(
    graph: OpenGraph, open_window: Callable[..., ViewerWindow]
) -> None:
    window = open_window(edit=True)
    near, far = neighbours_of_two_objects(graph)
    one, other = graph.roots([near, far]).tolist()
    unknown = 5  # somebody may type anything
    select(window, {one: True, other: False, unknown: True})
    for action, voxel in (("source-point", near), ("sink-point", far), ("preview-merge", None), ("commit", None)):
        act(window, action, voxel)
    wait_for(lambda: graph.operations()["status"].tolist() == ["SUCCESS"])
    merged = int(graph.roots([near])[0])
    wait_for(lambda: selected(window) == {merged: True, unknown: True})
    graph.undo(1)  # somebody else
    parts = graph.roots([near, far]).tolist()
    wait_for(lambda: selected(window) == dict.fromkeys([*parts, unknown], True))


def test_what_an_edit_said_stands_if_the_view_cannot_be_drawn(
    graph: OpenGraph, open_window: Callable[..., ViewerWindow]
) -> None:
    window = open_window(edit=True)
    near, far = neighbours_of_two_objects(graph)
    for action, voxel in (("source-point", near), ("sink-point", far), ("preview-merge", None)):
        act(window, action, voxel)
    wait_for(lambda: text_of(window).startswith("Preview: "))
    with window.viewer.txn() as state:
        # Points can no longer be shown.
        state.layers["source points"] = neuroglancer.ImageLayer(source="precomputed://nowhere")
    act(window, "commit")
    wait_for(lambda: text_of(window).startswith("Operation 1 (merge) is made"))


@pytest.mark.parametrize("of_a_supervoxel", [False, True])
def test_an_operation_is_shown_before_and_after(
    graph: OpenGraph, open_window: Callable[..., ViewerWindow], of_a_supervoxel: bool
) -> None:
    one, other = two_parts_of_an_object(graph, of_a_supervoxel=of_a_supervoxel)
    made = graph.split([one], [other])
    window = open_window(operation=made.id)
    before, after = voxels(window, "before"), voxels(window, "after")
    assert before[one] == before[other] == made.old_roots[0]
    assert {after[one], after[other]} == set(made.roots.tolist())
    for layer, root in (("before", made.old_roots[0]), *(("after", root) for root in made.roots)):
        surface = f"{server_of(window)}/neuroglancer/mesh/{source_of(window, layer)}/{root}"
        assert requests.get(surface, timeout=30).status_code == 200
    colours = window.viewer.state.layers["after"].layer.segment_colors
    assert len({colours[root] for root in made.roots.tolist()}) == 2
    graph.undo(made.id)
    past = open_window(at=made.id)
    assert np.array_equal(voxels(past), after)


def test_an_object_has_a_surface_at_its_place(graph: OpenGraph, open_window: Callable[..., ViewerWindow]) -> None:
    window = open_window()
    objects = voxels(window)
    root = int(objects[32, 32, 16])
    meshes = f"{server_of(window)}/neuroglancer/mesh"
    answer = requests.get(f"{meshes}/{source_of(window, 'objects')}/{root}", timeout=30)
    assert answer.status_code == 200
    count = int(np.frombuffer(answer.content[:4], "<u4")[0])
    corners = np.frombuffer(answer.content[4 : 4 + 12 * count], "<f4").reshape(-1, 3)
    triangles = np.frombuffer(answer.content[4 + 12 * count :], "<u4").reshape(-1, 3)
    assert triangles.max() < count
    found = corners / (np.asarray(graph.dataset.volume.scales[0].resolution) * 1e-9)  # metres to voxels
    where = np.argwhere(objects == root)
    assert np.abs(found.min(axis=0) - where.min(axis=0)).max() < 1.5
    assert np.abs(found.max(axis=0) - where.max(axis=0) - 1).max() < 1.5
    for layer, unknown in (("objects", 5), ("supervoxels", root)):
        key = source_of(window, layer)
        assert requests.get(f"{meshes}/{key}/{unknown}", timeout=30).status_code == 404


def test_the_image_of_the_dataset_is_a_layer(
    graph: OpenGraph, open_window: Callable[..., ViewerWindow], tmp_path: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 32)).astype(np.uint8)
    np.save(tmp_path / "image.npy", image)
    config = graph.dataset.config.model_copy(update={"image": str(tmp_path / "image.npy")})
    window = open_window(graph=OpenGraph(Dataset(config, graph.dataset.home)))
    assert np.array_equal(voxels(window, "image"), image)
    coarse = voxels(window, "image", factor="2,2,2", end="32,32,16")
    assert np.array_equal(coarse[3, 4, 5], np.uint8(image[6:8, 8:10, 10:12].mean()))

    lost = graph.dataset.config.model_copy(update={"image": str(tmp_path / "lost.npy")})
    window = open_window(graph=OpenGraph(Dataset(lost, graph.dataset.home)))
    assert "lost.npy does not exist" in text_of(window, "image")
    assert voxels(window).any()
