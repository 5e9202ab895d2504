"""Pictures of an edit as PNG bytes: three orthogonal slices through the cut, before and after. Does no I/O.

::

                  x-y        x-z        y-z
    before     [ object ] [ object ] [ object ]       all six slices pass through one voxel of the cut
    after      [so | si ] [so | si ] [so | si ]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import fastremap
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.reports.pictures import INK, MAX_WIDTH, PAPER, png, scale_bar

__all__ = ["CutScene", "Kind", "SceneState", "cut_voxel", "kinds_by_object", "render_cut", "with_sides"]

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
_GREYS = (0.17, 0.29)


@dataclass(frozen=True, eq=False)
class SceneState:
    """A box of voxels at one moment."""

    name: str
    kinds: Kinds
    """:class:`Kind` of each voxel of the box, axes (x, y, z)."""
    labels: UInt64Array
    """Supervoxel of each voxel of the box, axes (x, y, z); their borders are drawn."""


@dataclass(frozen=True, eq=False)
class CutScene:
    """The content of a picture of an edit."""

    title: str
    subtitle: str
    box: Box
    resolution: tuple[float, float, float]
    """Nanometres per voxel along x, y, z."""
    before: SceneState
    after: SceneState
    sources: IntArray
    """Source points of the user in absolute voxels, shape (n, 3)."""
    sinks: IntArray
    """Sink points of the user in absolute voxels, shape (n, 3)."""


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
    for state in (scene.after, scene.before):
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


def render_cut(scene: CutScene, at: Triple | None = None) -> bytes:
    """Draw a scene as PNG.

    Parameters
    ----------
    at
        Absolute voxel through which to slice; default: the result of :func:`cut_voxel`.
    """
    centre = cut_voxel(scene) if at is None else _triple(np.subtract(at, scene.box.start))
    figure, axes = _sheet(np.multiply(scene.box.shape, scene.resolution))
    for row, state in zip(axes, (scene.before, scene.after), strict=True):
        for axis, plane in zip(row, _PLANES, strict=True):
            _draw(axis, scene, state, plane, centre)
    where = ", ".join(str(c + s) for c, s in zip(centre, scene.box.start, strict=True))
    height = figure.get_figheight()
    figure.text(_GAP / WIDTH, 1 - 0.1 / height, scene.title, color=INK, fontsize=13, va="top")
    below = f"{scene.subtitle}\nslices through voxel {where}"
    figure.text(_GAP / WIDTH, 1 - 0.38 / height, below, color=INK, alpha=0.8, fontsize=9, va="top")
    figure.legend(
        handles=_legend(scene),
        loc="upper left",
        bbox_to_anchor=(0, 1 - 0.68 / height),
        ncols=6,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
        handlelength=1.2,
    )
    return png(figure, MAX_WIDTH / WIDTH)


WIDTH, _GAP, _TOP, _TITLE, _BOTTOM = 10.9, 0.15, 0.98, 0.3, 0.12
"""Sizes in inches: sheet, gap between slices, head with the legend, title of each row, margin below the last row."""
_HIGHEST = 6.0


def _sheet(extent: npt.NDArray[np.float64]) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure with two rows of three axes, all at one scale, for a box of size ``extent`` in nm."""
    sizes = [(float(extent[right]), float(extent[down])) for _, right, down, _ in _PLANES]
    tallest = max(down for _, down in sizes)
    scale = min((WIDTH - 4 * _GAP) / sum(right for right, _ in sizes), _HIGHEST / tallest)
    row = tallest * scale + _TITLE
    height = _TOP + 2 * row + _BOTTOM
    figure = plt.figure(figsize=(WIDTH, height), facecolor=PAPER)
    axes: list[list[Axes]] = []
    for number in range(2):
        left, top = _GAP, height - _TOP - number * row - _TITLE
        axes.append([])
        for right, down in ((r * scale, d * scale) for r, d in sizes):
            axes[-1].append(figure.add_axes((left / WIDTH, (top - down) / height, right / WIDTH, down / height)))
            left += right + _GAP
    return figure, axes


def _draw(axis: Axes, scene: CutScene, state: SceneState, plane: tuple[str, int, int, int], centre: Triple) -> None:
    name, right, down, across = plane
    cut = tuple(centre[across] if k == across else slice(None) for k in range(3))
    size = scene.resolution[right], scene.resolution[down]
    pixels = _colours(state.kinds[cut], state.labels[cut])
    extent = np.multiply(state.kinds[cut].shape, size)
    axis.imshow(
        np.swapaxes(pixels, 0, 1),
        extent=(0, float(extent[0]), float(extent[1]), 0),
        interpolation="nearest",
        aspect="equal",
    )
    for at, line in ((right, axis.axvline), (down, axis.axhline)):
        line((centre[at] + 0.5) * scene.resolution[at], color="white", alpha=0.35, linewidth=0.6, linestyle=(0, (4, 4)))
    for points, kind in ((scene.sources, Kind.SOURCE), (scene.sinks, Kind.SINK)):
        _points(axis, scene, points, kind, (right, down, across), centre)
    axis.set_xlim(0, float(extent[0]))
    axis.set_ylim(float(extent[1]), 0)
    axis.set_title(f"{state.name}, {name}", color=INK, fontsize=10, loc="left")
    axis.axis("off")
    scale_bar(axis, extent)


_MARKERS = {Kind.SOURCE: "o", Kind.SINK: "D"}


def _points(
    axis: Axes, scene: CutScene, points: IntArray, kind: Kind, axes: tuple[int, int, int], centre: Triple
) -> None:
    right, down, across = axes
    relative = points - scene.box.start
    relative = relative[((relative >= 0) & (relative < scene.box.shape)).all(axis=1)]
    near = np.abs(relative[:, across] - centre[across]) <= NEAR_VOXELS
    for chosen, fill in ((~near, "none"), (near, _COLOURS[kind])):
        there = (relative[chosen] + 0.5) * np.asarray(scene.resolution)
        axis.plot(
            there[:, right],
            there[:, down],
            _MARKERS[kind],
            markersize=7,
            markerfacecolor=fill,
            markeredgecolor="black" if fill != "none" else _COLOURS[kind],
            markeredgewidth=1.2,
            linestyle="none",
            path_effects=[patheffects.withStroke(linewidth=3, foreground="white" if fill != "none" else "black")],
        )


def _colours(kinds: Kinds, labels: UInt64Array) -> npt.NDArray[np.uint8]:
    """RGB pixels of an enlarged slice: kinds in their colours, other objects in greys, borders dark."""
    factor = max(1, 480 // max(kinds.shape))
    kinds, labels = (np.repeat(np.repeat(a, factor, axis=0), factor, axis=1) for a in (kinds, labels))
    spread = ((labels * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48)).astype(np.float32) / 0xFFFF
    rgb = np.repeat((_GREYS[0] + (_GREYS[1] - _GREYS[0]) * spread)[..., None], 3, axis=-1)
    for kind, colour in _COLOURS.items():
        rgb[kinds == kind] = mpl.colors.to_rgb(colour)
    # The shades of supervoxels differ a little, which shows where the graph could cut without splitting supervoxels.
    rgb[kinds >= Kind.OBJECT] *= (0.86 + 0.14 * spread[kinds >= Kind.OBJECT])[:, None]
    rgb[_borders(labels)] *= 0.62
    rgb[_borders(kinds)] *= 0.25
    rgb[kinds == Kind.BACKGROUND] = (0.07, 0.07, 0.08)
    return np.asarray(rgb * 255, np.uint8)


def _borders(values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    edge = np.zeros(values.shape, np.bool_)
    edge[:-1] |= values[:-1] != values[1:]
    edge[:, :-1] |= values[:, :-1] != values[:, 1:]
    return edge


def _legend(scene: CutScene) -> list[Patch | Line2D]:
    used = {int(kind) for state in (scene.before, scene.after) for kind in fastremap.unique(state.kinds)}
    names = {Kind.SOURCE: "source side", Kind.SINK: "sink side", Kind.OBJECT: "object"}
    grey = str(sum(_GREYS) / 2)
    shown: list[Patch | Line2D] = [Patch(color=_COLOURS[k], label=name) for k, name in names.items() if k in used]
    if Kind.OTHER in used:
        shown.append(Patch(facecolor=grey, edgecolor="#777777", label="other objects"))
    for points, kind, name in ((scene.sources, Kind.SOURCE, "source"), (scene.sinks, Kind.SINK, "sink")):
        if len(points):
            label = f"{name} points (filled: in the slice)" if kind is Kind.SOURCE else f"{name} points"
            shown.append(
                Line2D([], [], marker=_MARKERS[kind], color=_COLOURS[kind], linestyle="none", markersize=7, label=label)
            )
    return shown
