"""Owns the base: one OCDBT store per watershed with all mips of its volume, and the record of how it was made.

The record ``ocdbt/base/base.json`` is written first and by one creator only; whoever comes later reads it. So the
format of a base is decided once, and another configuration is refused with the names of the fields that differ.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sv_pipeline.config import OcdbtConfig
from sv_pipeline.errors import ConfigError, ConflictError, DamagedError, NotFoundError, NotReadyError
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.segmentation.base import markers
from sv_pipeline.segmentation.base.given_mips import usable_given_mips
from sv_pipeline.segmentation.base.layout import plan_scales
from sv_pipeline.segmentation.base.markers import POPULATED_FOLDER
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.context import is_of_another_database, reset_context
from sv_pipeline.storage.file_guard import commit_guard
from sv_pipeline.storage.precomputed import VolumeInfo, info_json, parse_info, read_info
from sv_pipeline.storage.retry import retry_transport

__all__ = [
    "FORKS",
    "BaseInfo",
    "create_base",
    "list_forks",
    "read_base",
    "require_complete",
    "wipe_base",
    "write_volume_info",
]

FORKS = ".forks/"
"""Below ``ocdbt/``: one record per fork, because folders cannot be listed without listing all that is in them."""
RECORD = "base.json"
INFO = "info"
RECORD_VERSION = 2
"""1: the volume was at ``seg/`` in the key space, and data of forks at ``<graph id>/d/``."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseInfo:
    """What a base is."""

    watershed_url: str
    form: ocdbt.OcdbtFormat
    volume: VolumeInfo
    """Its mips; storage chunks may be smaller than the source's, where the task boxes ask for it."""
    source_mips: int
    """Mips that are copied from the source; the coarser ones are made from the last of these."""
    storage_chunk_size: tuple[int, int, int] | None
    """What the configuration asked for."""
    remade: str | None = None
    """Why mips that the source has were made anew; None if they were not."""

    @property
    def n_mips(self) -> int:
        """Number of mips."""
        return len(self.volume.scales)


def create_base(watershed_url: str | Path, config: OcdbtConfig, grid: ChunkGrid | None = None) -> BaseInfo:
    """Make the base of a watershed, empty, unless it exists.

    Parameters
    ----------
    watershed_url
        Folder of the source volume.
    config
        The format, the number of mips, the storage chunks.
    grid
        Chunks of the graph: storage chunks are chosen so that populate tasks do not share any. Without it they stay
        as they are in the source.

    Raises
    ------
    ConfigError
        If the base exists with another configuration; names the fields.
    InputError
        If the source volume cannot be used.
    """
    url = kv.as_url(watershed_url)
    folder = ocdbt.base_folder(url)
    existing = kv.read_bytes(folder, RECORD)
    if existing is None:
        _refuse_a_stranger(folder)
        source = read_info(url)
        usable, remade = usable_given_mips(url, config.mips)
        volume = VolumeInfo("uint64", plan_scales(source, config, grid, usable=usable))
        info = BaseInfo(
            watershed_url=url,
            form=ocdbt.OcdbtFormat.of(config),
            volume=volume,
            source_mips=min(usable, len(volume.scales)),
            storage_chunk_size=config.storage_chunk_size,
            remade=remade,
        )
        if kv.write_if_absent(folder, RECORD, _encode(info)):
            _logger.info("creating the base of %s with %d mips", url, info.n_mips)
    info = read_base(url)
    _refuse_another_config(info, config)
    _create_store(info)
    return info


def read_base(watershed_url: str | Path) -> BaseInfo:
    """The record of an existing base.

    Raises
    ------
    NotFoundError
        If there is no base.
    """
    url = kv.as_url(watershed_url)
    raw = kv.read_bytes(ocdbt.base_folder(url), RECORD)
    if raw is None:
        raise NotFoundError(f"there is no base at {ocdbt.base_folder(url)}.", remedy="Create it first.")
    try:
        record = json.loads(raw)
        if record["record_version"] == 1:
            raise _first_version(url)
        return _decode(url, record)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{ocdbt.base_folder(url)}{RECORD} cannot be read: {error!r}.",
            remedy="It was written by another version; wipe the base and create it again.",
        ) from error


def _encode(info: BaseInfo) -> bytes:
    record: dict[str, Any] = {
        "record_version": RECORD_VERSION,
        "ocdbt": info.form.to_json(),
        "source_mips": info.source_mips,
        "storage_chunk_size": info.storage_chunk_size,
        "info": info_json(info.volume),
        **({} if info.remade is None else {"remade": info.remade}),
    }
    return json.dumps(record, indent=1).encode()


def _first_version(url: str) -> ConfigError:
    folder = ocdbt.ocdbt_folder(url)
    return ConfigError(
        f"the segmentation at {folder} has the layout of the first version of sv_pipeline, which this version, like "
        "PyChunkedGraph, cannot read.",
        remedy=f"There is no conversion: remove the folder {folder}, and build its graphs again under new graph ids "
        "('sv-pipeline ingest').",
    )


def _decode(url: str, record: dict[str, Any]) -> BaseInfo:
    chunk_size = record["storage_chunk_size"]
    return BaseInfo(
        watershed_url=url,
        form=ocdbt.OcdbtFormat(**record["ocdbt"]),
        volume=parse_info(record["info"]),
        source_mips=int(record["source_mips"]),
        storage_chunk_size=None if chunk_size is None else (chunk_size[0], chunk_size[1], chunk_size[2]),
        remade=record.get("remade"),
    )


def _refuse_a_stranger(folder: str) -> None:
    if kv.read_bytes(folder, ocdbt.SINGLE_MANIFEST) is not None:
        raise ConfigError(
            f"{folder} holds an OCDBT database without our record {RECORD}, so its configuration is not ours.",
            remedy="PyChunkedGraph keeps split supervoxels there: if they are to stay, use a copy of the watershed. "
            "If nothing in it is needed, wipe the base (wipe_base removes the files themselves) and create it again.",
        )


def _refuse_another_config(info: BaseInfo, config: OcdbtConfig) -> None:
    wanted = ocdbt.OcdbtFormat.of(config).to_json()
    pairs = {name: (wanted[name], value) for name, value in info.form.to_json().items()}
    if config.mips is not None:
        pairs["mips"] = (config.mips, info.n_mips)
    pairs["storage_chunk_size"] = (config.storage_chunk_size, info.storage_chunk_size)
    differing = [f"{name} is {have!r}, not {want!r}" for name, (want, have) in pairs.items() if want != have]
    if differing:
        raise ConfigError(
            f"the base at {ocdbt.base_folder(info.watershed_url)} was created with another ocdbt_config: "
            f"{'; '.join(differing)}.",
            remedy="Use the values that it has, or wipe the base and populate it again.",
        )


def _create_store(info: BaseInfo) -> None:
    """Write the volume's info into the database, which creates it; nothing if that has been done."""
    write_volume_info(ocdbt.base_spec(info.watershed_url, form=info.form), info.volume)


def write_volume_info(spec: dict[str, Any], volume: VolumeInfo) -> None:
    """Make an OCDBT key space hold an empty volume."""

    def write() -> None:
        store = ocdbt.OcdbtStore(spec)
        found = store.kv.read(INFO).result()
        if found.state == "missing":
            content = json.dumps(info_json(volume)).encode()
            with commit_guard(store.folder):
                store.kv.write(INFO, content, if_equal=found.stamp.generation).result()

    what = f"creating the database at {spec['base']}"
    try:
        retry_transport(write, what=what)
    except DamagedError as error:
        if not is_of_another_database(error):
            raise
        raise ConfigError(
            f"the database at {spec['base']} does not have the configuration in its record: {error}.",
            remedy="Wipe the base and create it again.",
        ) from error


def require_complete(watershed_url: str | Path) -> None:
    """Raise NotReadyError, saying what to run, unless the populate of the base is complete."""
    if markers.read_complete(watershed_url) is not None:
        return
    read_base(watershed_url)
    meta = markers.read_meta(watershed_url)
    url = kv.as_url(watershed_url)
    if meta is None:
        raise NotReadyError(f"the base of {url} has not been populated.", remedy="Run the populate first.")
    n_tasks = meta.grid.count(meta.layer)
    n_missing = n_tasks - len(markers.done_tasks(url))
    if n_missing:
        raise NotReadyError(
            f"the populate of the base of {url} is not complete: {n_missing} of {n_tasks} tasks (layer {meta.layer}) "
            "are missing.",
            remedy="Run the missing populate tasks, then finish the populate (finish_populate).",
        )
    raise NotReadyError(
        f"all {n_tasks} populate tasks of the base of {url} are done, but the populate is not finished.",
        remedy="Finish the populate (finish_populate).",
    )


def list_forks(watershed_url: str | Path) -> list[str]:
    """Ids of the graphs that have a fork."""
    folder = ocdbt.ocdbt_folder(watershed_url)
    ids = [key.removeprefix(FORKS) for key in kv.list_keys(folder, FORKS)]
    manifests = kv.read_many(folder, [f"{graph_id}/{ocdbt.SINGLE_MANIFEST}" for graph_id in ids])
    return [graph_id for graph_id, manifest in zip(ids, manifests, strict=True) if manifest is not None]


def wipe_base(watershed_url: str | Path, *, force: bool = False) -> None:
    """Remove the base and the done-markers of its populate, through the underlying file or bucket driver.

    (Deleting through the OCDBT driver would leave every file, and the old configuration, in place.)

    Danger: all forks read from the base. With ``force`` it is removed although there are forks; they are lost.

    Raises
    ------
    ConflictError
        If there are forks and ``force`` is not set.
    """
    url = kv.as_url(watershed_url)
    forks = list_forks(url)
    if forks and not force:
        raise ConflictError(
            f"the base of {url} is in use by the forks {', '.join(forks)}, which would be lost.",
            remedy="Remove the forks first, or use force.",
        )
    # Markers first: a crash in between must not leave markers of voxels that are gone.
    kv.delete_prefix(ocdbt.ocdbt_folder(url), POPULATED_FOLDER + "/")
    kv.delete_prefix(ocdbt.base_folder(url))
    reset_context()
