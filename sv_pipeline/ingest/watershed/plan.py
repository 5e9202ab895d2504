"""The plan of one watershed run: its source, grid and ids, checked before anything is written, and its done-markers.

Owns ``<watershed>/.watershed/``: ``meta.json`` (source and fingerprint of the run), ``labels/x_y_z.npz`` (pass A: the
segment table of a chunk, written last, so it is the done-marker), ``objects.npz`` (label to object, written when all
labels are known) and ``edges/x_y_z.json`` (pass B: counts, written last).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import fastremap
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.supervoxels import label_pieces
from sv_pipeline.config import DatasetConfig, SourceConfig
from sv_pipeline.errors import ConfigError, ConflictError, DamagedError, InputError
from sv_pipeline.graph import edge_files as formats
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline.ingest.watershed.companions import (
    Companions,
    check_labels,
    check_named,
    open_companions,
    open_labels,
    read_affinities,
)
from sv_pipeline.ingest.watershed.source import SourceVolume
from sv_pipeline.ingest.watershed.tables import table_fingerprint
from sv_pipeline.redaction import redacted_value
from sv_pipeline.storage import kv
from sv_pipeline.storage.marker_files import MarkerFiles
from sv_pipeline.storage.precomputed import VolumeInfo, create_volume, plan_volume
from sv_pipeline.storage.stored_json import parse_stored

__all__ = [
    "WatershedPass",
    "WatershedPlan",
    "check_room",
    "done_mask",
    "markers_folder",
    "pending",
    "planned_volume",
    "prepare_watershed",
]

META_KEY = ".watershed/meta.json"
OBJECTS_KEY = ".watershed/objects.npz"
TABLE_VERSION = 1
"""Version of the files that pass A leaves for pass B; it must be raised when their format changes."""
STORAGE_CHUNK = 64
SMALLEST_STORAGE_CHUNK = 16

IntArray = npt.NDArray[np.int64]
Triple = tuple[int, int, int]


class WatershedPass(StrEnum):
    """The two passes over chunks."""

    LABELS = "labels"
    """Pass A makes the supervoxels of each chunk."""
    EDGES = "edges"
    """Pass B makes the edge and component file of each chunk; it needs all of pass A."""


_SUFFIXES = {WatershedPass.LABELS: ".npz", WatershedPass.EDGES: ".json"}


@dataclass(frozen=True)
class WatershedPlan:
    """The plan of one watershed run. It holds plain values, so that it is cheap to send to another process."""

    config: DatasetConfig
    bounds: Box
    resolution: tuple[float, float, float]
    fingerprint: str
    """Hash of the source and of all parts of the configuration that the result depends on."""

    @cached_property
    def grid(self) -> ChunkGrid:
        """The chunk grid of the volume."""
        return ChunkGrid(self.bounds, self.config.graph_config.chunk_size)

    @cached_property
    def layout(self) -> IdLayout:
        """Layout of the ids."""
        return IdLayout(self.grid.n_layers, self.config.graph_config.spatial_bits)

    @property
    def source_config(self) -> SourceConfig:
        """The ``source`` part of the configuration."""
        return _source_config(self.config)

    @property
    def source(self) -> SourceVolume:
        """The segmentation."""
        return open_labels(self.source_config)

    @property
    def companions(self) -> Companions:
        """Agglomeration and affinities."""
        return open_companions(self.source_config, self.bounds)

    @property
    def target(self) -> str:
        """URL of the supervoxel volume."""
        return kv.as_url(self.config.data_source.watershed)

    @property
    def edges_url(self) -> str:
        """URL of the edge files."""
        return kv.as_url(self.config.edges_url)

    @property
    def components_url(self) -> str:
        """URL of the component files."""
        return kv.as_url(self.config.components_url)

    def marker(self, stage: WatershedPass, coordinate: npt.ArrayLike) -> str:
        """Return the key of a chunk's done-marker, relative to the target."""
        name = "_".join(str(int(c)) for c in np.asarray(coordinate))
        return f"{markers_folder(stage)}{name}{_SUFFIXES[stage]}"


def _source_config(config: DatasetConfig) -> SourceConfig:
    if config.source is None:
        raise ConfigError(
            "the configuration has no source from which a watershed volume could be made.",
            remedy="Add source.segmentation, or leave this step out if data_source.WATERSHED exists already.",
        )
    return config.source


def prepare_watershed(config: DatasetConfig, check: Callable[[VolumeInfo], None] | None = None) -> WatershedPlan:
    """Check everything, then create the volume's info. Nothing happens if the same run was prepared before.

    Parameters
    ----------
    check
        Called before anything is written with the volume that will be made; it raises an error to reject the volume.

    Raises
    ------
    ConfigError, InputError
        If the configuration or the source cannot be used; nothing has been written then.
    ConflictError
        If the target holds another dataset.
    """
    source_config = _source_config(config)
    source = open_labels(source_config)
    resolution = _resolution(source)
    companions = open_companions(source_config, source.bounds)
    fingerprint = _fingerprint(config, source, companions)
    plan = WatershedPlan(config, source.bounds, resolution, fingerprint)
    _ = plan.layout
    measures = _measures(config, source)
    if check is not None:
        check(plan_volume(**measures))
    if _is_prepared(plan):
        return plan
    if source.in_memory:
        _check_voxels(plan, source, companions)
    meta = json.dumps(
        {"fingerprint": fingerprint, "source": redacted_value(source_config.model_dump(mode="json"))}, indent=1
    )
    try:
        if not kv.write_if_absent(plan.target, META_KEY, meta.encode()):
            _is_prepared(plan)  # another process was faster, with the same run or with another
        create_volume(plan.target, **measures)
    except (ValueError, OSError, DamagedError) as error:
        raise ConfigError(
            f"cannot write to {plan.target}: {error}", remedy="Check data_source.WATERSHED and its permissions."
        ) from error
    return plan


def planned_volume(config: DatasetConfig) -> VolumeInfo:
    """Return the watershed volume that a configuration with a source will get; writes nothing.

    Raises
    ------
    ConfigError, InputError
        If the source cannot be used.
    """
    return plan_volume(**_measures(config, open_labels(_source_config(config))))


def _measures(config: DatasetConfig, source: SourceVolume) -> dict[str, Any]:
    """Arguments of `plan_volume` for the watershed of a source."""
    return {
        "data_type": "uint64",
        "resolution": _resolution(source),
        "voxel_offset": source.bounds.start,
        "size": source.bounds.shape,
        "chunk_size": _storage_chunk_size(config.graph_config.chunk_size),
    }


def _resolution(source: SourceVolume) -> tuple[float, float, float]:
    if source.resolution is None:
        raise InputError(
            f"{source.name} does not give the size of its voxels.", remedy="Set source.resolution (nm, three numbers)."
        )
    if not min(source.resolution) > 0:
        raise InputError(f"{source.name} has the resolution {source.resolution}; it must be positive.")
    return source.resolution


def markers_folder(stage: WatershedPass | None = None) -> str:
    """Return the key prefix of the done-markers of a pass, relative to the target; default: of all passes."""
    return ".watershed/" + (f"{stage}/" if stage else "")


def done_mask(watershed_url: str, stage: WatershedPass, grid: ChunkGrid) -> npt.NDArray[np.bool_]:
    """Return whether each chunk of layer 2 has the done-marker of a pass, shape (chunks,), by its index."""
    return MarkerFiles(kv.as_url(watershed_url) + markers_folder(stage), grid.shape(2), _SUFFIXES[stage]).look()[0]


def pending(plan: WatershedPlan, stage: WatershedPass) -> IntArray:
    """Return the coordinates of the chunks without a done-marker, shape (n, 3)."""
    index = np.flatnonzero(~done_mask(plan.target, stage, plan.grid))
    return np.stack(np.unravel_index(index, plan.grid.shape(2)), axis=-1).astype(np.int64)


def _fingerprint(config: DatasetConfig, source: SourceVolume, companions: Companions) -> str:
    graph, data = config.graph_config, config.data_source
    parts = [f"tables {TABLE_VERSION}", source.fingerprint, str(source.bounds), str(source.resolution)]
    for volume in (companions.object_volume, companions.affinity_volume):
        parts.append("" if volume is None else volume.fingerprint)
    for table in (companions.object_table, companions.edge_table):
        parts.append("" if table is None else table_fingerprint(table))
    parts += [str(graph.chunk_size), str(graph.spatial_bits), str(data.edges), str(data.components)]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _is_prepared(plan: WatershedPlan) -> bool:
    """Whether the same run was prepared before; raises ConflictError if another dataset is there."""
    meta = kv.read_bytes(plan.target, META_KEY)
    if meta is not None:
        stored = parse_stored(meta, dict[str, Any], plan.target + META_KEY)
        if stored.get("fingerprint") != plan.fingerprint:
            raise ConflictError(
                f"{plan.target} was begun from another source or configuration.",
                remedy="Choose another data_source.WATERSHED, or remove that folder deliberately.",
            )
        return kv.read_bytes(plan.target, "info") is not None
    first = (0, 0, 0)
    places = [
        (plan.target, "info"),
        (plan.edges_url, formats.edges_key(first)),
        (plan.components_url, formats.components_key(first)),
    ]
    for url, key in places:
        if kv.read_bytes(url, key) is not None:
            raise ConflictError(
                f"{url} holds another dataset already ({key}).",
                remedy="Leave out source to use it as it is, or choose another place.",
            )
    return False


def _check_voxels(plan: WatershedPlan, source: SourceVolume, companions: Companions) -> None:
    """Check all voxels of a source in memory. Other sources are checked chunk by chunk, when they are read."""
    found = []
    room = plan.layout.max_segment(1)
    for coordinate in plan.grid.coordinates(2):
        box = plan.grid.box(2, coordinate)
        voxels = source.read(box)
        check_labels(voxels, f"{source.name} ({box})")
        found.append(fastremap.unique(voxels).astype(np.uint64))
        if box.volume > room:
            check_room(len(label_pieces(voxels).labels), room, coordinate)
        if companions.object_volume is not None:
            check_labels(companions.object_volume.read(box), f"{companions.object_volume.name} ({box})")
        if companions.affinity_volume is not None:
            read_affinities(companions.affinity_volume, box)
    labels = np.unique(np.concatenate(found))
    check_named(labels[labels != 0], companions, plan.source_config)


def chunk_details(plan: WatershedPlan, coordinate: npt.ArrayLike) -> dict[str, Any]:
    """Describe a chunk for the dump of its failure: its box, the keys and bytes of its voxels, and the target."""
    box = plan.grid.box(2, coordinate)
    sizes = _storage_chunk_size(plan.grid.chunk_size)
    n_keys = int(np.prod([-(-n // size) for n, size in zip(box.shape, sizes, strict=True)]))
    mip = {"mip": 0, "box": str(box), "shape": box.shape, "storage_chunk": sizes, "n_keys": n_keys}
    return {
        "coordinate": np.asarray(coordinate).tolist(),
        "mips": [{**mip, "raw_bytes": 8 * box.volume, "spec": {"kvstore": plan.target, "scale_index": 0}}],
    }


def check_room(n_pieces: int, room: int, coordinate: npt.ArrayLike) -> None:
    """Raise InputError if a chunk holds more supervoxels than there are ids for them."""
    if n_pieces > room:
        chunk = tuple(np.asarray(coordinate).tolist())
        raise InputError(
            f"chunk {chunk} holds {n_pieces} supervoxels, but there are only {room} ids for them.",
            remedy="Lower CHUNK_SIZE or SPATIAL_BITS.",
        )


def _storage_chunk_size(chunk_size: Triple) -> Triple:
    x, y, z = (_storage_chunk(c) for c in chunk_size)
    return x, y, z


def _storage_chunk(chunk: int) -> int:
    """Largest divisor of a chunk's size along an axis up to 64 or, if that is below 16, the smallest one above 64."""
    divisors = [d for d in range(1, chunk + 1) if chunk % d == 0]
    small = [d for d in divisors if d <= STORAGE_CHUNK]
    return small[-1] if small[-1] >= min(SMALLEST_STORAGE_CHUNK, chunk) else next(d for d in divisors if d > small[-1])
