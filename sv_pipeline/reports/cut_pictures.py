"""Pictures of an edit as PNG bytes: three orthogonal slices through the cut, before and after. Does no I/O.

::

                  x-y        x-z        y-z
    before     [ object ] [ object ] [ object ]       all six slices pass through one voxel of the cut,
    after      [so | si ] [so | si ] [so | si ]       and have one scale
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import fastremap
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.reports.colours import GREYS, Colours, Palette, colours_of
from sv_pipeline.reports.pictures import INK, Sheet, Size, borders, resized, scale_bar, scale_bar_length, show
from sv_pipeline.reports.sizes import PUBLISHED_WIDTH

__all__ = [
    "CutScene",
    "Kind",
    "Kinds",
    "Objects",
    "SceneState",
    "cut_voxel",
    "kinds_by_object",
    "render_cut",
    "with_sides",
]

IntArray = npt.NDArray[np.int64]
Kinds = npt.NDArray[np.uint8]
Triple = tuple[int, int, int]

_PLANES = (("x-y", 0, 1, 2), ("x-z", 0, 2, 1), ("y-z", 1, 2, 0))
"""Name, axis to the right, axis downwards, and axis perpendicular to the slice."""
NEAR_VOXELS = 2
"""Points at most this many voxels away from a slice are drawn filled, others as outlines."""


class Kind(IntEnum):
    """The kind of object to which a voxel of a scene belongs."""

    BACKGROUND = 0
    OTHER = 1
    """An object that the edit does not touch."""
    OBJECT = 2
    """An edited object that is on both sides, or on neither."""
    SOURCE = 3
    SINK = 4


# Blue and orange can be told apart with every kind of colour blindness; everything else is grey.
_COLOURS = {Kind.OBJECT: "#ece6d6", Kind.SOURCE: "#3f97dd", Kind.SINK: "#f2a02c"}
_BRIGHTNESS = np.array([[1.0], [0.66], [0.82], [0.52]])
"""Brightness of the colour of a kind, for several objects of it side by side; nearly all have the first."""
_PALETTES = {Kind.OTHER: GREYS} | {
    kind: Palette(np.array(mpl.colors.to_rgb(colour)) * _BRIGHTNESS, 0.01, by_id=False)
    for kind, colour in _COLOURS.items()
}


@dataclass(frozen=True, eq=False)
class Objects:
    """The object of each supervoxel in a box."""

    supervoxels: UInt64Array
    """Ids, ascending, shape (n,)."""
    roots: UInt64Array
    """The object of each, shape (n,)."""

    @classmethod
    def of(cls, labels: UInt64Array, roots_of: Callable[[UInt64Array], UInt64Array]) -> Objects:
        """Look up the objects of labels of any shape, each once; 0 = background."""
        distinct = fastremap.unique(labels)
        distinct = distinct[distinct != 0]
        return cls(distinct, roots_of(distinct))

    def roots_of(self, supervoxels: UInt64Array) -> UInt64Array:
        """Return the object of each supervoxel, shape (n,); 0 for one that has none."""
        at = np.searchsorted(self.supervoxels, supervoxels)
        return np.asarray(self.roots[at], np.uint64)

    def drawn(self, labels: UInt64Array) -> UInt64Array:
        """Return the object of each label, in the shape of the argument; a supervoxel that has none stands for it."""
        distinct, inverse = fastremap.unique(labels, return_inverse=True)
        objects = distinct.copy()
        objects[distinct != 0] = self.roots_of(distinct[distinct != 0])
        return np.asarray(np.where(objects == 0, distinct, objects)[inverse].reshape(labels.shape), np.uint64)


@dataclass(frozen=True, eq=False)
class SceneState:
    """A box of voxels at one moment."""

    name: str
    kinds: Kinds
    """:class:`Kind` of each voxel of the box, axes (x, y, z)."""
    labels: UInt64Array
    """Supervoxel of each voxel of the box, axes (x, y, z); their borders are drawn."""
    objects: Objects | None = None
    """Their objects, of which neighbours have different colours; default: each supervoxel is one."""


@dataclass(frozen=True, eq=False)
class CutScene:
    """The content of a picture of an edit."""

    title: str
    subtitle: str
    box: Box
    resolution: tuple[float, float, float]
    """Nanometres per voxel along x, y, z."""
    before: SceneState
    after: SceneState | None
    """The second row; None if there is nothing to compare with."""
    sources: IntArray
    """Source points of the user in absolute voxels, shape (n, 3)."""
    sinks: IntArray
    """Sink points of the user in absolute voxels, shape (n, 3)."""
    deciding: IntArray = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    """Absolute voxels at which another point would decide what is doubtful, shape (n, 3)."""

    @property
    def states(self) -> list[SceneState]:
        """The rows of the picture."""
        return [self.before] if self.after is None else [self.before, self.after]


def kinds_by_object(
    labels: UInt64Array,
    objects_of: Callable[[UInt64Array], UInt64Array],
    touched: UInt64Array,
    source: UInt64Array,
    sink: UInt64Array,
) -> Kinds:
    """Return the kind of each voxel, which depends on the object that it belongs to.

    Parameters
    ----------
    labels
        Supervoxels of any shape; 0 = background.
    objects_of
        Returns the object of each of some distinct supervoxels; called once.
    touched
        Objects that the edit changes.
    source, sink
        Objects with source points, and objects with sink points; an object that has both gets the kind `OBJECT`.
    """
    distinct, inverse = fastremap.unique(labels, return_inverse=True)
    there = distinct != 0
    objects = np.zeros_like(distinct)
    objects[there] = objects_of(distinct[there])
    kinds = np.where(there, Kind.OTHER, Kind.BACKGROUND).astype(np.uint8)
    for ids, kind in (
        (np.concatenate([touched, source, sink]), Kind.OBJECT),
        (np.setdiff1d(source, sink), Kind.SOURCE),
        (np.setdiff1d(sink, source), Kind.SINK),
    ):
        kinds[there & np.isin(objects, ids)] = kind
    return np.asarray(kinds[inverse].reshape(labels.shape), np.uint8)


def with_sides(kinds: Kinds, box: Box, cut: Box, sides: Kinds) -> Kinds:
    """Return the kinds of a box in which the voxels of a cut have the kinds of their sides.

    Parameters
    ----------
    cut, sides
        Box of the cut, and the side of each of its voxels: 1 = source side, 2 = sink side, 0 = not cut.
    """
    both = box.clip(cut)
    if not both.volume:
        return kinds
    result = kinds.copy()
    there = result[both.shifted(np.negative(box.start)).slices]
    given = sides[both.shifted(np.negative(cut.start)).slices]
    there[given == 1], there[given == 2] = Kind.SOURCE, Kind.SINK
    return result


# -- where to look ----------------------------------------------------------------------------------------------------


def cut_voxel(scene: CutScene) -> Triple:
    """Choose the voxel through which to slice, relative to the box.

    It lies on the contact of both sides, near the points, where the slices show most of the contact. If the sides do
    not touch inside the box, it is the voxel of the object that is nearest to the middle between the points.
    """
    for state in reversed(scene.states):
        voxels, faces = _contacts(state.kinds)
        if len(voxels):
            seen = np.zeros(len(voxels))
            for across in range(3):
                # A slice shows a voxel face as a line, unless the face is parallel to the slice.
                edge_on = np.bincount(voxels[faces != across, across], minlength=scene.box.shape[across])
                seen += edge_on[voxels[:, across]] / max(edge_on.max(), 1)
            away = _distances(voxels, _middle(scene), scene.resolution) / _reach(scene)
            return _triple(voxels[np.argmax(seen * np.exp(-(away**2)))])
    found = np.argwhere(scene.before.kinds >= Kind.OBJECT)
    middle = _middle(scene)
    if len(found):
        return _triple(found[np.argmin(_distances(found, middle, scene.resolution))])
    return _triple(np.clip(np.rint(middle), 0, np.subtract(scene.box.shape, 1)))


def _contacts(kinds: Kinds) -> tuple[IntArray, IntArray]:
    """Voxels of the source side that touch the sink side, shape (n, 3), and the axis along which they touch, (n,)."""
    voxels, faces = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
    source, sink = kinds == Kind.SOURCE, kinds == Kind.SINK
    for axis in range(3):
        low = (*(slice(None),) * axis, slice(None, -1))
        high = (*(slice(None),) * axis, slice(1, None))
        step = (np.arange(3) == axis).astype(np.int64)
        for at, shift in ((source[low] & sink[high], 0), (sink[low] & source[high], 1)):
            found = np.argwhere(at) + shift * step
            voxels.append(found)
            faces.append(np.full(len(found), axis))
    return np.concatenate(voxels), np.concatenate(faces)


def _middle(scene: CutScene) -> npt.NDArray[np.float64]:
    """The middle between the points of both sides, in voxels relative to the box."""
    sides = [points.mean(axis=0) for points in (scene.sources, scene.sinks) if len(points)]
    if not sides:
        return np.asarray(scene.box.shape) / 2
    return np.asarray(np.mean(sides, axis=0) - scene.box.start)


def _reach(scene: CutScene) -> float:
    """Distance from the points within which contacts are preferred, in nm: about half the distance of the points."""
    extent = np.multiply(scene.box.shape, scene.resolution)
    gap = np.zeros(3)
    if len(scene.sources) and len(scene.sinks):
        gap = (scene.sources.mean(axis=0) - scene.sinks.mean(axis=0)) * scene.resolution
    return max(float(np.linalg.norm(gap)) / 2, float(extent.max()) / 8)


def _distances(voxels: IntArray, to: npt.NDArray[np.float64], resolution: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.asarray(np.linalg.norm((voxels - to) * np.asarray(resolution), axis=1))


def _triple(voxel: npt.NDArray[np.generic]) -> Triple:
    x, y, z = (int(v) for v in voxel)
    return x, y, z


# -- drawing ----------------------------------------------------------------------------------------------------------


def render_cut(scene: CutScene, at: Triple | None = None, *, width: int = PUBLISHED_WIDTH) -> bytes:
    """Draw a scene as PNG.

    Parameters
    ----------
    at
        Absolute voxel through which to slice; default: the result of :func:`cut_voxel`.
    width
        Width of the picture in pixels.
    """
    centre = cut_voxel(scene) if at is None else _triple(np.subtract(at, scene.box.start))
    box = np.multiply(scene.box.shape, scene.resolution).tolist()
    extents = [(box[right], box[down]) for _, right, down, _ in _PLANES]
    sheet, bar = Sheet.of(extents, len(scene.states), width, head=_HEAD), scale_bar_length(extents)
    cuts = [tuple(centre[k] if k == across else slice(None) for k in range(3)) for _, _, _, across in _PLANES]
    sizes = sheet.sizes * len(scene.states)
    pixels = iter(_pixels([(state, cut) for state in scene.states for cut in cuts], sizes))
    for axes, state in zip(sheet.rows, scene.states, strict=True):
        for axis, plane, extent in zip(axes, _PLANES, extents, strict=True):
            show(axis, next(pixels), extent)
            _draw_points(axis, scene, plane, centre)
            axis.set_title(f"{state.name}, {plane[0]}", color=INK, fontsize=10, loc="left")
            scale_bar(axis, extent, bar)
    where = ", ".join(str(c + s) for c, s in zip(centre, scene.box.start, strict=True))
    sheet.text(0.1, scene.title, fontsize=13)
    sheet.text(0.38, f"{scene.subtitle}\nslices through voxel {where}", fontsize=9, alpha=0.8)
    sheet.figure.legend(
        handles=_legend(scene),
        loc="upper left",
        bbox_to_anchor=(0, 1 - 0.68 / sheet.figure.get_figheight()),
        ncols=7,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
        handlelength=1.2,
    )
    return sheet.png()


_HEAD = 0.98
"""Space in inches above the first row, for the title, the subtitle and the legend."""


def _draw_points(axis: Axes, scene: CutScene, plane: tuple[str, int, int, int], centre: Triple) -> None:
    _, right, down, across = plane
    for at, line in ((right, axis.axvline), (down, axis.axhline)):
        line((centre[at] + 0.5) * scene.resolution[at], color="white", alpha=0.35, linewidth=0.6, linestyle=(0, (4, 4)))
    for points, kind in ((scene.deciding, None), (scene.sources, Kind.SOURCE), (scene.sinks, Kind.SINK)):
        _points(axis, scene, points, kind, (right, down, across), centre)


_MARKERS = {Kind.SOURCE: "o", Kind.SINK: "D", None: "P"}
_DECIDING = "#ff4d6d"
"""Colour of the places at which another point would decide, which is that of no side."""


def _points(
    axis: Axes, scene: CutScene, points: IntArray, kind: Kind | None, axes: tuple[int, int, int], centre: Triple
) -> None:
    right, down, across = axes
    relative = points - scene.box.start
    relative = relative[((relative >= 0) & (relative < scene.box.shape)).all(axis=1)]
    near = np.abs(relative[:, across] - centre[across]) <= NEAR_VOXELS
    colour = _DECIDING if kind is None else _COLOURS[kind]
    for chosen, fill in ((~near, "none"), (near, colour)):
        there = (relative[chosen] + 0.5) * np.asarray(scene.resolution)
        axis.plot(
            there[:, right],
            there[:, down],
            _MARKERS[kind],
            markersize=7,
            markerfacecolor=fill,
            markeredgecolor="black" if fill != "none" else colour,
            markeredgewidth=1.2,
            linestyle="none",
            path_effects=[patheffects.withStroke(linewidth=3, foreground="white" if fill != "none" else "black")],
        )


def _pixels(slices: list[tuple[SceneState, tuple[int | slice, ...]]], sizes: list[Size]) -> list[Colours]:
    """Return RGB pixels of slices in their sizes: kinds in their colours, other objects in greys, borders dark."""
    kinds = [state.kinds[cut] for state, cut in slices]
    labels = [state.labels[cut] for state, cut in slices]
    objects = [one if s.objects is None else s.objects.drawn(one) for one, (s, _) in zip(labels, slices, strict=True)]
    pixels = [np.full((*one.shape, 3), 0.07) for one in kinds]
    for kind, palette in _PALETTES.items():
        of_kind = [np.where(k == kind, o, np.uint64(0)) for k, o in zip(kinds, objects, strict=True)]
        for rgb, there, colours in zip(pixels, of_kind, colours_of(of_kind, palette), strict=True):
            rgb[there != 0] = colours[there != 0]
    return [_shaded(*one) for one in zip(pixels, kinds, labels, objects, sizes, strict=True)]


def _shaded(rgb: Colours, kinds: Kinds, labels: UInt64Array, objects: UInt64Array, size: Size) -> Colours:
    # The shades of supervoxels differ a little, which shows where the graph could cut without splitting supervoxels.
    shade = ((labels * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48)).astype(np.float64) / 0xFFFF
    rgb[kinds >= Kind.OBJECT] *= (0.86 + 0.14 * shade[kinds >= Kind.OBJECT])[:, None]
    rgb, kinds = resized(rgb, size), resized(kinds, size)
    labels, objects = resized(labels, size), resized(objects, size)
    inside = kinds != Kind.BACKGROUND
    rgb[borders(labels) & inside] *= 0.78
    rgb[borders(objects) & inside] *= 0.6
    rgb[borders(kinds) & inside] *= 0.3
    return rgb


def _legend(scene: CutScene) -> list[Patch | Line2D]:
    used = {int(kind) for state in scene.states for kind in fastremap.unique(state.kinds)}
    names = {Kind.SOURCE: "source side", Kind.SINK: "sink side", Kind.OBJECT: "object"}
    shown: list[Patch | Line2D] = [Patch(color=_COLOURS[k], label=name) for k, name in names.items() if k in used]
    if Kind.OTHER in used:
        shown.append(Patch(facecolor="0.25", edgecolor="#777777", label="other objects"))
    for points, kind, name in ((scene.sources, Kind.SOURCE, "source"), (scene.sinks, Kind.SINK, "sink")):
        if len(points):
            label = f"{name} points (filled: in the slice)" if kind is Kind.SOURCE else f"{name} points"
            shown.append(
                Line2D([], [], marker=_MARKERS[kind], color=_COLOURS[kind], linestyle="none", markersize=7, label=label)
            )
    if len(scene.deciding):
        label = "another point would decide"
        shown.append(
            Line2D([], [], marker=_MARKERS[None], color=_DECIDING, linestyle="none", markersize=7, label=label)
        )
    return shown
