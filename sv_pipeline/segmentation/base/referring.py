"""Decides which chunks of a watershed a base may refer to instead of copying them: by mip, and then by chunk.

A base refers to a range of bytes in a file of the watershed. So the codec of the base must be able to read the stored
bytes, and the chunk grids must be equal. Each mip is checked once, when the base is made. Each chunk is checked by its
populate task, and copied if it does not qualify.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sv_pipeline.config import OcdbtConfig, PopulateMethod
from sv_pipeline.errors import ConfigError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.segmentation.base.layout import fits_tasks
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.byte_strings import ByteStrings
from sv_pipeline.storage.chunk_names import ChunkNames
from sv_pipeline.storage.object_listing import StoredObjects, can_look_up, first_objects, look_up
from sv_pipeline.storage.ocdbt_tree import References
from sv_pipeline.storage.shards import find_in_shards
from sv_pipeline.storage.stored_scale import StoredScale
from sv_pipeline.storage.volume_info import Scale

__all__ = [
    "ENCODINGS",
    "MipReferences",
    "SourceObjects",
    "joined",
    "method_cost",
    "mips_to_refer_to",
    "references_of_box",
]

IntArray: TypeAlias = npt.NDArray[np.int64]
Names: TypeAlias = npt.NDArray[np.bytes_]

_logger = logging.getLogger(__name__)

ENCODINGS = ("compressed_segmentation", "raw")
"""Lossless encodings of labels that TensorStore reads."""


@dataclass(frozen=True, eq=False)
class SourceObjects:
    """The objects that a base refers to, as they were when it was populated."""

    names: Names
    """Names relative to the folder of the watershed, ascending, shape (n,)."""
    sizes: IntArray
    """Sizes in bytes, shape (n,)."""
    versions: IntArray
    """Generations in a bucket, or times of modification on disk in ns, shape (n,)."""
    compressed: Names
    """Objects that are there, but compressed as a whole, so that their chunks are copied; shape (m,)."""


@dataclass(frozen=True, eq=False)
class MipReferences:
    """The references of one mip in a box."""

    keys: Names
    """Keys of the chunks in the base, ascending, shape (n,)."""
    files: Names
    """File of each chunk, relative to the base's key space, shape (n,)."""
    offsets: IntArray
    """First byte of each chunk in its file, shape (n,)."""
    lengths: IntArray
    """Length of each chunk in bytes, shape (n,)."""
    others: IntArray
    """Chunks that exist but cannot be referred to, as positions in the chunk grid, shape (m, 3)."""
    objects: SourceObjects
    """The objects that the references lead to."""

    def __len__(self) -> int:
        return len(self.keys)


def mips_to_refer_to(
    mips: Sequence[StoredScale], config: OcdbtConfig, grid: ChunkGrid | None, *, look: bool = True
) -> tuple[int, ...]:
    """Choose the mips of a watershed that a base refers to, and log the decision about each.

    Parameters
    ----------
    mips
        The mips that would be copied otherwise.
    config
        The populate method, the storage chunks and the populate layer.
    grid
        Chunks of the graph; None if populate tasks need not be aligned.
    look
        Whether to look at the objects; a watershed that is not made yet has none.

    Raises
    ------
    ConfigError
        If the method is ``reference`` and a mip does not qualify. The message names the mip, the reason and other
        methods.
    """
    if not config.populate_method.refers:
        return ()
    chosen: list[int] = []
    for stored in mips:
        name = f"mip {stored.mip} ({stored.scale.key}) of {stored.url}"
        reason = _misfit_of_info(stored, config, grid) or (_misfit_of_objects(stored) if look else None)
        if reason is None:
            _logger.info("%s is referred to", name)
            chosen.append(stored.mip)
        elif config.populate_method is PopulateMethod.AUTO:
            _logger.info("%s is copied: %s", name, reason)
        else:
            raise ConfigError(
                f"{name} cannot be referred to: {reason}.",
                remedy="Set ocdbt_config.populate_method to auto, which copies what cannot be referred to, or to "
                "parts, which copies everything.",
            )
    return tuple(chosen)


def _misfit_of_info(stored: StoredScale, config: OcdbtConfig, grid: ChunkGrid | None) -> str | None:
    scale = stored.scale
    if not can_look_up(stored.url):
        return f"{stored.url} is neither a folder nor a gs:// bucket, so it tells no versions of its objects"
    if not stored.folder.startswith(stored.url):
        return f"its chunks are in {stored.folder}, outside of the watershed"
    if stored.volume.data_type != "uint64":
        return f"its labels are {stored.volume.data_type}, those of a base uint64"
    if scale.encoding not in ENCODINGS:
        return f"TensorStore does not read its encoding {scale.encoding}"
    if stored.sharding is not None and stored.sharding.get("data_encoding", "raw") != "raw":
        return f"its shards hold {stored.sharding['data_encoding']}-coded data"
    if config.storage_chunk_size not in (None, scale.chunk_size):
        return f"storage_chunk_size is {config.storage_chunk_size}, its storage chunks are {scale.chunk_size}"
    if grid is not None and not fits_tasks(scale, stored.volume.factors(stored.mip), config, grid):
        return f"populate tasks are no multiples of its storage chunks of {scale.chunk_size} voxels"
    return None


def _misfit_of_objects(stored: StoredScale) -> str | None:
    """Look at the first objects in a listing: if all of them are compressed as a whole, so is the mip."""
    rows = first_objects(stored.folder, suffixes=stored.suffixes)
    if rows and all(compressed for *_, compressed in rows):
        how = f"{', '.join(stored.suffixes)} files" if stored.suffixes else "a content encoding"
        return f"its chunks are compressed as a whole ({how})"
    return None


def references_of_box(stored: StoredScale, scale: Scale, box: Box) -> MipReferences:
    """Look up the chunks of a mip in a box of whole chunks; missing chunks are background, and get no key.

    Parameters
    ----------
    stored
        The mip of the watershed.
    scale
        The mip of the base, which has the same chunk grid.
    box
        The box, in voxels of the mip.
    """
    first = np.subtract(box.start, scale.voxel_offset) // scale.chunk_size
    stop = -(-np.subtract(box.stop, scale.voxel_offset) // scale.chunk_size)
    shape = np.maximum(stop - first, 0)
    cells = np.stack(np.unravel_index(np.arange(int(shape.prod())), tuple(shape)), axis=-1) + first
    chunks = ChunkNames(scale)
    ranks = chunks.ranks(cells)
    order = np.argsort(ranks)
    cells, ranks = cells[order].astype(np.int64), ranks[order]
    names = chunks.names(cells)
    keys = np.strings.add(scale.key.encode() + b"/", names)
    if stored.sharding is not None:
        return _in_shards(stored, scale, keys, cells)
    found = look_up(stored.folder, names, ranks, stored.suffixes)
    files = np.strings.add(_relative(stored), names)
    usable = found.there & _fit_codec(scale, cells, found.sizes)
    return MipReferences(
        keys=keys[usable],
        files=np.strings.add(ocdbt.SOURCE_PREFIX.encode(), files[usable]),
        offsets=np.zeros(int(usable.sum()), np.int64),
        lengths=found.sizes[usable],
        others=cells[found.compressed | (found.there & ~usable)],
        objects=_objects(files, found),
    )


def _fit_codec(scale: Scale, cells: IntArray, lengths: IntArray) -> npt.NDArray[np.bool_]:
    """Whether chunks can be what the codec reads, by their lengths; those that cannot are left to the copy's reader."""
    if scale.encoding != "raw":
        return np.asarray(lengths > 0)
    shapes = np.minimum(scale.chunk_size, np.subtract(scale.size, cells * np.asarray(scale.chunk_size)))
    return np.asarray(lengths == np.dtype(np.uint64).itemsize * shapes.prod(axis=-1))


def _in_shards(stored: StoredScale, scale: Scale, keys: Names, cells: IntArray) -> MipReferences:
    found = find_in_shards(stored, cells)
    there = found.lengths >= 0
    shards, first = np.unique(found.shards[there], return_index=True)
    names = found.files[there][first]
    shard_files = look_up(stored.folder, names, shards)
    # Chunks in a shard that is compressed as a whole cannot be referred to.
    usable = there & np.isin(found.shards, shards[shard_files.there]) & _fit_codec(scale, cells, found.lengths)
    if len(shards):
        sizes = shard_files.sizes[np.minimum(np.searchsorted(shards, found.shards), len(shards) - 1)]
        usable &= found.offsets + found.lengths <= sizes
    relative = _relative(stored)
    return MipReferences(
        keys=keys[usable],
        files=np.strings.add(ocdbt.SOURCE_PREFIX.encode() + relative, found.files[usable]),
        offsets=found.offsets[usable],
        lengths=found.lengths[usable],
        others=cells[there & ~usable],
        objects=_objects(np.strings.add(relative, names), shard_files),
    )


def _objects(names: Names, found: StoredObjects) -> SourceObjects:
    there = found.there
    return SourceObjects(names[there], found.sizes[there], found.versions[there], names[found.compressed])


def _relative(stored: StoredScale) -> bytes:
    """Return the folder of the chunks, relative to the watershed."""
    return stored.scale.key.encode() + b"/"


def joined(found: Sequence[MipReferences]) -> References | None:
    """Join the references of several mips in the order of their keys; None if there are none."""
    parts = sorted((part for part in found if len(part)), key=lambda part: bytes(part.keys[0]))
    if not parts:
        return None
    return References(
        keys=ByteStrings.of(np.concatenate([part.keys for part in parts])),
        files=ByteStrings.of(np.concatenate([part.files for part in parts])),
        offsets=np.concatenate([part.offsets for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
    )


def method_cost(method: PopulateMethod) -> str:
    """Describe the cost of a populate method in one line."""
    copies = "reads and stores all voxels once more"
    return {
        PopulateMethod.PARTS: f"parts: {copies}; PyChunkedGraph's own servers can read the base",
        PopulateMethod.DIRECT: f"direct: {copies}, in one process",
        PopulateMethod.COORDINATOR: f"coordinator: {copies}, through one server",
        PopulateMethod.REFERENCE: "reference: lists the watershed's chunks and stores some bytes for each; makes mips "
        "that are missing. The watershed must not change; PyChunkedGraph's own servers cannot read the base",
        PopulateMethod.AUTO: "auto: as reference where the watershed qualifies, as parts elsewhere",
    }[method]
