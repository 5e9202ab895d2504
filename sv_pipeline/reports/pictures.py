"""Pictures of label volumes as PNG bytes: coloured slices with thin borders and a scale bar. Does no I/O."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

mpl.use("Agg")  # workers have no screen
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["INK", "PAPER", "Panel", "colorize", "enlarged", "png", "render", "render_rows", "scale_bar"]

LabelArray = npt.NDArray[np.unsignedinteger]
MAX_WIDTH = 1150
"""Maximum width of a picture in pixels, which a dialog of the Dagster UI shows without cutting it off."""
MAX_WIDTH_OF_ROWS = 1000
"""Maximum width of a picture with several rows, in pixels, so that a smaller screen shows all rows at once."""
INK = "#e8e8ea"
PAPER = "#16161a"


@dataclass(frozen=True)
class Panel:
    """One slice to draw.

    Parameters
    ----------
    title
        Text above the slice.
    labels
        Labels, shape (width, height): first axis to the right, second axis downwards; 0 is background.
    pixel_size_nm
        Size of a pixel along both axes, in nanometres.
    """

    title: str
    labels: LabelArray
    pixel_size_nm: tuple[float, float]


def colorize(labels: LabelArray, *, borders: bool = True) -> npt.NDArray[np.uint8]:
    """Return the RGB colours of labels, shape (..., 3): always the same for an id, well spread, with darker borders."""
    ids = np.asarray(labels, np.uint64)
    # Fibonacci hashing spreads neighbouring ids over the whole colour circle.
    spread = (ids * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    unit = (spread & np.uint64(0xFFFF)).astype(np.float32) / 0xFFFF
    tone = ((spread >> np.uint64(16)) & np.uint64(0xFF)).astype(np.float32) / 0xFF
    hsv = np.stack([unit, 0.40 + 0.35 * tone, 0.95 - 0.30 * (1 - tone)], axis=-1)
    rgb = mpl.colors.hsv_to_rgb(hsv)
    if borders and ids.ndim == 2:
        edge = np.zeros(ids.shape, bool)
        edge[:-1] |= ids[:-1] != ids[1:]
        edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
        rgb[edge] *= 0.45
    rgb[ids == 0] = (0.09, 0.09, 0.10)
    return np.asarray(rgb * 255, np.uint8)


def render(panels: Sequence[Panel], *, title: str = "", dots_per_inch: int = 110) -> bytes:
    """Draw a row of slices with titles and scale bars, as PNG."""
    return _render([list(panels)], [""], title, dots_per_inch)


def render_rows(rows: Mapping[str, Sequence[Panel]], *, title: str = "", dots_per_inch: int = 110) -> bytes:
    """Draw rows of slices of the same fields, for example at several times, with a name to the left of each, as PNG."""
    return _render([list(panels) for panels in rows.values()], list(rows), title, dots_per_inch)


def _render(rows: list[list[Panel]], names: list[str], title: str, dots_per_inch: int) -> bytes:
    first = [np.multiply(panel.labels.shape, panel.pixel_size_nm) for panel in rows[0]]
    widths = [max(float(e[0]), 1.0) / max(float(e[1]), 1.0) for e in first]
    height = 4.6 if len(rows) == 1 else 3.2
    figure, axes = plt.subplots(
        len(rows),
        len(widths),
        figsize=(height * sum(widths) + 0.3 * len(widths), (height + 0.35) * len(rows) + 0.4),
        gridspec_kw={"width_ratios": widths},
        facecolor=PAPER,
        squeeze=False,
    )
    for name, row, panels in zip(names, axes, rows, strict=True):
        for axis, panel in zip(row, panels, strict=True):
            _draw(axis, panel)
        row[0].text(-0.03, 0.5, name, color=INK, rotation=90, ha="right", va="center", transform=row[0].transAxes)
    if title:
        figure.suptitle(title, color=INK, fontsize=12, x=0.01, ha="left")
    figure.tight_layout()
    width = MAX_WIDTH if len(rows) == 1 else MAX_WIDTH_OF_ROWS
    return png(figure, min(dots_per_inch, width / figure.get_figwidth()))


def _draw(axis: Axes, panel: Panel) -> None:
    extent = np.multiply(panel.labels.shape, panel.pixel_size_nm)
    pixels = colorize(enlarged(panel.labels))
    axis.imshow(
        np.swapaxes(pixels, 0, 1),
        extent=(0, float(extent[0]), float(extent[1]), 0),
        interpolation="nearest",
        aspect="equal",
    )
    axis.set_title(panel.title, color=INK, fontsize=10, loc="left")
    axis.axis("off")
    scale_bar(axis, extent)


def enlarged(labels: LabelArray) -> LabelArray:
    """Repeat each pixel, so that a border one pixel wide stays thin on a coarse mip."""
    factor = max(1, 512 // max(labels.shape))
    return np.repeat(np.repeat(labels, factor, axis=0), factor, axis=1)


def scale_bar(axis: Axes, extent: npt.NDArray[np.float64]) -> None:
    """Draw a scale bar of a round length, about a quarter of the width; ``extent`` is (width, height) in nm."""
    target = max(float(extent[0]) / 4, 1.0)
    power = 10 ** np.floor(np.log10(target))
    length = float(max(step * power for step in (1, 2, 5) if step * power <= target))
    x, y = 0.04 * extent[0], 0.955 * extent[1]
    outline = [patheffects.withStroke(linewidth=2, foreground=PAPER)]
    bar = [patheffects.withStroke(linewidth=5, foreground=PAPER)]
    axis.plot([x, x + length], [y, y], color="white", linewidth=3, solid_capstyle="butt", path_effects=bar)
    text = f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"
    axis.text(x, y - 0.02 * extent[1], text, color="white", fontsize=8, va="bottom", path_effects=outline)


def png(figure: Figure, dots_per_inch: float) -> bytes:
    """Return a figure as PNG, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, facecolor=figure.get_facecolor())
    plt.close(figure)
    return buffer.getvalue()
