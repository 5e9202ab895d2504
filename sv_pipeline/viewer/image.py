"""The image of a dataset as a volume with mips. Reads only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.errors import SvPipelineError
from sv_pipeline.grid import Box
from sv_pipeline.ingest.watershed.source import open_source
from sv_pipeline.registry import Dataset
from sv_pipeline.storage.context import process_context
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.storage.stored_scale import StoredScale
from sv_pipeline.viewer.pyramids import Pyramid, PyramidMip, factor_between

__all__ = ["image_of"]

_logger = logging.getLogger(__name__)

SHOWN_TYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32")
"""Types of voxels that neuroglancer shows as an image; others are converted to float32."""


def image_of(dataset: Dataset) -> Pyramid | None:
    """Open the image of a dataset; None if its configuration names none.

    The image is taken to start at the voxel, and to have the voxel size, that its format states. Where it states no
    voxel size, that of the segmentation is used.

    Raises
    ------
    InputError
        If the image cannot be opened.
    """
    if dataset.config.image is None:
        return None
    source = open_source(dataset.config.image, labels=False)
    resolution = source.resolution or dataset.volume.scales[0].resolution
    dtype = source.dtype if source.dtype.name in SHOWN_TYPES else np.dtype(np.float32)
    mips = [PyramidMip((1, 1, 1), source.bounds, lambda box: source.read(box).astype(dtype, copy=False))]
    if source.stored is not None and source.stored.mip == 0:
        mips += _coarser(source.stored, dtype)
    return Pyramid(tuple(mips), resolution, dtype)


def _coarser(stored: StoredScale, dtype: np.dtype[Any]) -> Iterator[PyramidMip]:
    """Yield the coarser mips of a precomputed volume, as far as TensorStore can open them."""
    scales = stored.raw["scales"]
    for mip in range(1, len(scales)):
        try:
            opened = _open(stored.url, mip)
        except (SvPipelineError, ValueError, OSError) as error:
            _logger.warning("mip %d of the image is not used: %s", mip, error)
            return
        factor = factor_between(tuple(scales[0]["resolution"]), tuple(scales[mip]["resolution"]))
        yield PyramidMip(
            factor, Box.of(opened.domain.inclusive_min, opened.domain.exclusive_max), _reader(opened, dtype)
        )


def _open(url: str, mip: int) -> ts.TensorStore:
    spec = {"driver": "neuroglancer_precomputed", "kvstore": url, "scale_index": mip}
    return retry_transport(
        lambda: ts.open(spec, context=process_context(), open=True, create=False, read=True).result()[..., 0],
        what=f"opening mip {mip} of {url}",
    )


def _reader(opened: ts.TensorStore, dtype: np.dtype[Any]) -> Callable[[Box], npt.NDArray[Any]]:
    return lambda box: np.asarray(opened[box.slices].read(order="F").result()).astype(dtype, copy=False)
