"""Colours of the labels in a picture: neighbours never share one, and a label has one colour in all panels. Pure.

Each label prefers the colour that follows from its id, so that it mostly has that colour in every picture. Labels are
given colours one by one, those with most neighbours first; a label whose preferred colour looks like that of a
neighbour gets the next one that does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import fastremap
import matplotlib as mpl
import numpy as np
import numpy.typing as npt

__all__ = ["GREYS", "VIVID", "Palette", "colours_of"]

Colours = npt.NDArray[np.float64]
"""RGB values from 0 to 1, shape (..., 3)."""
Numbers = npt.NDArray[np.int64]

APART = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 0), (0, 2))
"""Offsets in pixels at which two labels are neighbours; a line of background two pixels apart does not part them."""
BACKGROUND = (0.09, 0.09, 0.10)
STRIDE = 7
"""Distance in a palette from one choice to the next; it divides the number of colours of no palette."""
DIMMER = 0.8
"""Brightness of the colours that a palette has when all others are used up by neighbours, relative to these."""


@dataclass(frozen=True, eq=False)
class Palette:
    """A list of colours, of which labels choose by their ids."""

    colours: Colours
    """Colours, shape (n, 3)."""
    unlike: float
    """Distance in OKLab below which two colours look alike; neighbours have no such colours if the palette suffices."""
    by_id: bool = True
    """Whether a label prefers the colour that follows from its id; otherwise all prefer the first."""

    def __len__(self) -> int:
        return len(self.colours)

    def __getitem__(self, numbers: Numbers) -> Colours:
        """Return the colours of numbers of any size: the palette goes on with dimmer colours."""
        rounds, at = np.divmod(numbers, len(self))
        return np.asarray(self.colours[at] * (DIMMER**rounds)[..., None])

    @cached_property
    def distances(self) -> npt.NDArray[np.float64]:
        """Distances of all pairs of colours in OKLab, shape (n, n)."""
        lab = _oklab(self.colours)
        return np.asarray(np.linalg.norm(lab[:, None] - lab[None], axis=-1))

    def choices(self, label: int) -> Numbers:
        """Return the numbers of all colours in the order in which a label prefers them, shape (n,)."""
        # Fibonacci hashing spreads neighbouring ids over the whole palette.
        start = ((label * 0x9E3779B97F4A7C15) % (1 << 64)) >> 40 if self.by_id else 0
        return np.asarray((start + (STRIDE if self.by_id else 1) * np.arange(len(self))) % len(self))


def _vivid() -> Colours:
    hues = np.arange(16) / 16
    tones = [(0.62, 0.95), (0.78, 0.72), (0.32, 0.88), (0.55, 0.52)]
    hsv = [(hue, saturation, value) for saturation, value in tones for hue in hues]
    return np.asarray(mpl.colors.hsv_to_rgb(np.array(hsv)), np.float64)


def _oklab(rgb: Colours) -> Colours:
    """Convert sRGB to OKLab, in which distances are about those that are seen."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(
        linear
        @ np.array(
            [
                [0.41222147, 0.53633254, 0.05144599],
                [0.2119035, 0.6806995, 0.10739696],
                [0.08830246, 0.28171884, 0.6299787],
            ]
        ).T
    )
    return np.asarray(
        cones
        @ np.array(
            [
                [0.21045426, 0.79361779, -0.00407205],
                [1.9779985, -2.4285922, 0.45059371],
                [0.02590404, 0.78277177, -0.80867577],
            ]
        ).T
    )


VIVID = Palette(_vivid(), 0.12)
"""Colours of supervoxels and objects that a picture is about."""
GREYS = Palette(np.linspace(0.14, 0.36, 9)[:, None].repeat(3, axis=1), 0.035)
"""Colours of what surrounds that of which a picture is."""


def colours_of(slices: Sequence[npt.NDArray[np.uint64]], palette: Palette = VIVID) -> list[Colours]:
    """Return the colours of labels in the slices of one picture, so that no two neighbours have the same.

    Parameters
    ----------
    slices
        Labels, each of shape (width, height); 0 = background, nearly black. A label is the same thing in all slices.

    Returns
    -------
    list of ndarray
        RGB values from 0 to 1 of each slice, shape (width, height, 3).
    """
    every = np.concatenate([one.ravel() for one in slices] or [np.zeros(0, np.uint64)])
    ids, places = fastremap.unique(every, return_inverse=True)
    ends = np.cumsum([one.size for one in slices])[:-1]
    indices = [
        part.reshape(one.shape) for part, one in zip(np.split(places.astype(np.int64), ends), slices, strict=True)
    ]
    pairs = _neighbours(indices, len(ids), background=int(np.searchsorted(ids, 0)) if 0 in ids else None)
    colours = palette[_chosen(ids, pairs, palette)]
    colours[ids == 0] = BACKGROUND
    return [colours[index] for index in indices]


def _neighbours(slices: list[Numbers], count: int, background: int | None) -> Numbers:
    """Return all pairs of neighbouring labels, in both orders, shape (n, 2)."""
    packed = []
    for index in slices:
        for x, y in APART:
            one = index[: max(index.shape[0] - x, 0), max(-y, 0) : index.shape[1] - max(y, 0)]
            other = index[x:, max(y, 0) : index.shape[1] + min(y, 0)]
            packed.append(np.unique((one * count + other)[one != other]))
    pairs = np.stack(np.divmod(np.unique(np.concatenate(packed or [np.zeros(0, np.int64)])), max(count, 1)), axis=-1)
    pairs = pairs[(pairs != (-1 if background is None else background)).all(axis=1)]
    return np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)


def _chosen(ids: npt.NDArray[np.uint64], pairs: Numbers, palette: Palette) -> Numbers:
    """Return the number of each label's colour, shape (n,)."""
    begins = np.searchsorted(pairs[:, 0], np.arange(len(ids) + 1))
    numbers = np.full(len(ids), -1, np.int64)
    for at in np.lexsort((ids, -np.diff(begins))):
        taken = numbers[pairs[begins[at] : begins[at + 1], 1]]
        numbers[at] = _choice(palette, int(ids[at]), taken[taken >= 0])
    return numbers


def _choice(palette: Palette, label: int, taken: Numbers) -> int:
    """Return the first colour that looks like none of the neighbours', or else the one that is most unlike them."""
    choices = palette.choices(label)
    if not len(taken):
        return int(choices[0])
    nearest = palette.distances[taken % len(palette)].min(axis=0)[choices]
    unlike = np.flatnonzero(nearest >= palette.unlike)
    if len(unlike):
        return int(choices[unlike[0]])
    best = int(choices[np.argmax(nearest)])
    while best in taken:
        best += len(palette)
    return best
