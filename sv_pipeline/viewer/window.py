"""A graph in one neuroglancer viewer: its layers, the keys of edits, and the edits of others as they are made."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import neuroglancer
import numpy as np

from sv_pipeline.defects import DefectError
from sv_pipeline.edits import SplitPreview
from sv_pipeline.edits.session import refuse_if_read_only
from sv_pipeline.errors import ConfigError, InputError, SvPipelineError
from sv_pipeline.grid import Box
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.storage.wall import our_error
from sv_pipeline.viewer import labels, places
from sv_pipeline.viewer.image import image_of
from sv_pipeline.viewer.meshes import ObjectMeshes
from sv_pipeline.viewer.session import EditSession, Voxel
from sv_pipeline.viewer.volumes import ServedVolume, dimensions_of
from sv_pipeline.viewer.watching import Watcher
from sv_pipeline.wording import counted

__all__ = ["KEYS", "ViewerWindow", "serve_at"]

_logger = logging.getLogger(__name__)

KEYS = {
    "shift+keys": ("source-point", "S: source point at the mouse"),
    "shift+keyd": ("sink-point", "D: sink point"),
    "shift+keyp": ("preview-split", "P: preview a split"),
    "shift+keym": ("preview-merge", "M: preview a merge"),
    "shift+enter": ("commit", "Enter: commit"),
    "shift+keyu": ("undo", "U: undo"),
    "shift+keyx": ("clear-points", "X: clear points"),
}
"""Event of the keyboard in neuroglancer's notation -> action, and what the help says about it. All are with Shift."""

OBJECT_COLOURS = ("#ffb000", "#00a0ff", "#30d060", "#ff50c0", "#c0c000", "#9070ff")
"""Colours of the objects of an operation; those that neuroglancer derives from ids may be nearly equal."""
SOURCE_COLOUR, SINK_COLOUR = "#ff5050", "#4090ff"
OBJECTS, SUPERVOXELS, IMAGE, PREVIEW = "objects", "supervoxels", "image", "preview"
DOUBT, DOUBT_COLOUR = "doubtful place", "#ffe000"
"""The layer of the voxel where one more point decides most, while a doubtful split is previewed."""
SIDES = {"source points": SOURCE_COLOUR, "sink points": SINK_COLOUR}
POLL_SECONDS = 2.0
SMALL = 300
"""A volume of fewer voxels along each axis is enlarged at first."""
PROJECTION = 2
"""Extent of the 3-d view at first, in longest sides of the volume."""


def serve_at(host: str, port: int) -> None:
    """Start neuroglancer's server at an address; without it, the first window starts it on this machine's own.

    The path of everything that it serves contains a random token, without which it answers nothing, on any host.

    Parameters
    ----------
    host
        Name or address to listen at.
    port
        Port to listen at; 0 takes any free one.

    Raises
    ------
    ConfigError
        If the address cannot be used.
    """
    neuroglancer.set_server_bind_address(host, port)
    try:
        neuroglancer.server.start()
    except OSError as error:
        raise ConfigError(
            f"the viewer cannot be served at {host}:{port}: {error.strerror or error}.",
            remedy="Choose another --port, or an address of this machine as --host.",
        ) from error


class ViewerWindow:
    """One viewer. Everybody who opens its address sees and controls the same view."""

    def __init__(
        self,
        graph: OpenGraph,
        *,
        edit: bool = False,
        user: str | None = None,
        at: Any = None,
        operation: int | None = None,
        position: Voxel | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """Open a viewer on a graph.

        Parameters
        ----------
        edit
            Whether the graph can be edited in the viewer; as of now only.
        user
            Author of the edits; default: the user of this machine.
        at
            Show the graph as it was at this moment.
        operation
            Show the place of this operation, before and after it.
        position
            Voxel of mip 0 to look at; default: the middle of the volume, or the place of the operation.
        poll_seconds
            Seconds between two looks for edits of others.

        Raises
        ------
        NotFoundError, InputError
            If there is no such operation or moment, or the position is outside the volume.
        EditRefused
            If the graph is to be edited, but is read-only.
        """
        bounds = graph.dataset.volume.bounds
        if position is not None and not all(map(range.__contains__, map(range, bounds.start, bounds.stop), position)):
            raise InputError(
                f"the position {','.join(map(str, position))} is outside the volume.",
                remedy=f"Its voxels are {bounds.start} to {tuple(stop - 1 for stop in bounds.stop)}.",
            )
        if edit:
            refuse_if_read_only(graph.graph)
        self.graph = graph
        self.session = EditSession(graph, user) if edit else None
        self._live: list[ServedVolume] = []
        # A token of our own makes neuroglancer refuse to hand out this user's credentials for Google Cloud.
        self.viewer = neuroglancer.Viewer(token=neuroglancer.random_token.make_random_token())
        self._steps = ThreadPoolExecutor(1, thread_name_prefix="viewer")
        self._watcher: Watcher | None = None
        image = self._image()
        with self.viewer.txn() as state:
            state.title = f"{graph.dataset.graph_id}: sv-pipeline"
            state.dimensions = dimensions_of(graph.dataset.volume.scales[0].resolution)
            if image is not None:
                state.layers[IMAGE] = neuroglancer.ImageLayer(source=image)
            centre = self._show_graph(state, at) if operation is None else self._show_operation(state, operation)
            if edit:
                _set_points(state, [], [])
            state.position = [axis + 0.5 for axis in position or centre]
            state.cross_section_scale = _zoom(graph.dataset.volume.bounds)
            state.projection_scale = PROJECTION * max(graph.dataset.volume.bounds.shape)
        if at is None and operation is None:
            self._watcher = Watcher(graph, self._on_edits, poll_seconds)
            self._say_lag()
        if self.session is not None:
            self._bind_keys()

    @property
    def url(self) -> str:
        """Address of the viewer, with its token."""
        return str(self.viewer.get_viewer_url())

    def close(self) -> None:
        """Stop looking for edits, and wait until a step that has begun is done."""
        if self._watcher is not None:
            self._watcher.stop()
        self._steps.shutdown(cancel_futures=True)

    # -- layers -------------------------------------------------------------------------------------------------------

    def _image(self) -> ServedVolume | None:
        try:
            found = image_of(self.graph.dataset)
        except SvPipelineError as error:
            self.say("image", f"The image cannot be shown: {error}")
            return None
        return None if found is None else ServedVolume(found, "image")

    def _show_graph(self, state: Any, at: Any) -> Voxel:
        view = labels.View(self.graph.graph) if at is None else places.view_at(self.graph.graph, at)
        supervoxels = labels.supervoxels(view)
        layers = {
            SUPERVOXELS: ServedVolume(supervoxels, "segmentation"),
            OBJECTS: ServedVolume(labels.objects(view), "segmentation", ObjectMeshes(view, supervoxels)),
        }
        for name, volume in layers.items():
            state.layers.append(name=name, layer=neuroglancer.SegmentationLayer(source=volume), visible=name == OBJECTS)
            if at is None:
                self._live.append(volume)
        state.layout = "4panel"
        return _middle(self.graph.dataset.volume.bounds)

    def _show_operation(self, state: Any, operation: int) -> Voxel:
        place = places.place_of(self.graph, operation)
        groups = []
        for name, view, roots in (("before", place.before, place.old_roots), ("after", place.after, place.new_roots)):
            surfaces = ObjectMeshes(view, labels.supervoxels(view))
            volume = ServedVolume(labels.objects(view), "segmentation", surfaces)
            state.layers[name] = neuroglancer.SegmentationLayer(
                source=volume,
                segments=roots,
                segment_colors=dict(zip(roots, cycle(OBJECT_COLOURS), strict=False)),
                not_selected_alpha=0.15,
                selected_alpha=0.6,
            )
            shown = [name] if IMAGE not in state.layers else [IMAGE, name]
            groups.append(neuroglancer.LayerGroupViewer(layers=[*shown, *SIDES], layout="4panel"))
        _set_points(state, place.sources, place.sinks)
        state.layout = neuroglancer.row_layout(groups)
        self.say("operation", place.title)
        return place.centre

    # -- edits of others ----------------------------------------------------------------------------------------------

    def _on_edits(self, text: str) -> None:
        """Show the graph anew after edits."""
        for volume in self._live:
            volume.invalidate()
        self._select_newest()
        self.say("edits", text)
        self._say_lag()

    def _select_newest(self) -> None:
        """Select the objects that came of selected ones that edits have replaced, instead of these."""
        chosen = {int(root): shown for root, shown in _selection(self.viewer.state).items() if root}
        newest: dict[int, bool] = {}
        for shown in (False, True):  # an object that came of several is shown if one of them is
            before = [root for root in chosen if chosen[root] is shown]
            newest |= dict.fromkeys(labels.newest_roots(self.graph.graph, before), shown)
        if newest.keys() == chosen.keys():
            return
        with self.viewer.txn() as state:
            segments = _selection(state)
            for root in chosen.keys() - newest.keys():
                segments.pop(root, None)
            for root in newest.keys() - chosen.keys():
                segments[root] = newest[root]

    def _say_lag(self) -> None:
        lag = self.graph.dataset.fork.lag()
        edits = counted(lag.entries, "edit")
        self.say("lag", f"Coarser mips are behind {edits}: zoom in to see what changed." if lag.entries else "")

    def say(self, kind: str, text: str) -> None:
        """Show a text at the bottom of the viewer, replacing the last one of its kind; an empty one removes it."""
        with self.viewer.config_state.txn() as config:
            if text:
                config.status_messages[kind] = text
            else:
                config.status_messages.pop(kind, None)

    # -- edits by keys ------------------------------------------------------------------------------------------------

    def _bind_keys(self) -> None:
        session = self.session
        assert session is not None
        steps: dict[str, Callable[[], str]] = {
            "preview-split": session.preview_split,
            "preview-merge": session.preview_merge,
            "commit": session.commit,
            "undo": session.undo,
            "clear-points": session.clear,
        }
        for name, step in steps.items():
            self.viewer.actions.add(name, lambda _, step=step: self._steps.submit(self._do, step))
        for name, add in (("source-point", session.add_source), ("sink-point", session.add_sink)):
            self.viewer.actions.add(name, lambda action, add=add: self._steps.submit(self._do_at, action, add))
        with self.viewer.config_state.txn() as config:
            for key, (name, _) in KEYS.items():
                config.input_event_bindings.viewer[key] = name
            config.status_messages["keys"] = "With Shift: " + "; ".join(text for _, text in KEYS.values()) + "."

    def _do_at(self, action: Any, add: Callable[[Voxel], str]) -> None:
        mouse = action.mouse_position
        if mouse is None or len(mouse) != 3:
            self.say("edit", "The mouse is on no place of the volume: move it over a cross-section.")
            return
        x, y, z = np.floor(np.asarray(mouse, np.float64)).astype(np.int64).tolist()
        self._do(lambda: add((x, y, z)))

    def _do(self, step: Callable[[], str]) -> None:
        """Do one step of the session, show its text, and what it changed; in the thread of the steps."""
        self.say("edit", "Working ...")
        said = self._tried(step)  # stands whatever happens to the drawing: the edit may be made
        self.say("edit", " ".join(filter(None, (said, self._tried(self._draw)))))
        if self._watcher is not None:
            self._watcher.look()

    def _tried(self, step: Callable[[], str | None]) -> str:
        """Return the text of a step, or of its error."""
        try:
            return step() or ""
        except Exception as error:
            ours = our_error(error)
            _logger.warning("a step failed", exc_info=ours is None)
            return str(ours or DefectError(error))

    def _draw(self) -> None:
        """Show the points and the preview of the session."""
        session = self.session
        assert session is not None
        sides = None
        if isinstance(session.preview, SplitPreview):
            sides = ServedVolume(labels.sides_of(labels.View(self.graph.graph), session.preview), "segmentation")
        with self.viewer.txn() as state:
            _set_points(state, session.sources, session.sinks)
            for name in (PREVIEW, DOUBT):
                if name in state.layers:
                    del state.layers[name]
            if sides is not None:
                colours = {labels.SOURCE: SOURCE_COLOUR, labels.SINK: SINK_COLOUR}
                state.layers[PREVIEW] = neuroglancer.SegmentationLayer(
                    source=sides, segment_colors=colours, selected_alpha=0.7, hover_highlight=False
                )
            if isinstance(session.preview, SplitPreview) and (doubt := session.preview.doubt) and doubt.place:
                _set_layer(state, DOUBT, DOUBT_COLOUR, [doubt.place])
            if OBJECTS in state.layers:
                state.layers[OBJECTS].visible = sides is None
                if session.made and isinstance(state.layers[OBJECTS].layer, neuroglancer.SegmentationLayer):
                    colours = state.layers[OBJECTS].layer.segment_colors
                    for root, colour in zip(session.made[-1].roots.tolist(), cycle(OBJECT_COLOURS), strict=False):
                        colours[root] = colour


def _selection(state: Any) -> Any:
    """Return the selected objects of a state and whether each is shown; empty if somebody has removed their layer."""
    return getattr(state.layers[OBJECTS].layer, "starred_segments", {}) if OBJECTS in state.layers else {}


def _set_points(state: Any, sources: list[Voxel], sinks: list[Voxel]) -> None:
    for (name, colour), points in zip(SIDES.items(), (sources, sinks), strict=True):
        _set_layer(state, name, colour, points)


def _set_layer(state: Any, name: str, colour: str, points: list[Voxel]) -> None:
    """Show points as a layer of their own."""
    if name not in state.layers:
        layer = neuroglancer.LocalAnnotationLayer(dimensions=state.dimensions, annotation_color=colour)
        state.layers[name] = layer
    state.layers[name].layer.annotations = [
        neuroglancer.PointAnnotation(id=f"{name} {number}", point=[axis + 0.5 for axis in point])
        for number, point in enumerate(points, 1)
    ]


def _zoom(box: Box) -> float:
    """Return how many voxels a pixel of a cross-section shows at first: small volumes are enlarged."""
    return min(1.0, max(box.shape) / SMALL)


def _middle(box: Box) -> Voxel:
    x, y, z = ((a + b) // 2 for a, b in zip(box.start, box.stop, strict=True))
    return x, y, z
