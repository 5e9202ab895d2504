"""Pictures of label volumes as PNG bytes: coloured slices with thin borders and a scale bar. Does no I/O."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

mpl.use("Agg")  # workers have no screen
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sv_pipeline.reports.colours import Colours, colours_of
from sv_pipeline.reports.sizes import PUBLISHED_WIDTH

__all__ = [
    "INK",
    "PAPER",
    "Panel",
    "Sheet",
    "Size",
    "borders",
    "render",
    "render_rows",
    "resized",
    "scale_bar",
    "scale_bar_length",
    "show",
]

Scalar = TypeVar("Scalar", bound=np.generic)
LabelArray = npt.NDArray[np.unsignedinteger]
Extent = tuple[float, float]
"""Width and height in nm."""
Size = tuple[int, int]
"""Width and height in pixels."""

INK = "#e8e8ea"
PAPER = "#16161a"

SHEET_WIDTH, GAP, MARGIN = 10.9, 0.15, 0.12
"""Sizes in inches: width of a sheet, gap between slices, margin below the last row."""
ROW_TITLE, ROW_NAME = 0.3, 0.2
"""Space in inches above each slice for its title, and left of each row for its name."""
HIGHEST, HIGHEST_ALONE = 6.0, 7.0
"""Maximum height of a slice in inches, if there are several rows and if there is one."""


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

    @property
    def extent(self) -> Extent:
        """Width and height in nm."""
        width, height = np.multiply(self.labels.shape, self.pixel_size_nm).tolist()
        return width, height


def render(panels: Sequence[Panel], *, title: str = "", width: int = PUBLISHED_WIDTH) -> bytes:
    """Draw a row of slices with titles and scale bars, all at one scale, as PNG of a width in pixels."""
    return _render([list(panels)], [""], title, width)


def render_rows(rows: Mapping[str, Sequence[Panel]], *, title: str = "", width: int = PUBLISHED_WIDTH) -> bytes:
    """Draw rows of slices of the same fields, for example at several times, with a name to the left of each, as PNG."""
    return _render([list(panels) for panels in rows.values()], list(rows), title, width)


def _render(rows: list[list[Panel]], names: list[str], title: str, width: int) -> bytes:
    extents = [panel.extent for panel in rows[0]]
    left = ROW_NAME if any(names) else 0.0
    sheet = Sheet.of(extents, len(rows), width, head=0.34 if title else 0.05, left=left)
    bar = scale_bar_length(extents)
    colours = iter(colours_of([np.asarray(panel.labels, np.uint64) for panels in rows for panel in panels]))
    for name, axes, panels in zip(names, sheet.rows, rows, strict=True):
        for axis, panel, size in zip(axes, panels, sheet.sizes, strict=True):
            _draw(axis, panel, next(colours), size, bar)
        axes[0].text(-0.02, 0.5, name, color=INK, rotation=90, ha="right", va="center", transform=axes[0].transAxes)
    if title:
        sheet.text(0.1, title, fontsize=13)
    return sheet.png()


def _draw(axis: Axes, panel: Panel, colours: Colours, size: Size, bar: float) -> None:
    pixels, labels = resized(colours, size), resized(panel.labels, size)
    pixels[borders(labels) & (labels != 0)] *= 0.4
    show(axis, pixels, panel.extent)
    axis.set_title(panel.title, color=INK, fontsize=10, loc="left")
    scale_bar(axis, panel.extent, bar)


# -- sheets -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sheet:
    """A figure with rows of axes, all at one scale."""

    figure: Figure
    width: int
    """Width in pixels."""
    rows: list[list[Axes]]
    sizes: list[Size]
    """Width and height in pixels of each slice of a row."""

    @classmethod
    def of(cls, extents: Sequence[Extent], n_rows: int, width: int, *, head: float, left: float = 0.0) -> Sheet:
        """Make a sheet.

        Parameters
        ----------
        extents
            Size of each slice of a row in nm; all rows are the same.
        n_rows
            Number of rows.
        width
            Width in pixels.
        head
            Space above the first row, in inches.
        left
            Space to the left of the rows, in inches.
        """
        tallest = max(max(down, 1e-9) for _, down in extents)
        room = SHEET_WIDTH - left - (len(extents) + 1) * GAP
        scale = min(
            room / sum(max(right, 1e-9) for right, _ in extents), (HIGHEST if n_rows > 1 else HIGHEST_ALONE) / tallest
        )
        row = tallest * scale + ROW_TITLE
        height = head + n_rows * row + MARGIN
        figure = plt.figure(figsize=(SHEET_WIDTH, height), facecolor=PAPER)
        rows: list[list[Axes]] = []
        for number in range(n_rows):
            at, top = left + GAP, height - head - number * row - ROW_TITLE
            rows.append([])
            for right, down in ((r * scale, d * scale) for r, d in extents):
                place = (at / SHEET_WIDTH, (top - down) / height, right / SHEET_WIDTH, down / height)
                rows[-1].append(figure.add_axes(place))
                at += right + GAP
        dots = width / SHEET_WIDTH * scale
        sizes = [(max(round(right * dots), 1), max(round(down * dots), 1)) for right, down in extents]
        return cls(figure, width, rows, sizes)

    def png(self) -> bytes:
        """Return the sheet as PNG, and close the figure."""
        buffer = io.BytesIO()
        dots_per_inch = (self.width + 0.01) / SHEET_WIDTH  # rounding must not lose a pixel
        self.figure.savefig(buffer, format="png", dpi=dots_per_inch, facecolor=PAPER)
        plt.close(self.figure)
        return buffer.getvalue()

    def text(self, below_top: float, text: str, *, fontsize: float, alpha: float = 1.0) -> None:
        """Write a text at the left, so many inches below the upper edge."""
        at = 1 - below_top / self.figure.get_figheight()
        self.figure.text(GAP / SHEET_WIDTH, at, text, color=INK, alpha=alpha, fontsize=fontsize, va="top")


def show(axis: Axes, pixels: npt.NDArray[np.float64], extent: Extent) -> None:
    """Show RGB pixels, axes (right, down, colour), on an axis in nm."""
    axis.imshow(
        np.swapaxes(np.asarray(pixels * 255, np.uint8), 0, 1),
        extent=(0, extent[0], extent[1], 0),
        interpolation="nearest",
        aspect="equal",
    )
    axis.set_xlim(0, extent[0])
    axis.set_ylim(extent[1], 0)
    axis.axis("off")


def resized(pixels: npt.NDArray[Scalar], size: Size) -> npt.NDArray[Scalar]:
    """Return an image in another size, without mixing pixels; borders drawn in it are as thin as its pixels."""
    x, y = (np.arange(new) * old // new for new, old in zip(size, pixels.shape[:2], strict=True))
    result: npt.NDArray[Scalar] = pixels[x[:, None], y[None]]
    return result


def borders(values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Return the pixels whose right or lower neighbour has another value."""
    edge = np.zeros(values.shape, np.bool_)
    edge[:-1] |= values[:-1] != values[1:]
    edge[:, :-1] |= values[:, :-1] != values[:, 1:]
    return edge


def scale_bar_length(extents: Sequence[Extent]) -> float:
    """Return a round length in nm, about a quarter of the width of the narrowest slice."""
    target = max(min(right for right, _ in extents) / 4, 1.0)
    power = 10 ** np.floor(np.log10(target))
    return float(max(step * power for step in (1, 2, 5) if step * power <= target))


def scale_bar(axis: Axes, extent: Extent, length: float) -> None:
    """Draw a scale bar of a length in nm at the lower left of a slice."""
    x, y = 0.04 * extent[0], 0.955 * extent[1]
    outline = [patheffects.withStroke(linewidth=2, foreground=PAPER)]
    bar = [patheffects.withStroke(linewidth=5, foreground=PAPER)]
    axis.plot([x, x + length], [y, y], color="white", linewidth=3, solid_capstyle="butt", path_effects=bar)
    text = f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"
    axis.text(x, y - 0.02 * extent[1], text, color="white", fontsize=8, va="bottom", path_effects=outline)
