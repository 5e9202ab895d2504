"""Reads what is known of a base that other software made: its description, from the store itself, and its completeness.

PyChunkedGraph keeps a base that is never edited, with an info file (``ocdbt/.populated/meta.json``), and a fork for
each graph. Its older versions keep one store per watershed, without an info file, and edit it in place.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from sv_pipeline.errors import ConfigError, InputError
from sv_pipeline.grid import Box
from sv_pipeline.json_texts import read_json
from sv_pipeline.segmentation.base import markers
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.chunk_names import ChunkNames
from sv_pipeline.storage.generations import read_manifest
from sv_pipeline.storage.precomputed import VolumeInfo, open_volume, parse_info, read_info
from sv_pipeline.storage.retry import retry_transport

__all__ = ["StoreOfOthers", "first_missing", "read_store", "stranger"]

READS_AT_ONCE = 64


@dataclass(frozen=True)
class StoreOfOthers:
    """A base that other software made."""

    form: ocdbt.OcdbtFormat
    volume: VolumeInfo
    source_mips: int
    """Number of mips with the same bounds as in the watershed."""
    edited_in_place: bool
    """Whether it is the only store of a watershed and edited itself, rather than a base below forks."""


def read_store(watershed_url: str) -> StoreOfOthers | None:
    """Read the store in the place of a watershed's base; None if there is none.

    Raises
    ------
    ConfigError
        If it is not an OCDBT database with a volume at its root.
    """
    folder = ocdbt.base_folder(watershed_url)
    if kv.read_bytes(folder, ocdbt.SINGLE_MANIFEST) is None:
        return None
    config = read_manifest(folder)["config"]
    store = ocdbt.OcdbtStore(ocdbt.base_spec(watershed_url))
    found = retry_transport(lambda: store.kv.read("info").result(), what=f"reading the volume's info in {folder}")
    if found.state != "value":
        raise stranger(folder, "it has no volume at its root")
    try:
        volume = parse_info(read_json(bytes(found.value)))
    except (ValueError, InputError) as error:
        raise stranger(folder, f"its info cannot be read: {error}") from error
    pairs = zip(volume.scales, read_info(watershed_url).scales, strict=False)
    compression = config.get("compression")
    numbered = any(key != ocdbt.SINGLE_MANIFEST for key in kv.list_keys(folder, "manifest."))
    return StoreOfOthers(
        form=ocdbt.OcdbtFormat(
            max_inline_value_bytes=int(config["max_inline_value_bytes"]),
            max_decoded_node_bytes=int(config["max_decoded_node_bytes"]),
            version_tree_arity_log2=int(config["version_tree_arity_log2"]),
            compression_level=None if compression is None else int(compression.get("level", 0)),
            manifest_kind="numbered" if numbered else "single",
        ),
        volume=volume,
        source_mips=sum(1 for _ in itertools.takewhile(lambda pair: pair[0].bounds == pair[1].bounds, pairs)),
        edited_in_place=markers.read_settings(watershed_url) is None,
    )


def stranger(folder: str, why: str) -> ConfigError:
    """Return the error for a database that cannot be the base of a new fork."""
    return ConfigError(
        f"{folder} holds an OCDBT database without our record, which is not ours: {why}.",
        remedy="PyChunkedGraph keeps split supervoxels there: if they are to stay, use a copy of the watershed, or "
        "attach the graph that they belong to. If nothing in it is needed, wipe the base (Base.wipe removes the files "
        "themselves) and create it again.",
    )


def first_missing(watershed_url: str, volume: VolumeInfo) -> Box | None:
    """Return the first storage chunk of mip 0 that a base lacks although the watershed has labels there.

    Returns None if the base is complete. A chunk that is all background is not stored, so the watershed is read where
    a chunk is missing, and only there.
    """
    scale = volume.scales[0]
    store = ocdbt.OcdbtStore(ocdbt.base_spec(watershed_url))
    folder = store.kv / f"{scale.key}/"
    keys = retry_transport(lambda: folder.list().result(), what=f"listing the chunks of {store.folder}")
    chunks = ChunkNames(scale)
    cells = np.indices(chunks.shape).reshape(3, -1).T
    missing = cells[~np.isin(chunks.names(cells), np.array(keys, np.bytes_))]
    starts = missing * np.asarray(scale.chunk_size) + scale.voxel_offset
    boxes = (Box.of(start, start + scale.chunk_size).clip(scale.bounds) for start in starts)
    source = open_volume(watershed_url)
    while some := list(itertools.islice(boxes, READS_AT_ONCE)):
        reads = [source[box.slices].read() for box in some]
        for box, read in zip(some, reads, strict=True):
            if np.any(read.result()):
                return box
    return None
