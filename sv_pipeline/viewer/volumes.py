"""Pyramids served to neuroglancer by its own Python server, chunk by chunk as a browser asks for them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
from neuroglancer.chunks import encode_npz
from neuroglancer.coordinate_space import CoordinateSpace
from neuroglancer.downsample import downsample_with_averaging
from neuroglancer.local_volume import InvalidObjectIdForMesh, LocalVolume

from sv_pipeline.grid import Box
from sv_pipeline.storage.wall import our_error
from sv_pipeline.viewer.meshes import ObjectMeshes
from sv_pipeline.viewer.pyramids import Pyramid, Triple

__all__ = ["ServedVolume", "dimensions_of"]

_logger = logging.getLogger(__name__)

BEYOND_COARSEST = 64
"""How much coarser than the coarsest mip a view may be: a chunk then reads so many voxels per voxel that it shows."""


def dimensions_of(resolution: tuple[float, float, float]) -> CoordinateSpace:
    """Return neuroglancer's coordinate space of voxels (x, y, z) of a resolution in nanometres."""
    return CoordinateSpace(names=["x", "y", "z"], units="nm", scales=list(resolution))


class ServedVolume(LocalVolume):  # type: ignore[misc]
    """A pyramid as a data source of neuroglancer.

    Neuroglancer's own class downsamples mip 0 for each view, however far; this one reads the mips that are stored.
    """

    def __init__(self, pyramid: Pyramid, volume_type: str, meshes: ObjectMeshes | None = None) -> None:
        self.pyramid, self._meshes = pyramid, meshes
        # Neuroglancer takes shape and type from an array; this one occupies no memory, and is never read.
        shaped = np.broadcast_to(np.zeros(1, pyramid.dtype), pyramid.bounds.shape)
        super().__init__(
            shaped,
            dimensions_of(pyramid.resolution),
            volume_type=volume_type,
            voxel_offset=pyramid.bounds.start,
            max_downsampling=pyramid.coarsest * BEYOND_COARSEST,
        )

    def get_encoded_subvolume(
        self, data_format: str, start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], scale_key: str
    ) -> tuple[bytes, str]:
        """Return a chunk as neuroglancer's client asks for it; it calls this in a thread.

        Raises
        ------
        ValueError
            If the request is not valid, or the voxels cannot be read. The client shows the message.
        """
        factor = _factor(scale_key)
        shape = -(-np.asarray(self.pyramid.bounds.shape) // np.asarray(factor))
        within = len(start) == len(end) == 3 and (start >= 0).all() and (end > start).all() and (end <= shape).all()
        if data_format != "npz" or not within or np.prod(factor) > self.max_downsampling:
            raise ValueError("this chunk is not part of the volume.")
        try:
            voxels = self._read(Box.of(start, end), factor)
        except Exception as error:
            ours = our_error(error)
            if ours is None:
                _logger.exception("a chunk could not be read")
                raise
            _logger.warning("a chunk could not be read: %s", ours)
            raise ValueError(str(ours).replace("\n", " ")) from error
        return encode_npz(voxels), "application/octet-stream"

    def _read(self, box: Box, factor: Triple) -> npt.NDArray[Any]:
        if self.volume_type != "image":
            return self.pyramid.read(box, factor)
        stored = self.pyramid.mip_for(factor).factor
        step = np.asarray(factor) // np.asarray(stored)
        shape = -(-np.asarray(self.pyramid.bounds.shape) // np.asarray(stored))
        stop = np.minimum(np.asarray(box.stop) * step, shape)
        fine = self.pyramid.read(Box.of(np.asarray(box.start) * step, stop), stored)
        return np.asarray(downsample_with_averaging(fine, step) if (step > 1).any() else fine)

    def get_object_mesh(self, object_id: int) -> bytes:
        """Return the surface of an object as neuroglancer's client reads it, in metres from the first voxel.

        Neuroglancer's own class would read the whole volume for it.
        """
        try:
            surface = None if self._meshes is None else self._meshes.surface(object_id)
        except Exception as error:
            ours = our_error(error)
            _logger.warning("a surface could not be made: %s", ours or error, exc_info=ours is None)
            raise InvalidObjectIdForMesh from error
        if surface is None:
            raise InvalidObjectIdForMesh
        positions = (surface.vertices * self.dimensions.scales).astype("<f4")
        return b"".join(
            (np.uint32(len(positions)).tobytes(), positions.tobytes(), surface.triangles.astype("<u4").tobytes())
        )


def _factor(scale_key: str) -> Triple:
    parts = scale_key.split(",")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) < 10 and int(part) > 0 for part in parts):
        raise ValueError("this chunk has no resolution of the volume.")
    x, y, z = map(int, parts)
    return x, y, z
