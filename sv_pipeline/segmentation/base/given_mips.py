"""Decides which coarser mips of a watershed may be copied into its base, and which have to be made again.

A fork updates its coarser mips on a grid that starts at the first voxel of the volume. A mip with another layout, one
that was never written, or one that belongs to other labels would continue to show ids that edits have retired.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.pyramid import holds_labels_of_blocks
from sv_pipeline.grid import Box
from sv_pipeline.segmentation.base.layout import usable_mips
from sv_pipeline.storage.coverage import coverage
from sv_pipeline.storage.precomputed import open_volume, read_info, stored_scale
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.storage.volume_info import VolumeInfo

__all__ = ["usable_given_mips"]

PROBES = 27
PROBE_VOXELS = 1 << 19
"""Approximate number of voxels of mip 0 that one probe reads."""

_logger = logging.getLogger(__name__)


def usable_given_mips(watershed_url: str | Path, at_most: int | None = None) -> tuple[int, str | None]:
    """Return the number of mips that may be copied, including mip 0, and why the next one may not.

    The info file is checked first (`layout.usable_mips`). Then all chunks of a mip must exist, and at some places each
    voxel must have the label of one of the voxels of mip 0 that it covers.

    Parameters
    ----------
    at_most
        Largest number of mips to check.
    """
    volume = read_info(watershed_url)
    usable, reason = usable_mips(volume)
    limit = min(len(volume.scales), at_most or len(volume.scales))
    for mip in range(1, limit):
        fault = reason if mip == usable else _fault(watershed_url, volume, mip)
        if fault:
            text = f"mip {mip} of the watershed ({volume.scales[mip].key}) is not used: {fault}"
            _logger.warning("%s; it is made again, and so are the coarser ones", text)
            return mip, text
    return limit, None


def _fault(url: str | Path, volume: VolumeInfo, mip: int) -> str | None:
    found = coverage(stored_scale(url, mip))
    if found.missing:
        return f"{found.text}, first {found.example}"
    fine, coarse = open_volume(url), open_volume(url, mip)
    factor = volume.factors(mip)
    for box, below in _probes(volume, mip):
        stored, labels = retry_transport(
            lambda box=box, below=below: (  # type: ignore[misc]
                coarse[box.slices].read(order="F").result(),
                fine[below.slices].read(order="F").result(),
            ),
            what=f"comparing mip {mip} of {url} with mip 0",
        )
        strange = ~holds_labels_of_blocks(stored, labels, factor)
        if strange.any():
            voxel = tuple((np.argwhere(strange)[0] + box.start).tolist())
            return f"voxel {voxel} shows a label that none of the voxels has which it covers in mip 0"
    return None


def _probes(volume: VolumeInfo, mip: int) -> Iterator[tuple[Box, Box]]:
    """Yield boxes of a mip at its corners, centre, and middles of faces and edges, each with its box of mip 0."""
    scale, factor = volume.scales[mip], np.asarray(volume.factors(mip))
    edge = max(1, round((PROBE_VOXELS / float(np.prod(factor))) ** (1 / 3)))
    shape = np.minimum(scale.size, edge)
    room: npt.NDArray[np.int64] = np.asarray(scale.size) - shape
    places = np.stack(np.meshgrid(*[[0, r // 2, r] for r in room.tolist()], indexing="ij"), axis=-1).reshape(-1, 3)
    for start in np.unique(places, axis=0)[:PROBES]:
        below = Box.of(start * factor, (start + shape) * factor).shifted(volume.bounds.start).clip(volume.bounds)
        yield Box.of(start, start + shape).shifted(scale.voxel_offset), below
