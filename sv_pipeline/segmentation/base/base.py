"""Owns `Base`: one OCDBT store per watershed with all mips of its volume, and the record of how it was made.

The record ``ocdbt/base/base.json`` is written first, and by one creator only; every later process reads it. So the
format of a base is decided once. If the configuration of a later graph differs, its values are ignored, or refused with
the names of the differing fields.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sv_pipeline.errors import ConfigError, ConflictError, DamagedError, NotFoundError, NotReadyError
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.memory import memory_budget
from sv_pipeline.ocdbt_config import DEFAULT_POPULATE_LAYER, OcdbtConfig
from sv_pipeline.segmentation.base import elsewhere, markers
from sv_pipeline.segmentation.base.given_mips import usable_given_mips
from sv_pipeline.segmentation.base.layout import plan_scales, populate_layer, with_populate_layer
from sv_pipeline.segmentation.base.markers import POPULATED_FOLDER
from sv_pipeline.segmentation.base.referring import mips_to_refer_to
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.context import is_of_another_database, reset_context
from sv_pipeline.storage.file_guard import commit_guard
from sv_pipeline.storage.precomputed import VolumeInfo, info_json, parse_info, read_info, stored_scale
from sv_pipeline.storage.retry import retry_transport

__all__ = ["FORKS", "IN_PLACE", "Base", "BaseInfo", "write_volume_info"]

FORKS = ".forks/"
"""Folder below ``ocdbt/`` with one record per fork: folders cannot be listed without listing all files in them."""
IN_PLACE = b'"place": "base"'
"""Part of a fork's record that says that the graph has no fork of its own: its voxels are the base itself."""
RECORD = "base.json"
INFO = "info"
RECORD_VERSION = 2
"""Version of the record. In version 1, the volume was at ``seg/`` in the key space, and data of forks were at
``<graph id>/d/``."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseInfo:
    """The description of a base, as its record holds it."""

    watershed_url: str
    form: ocdbt.OcdbtFormat
    volume: VolumeInfo
    """The mips. Storage chunks may be smaller than those of the source, where the task boxes require it."""
    source_mips: int
    """Number of mips that are taken from the source; coarser ones are made from the last of these."""
    storage_chunk_size: tuple[int, int, int] | None
    """Storage chunk size (x, y, z) in voxels that the configuration asked for."""
    remade: str | None = None
    """Why mips of the source were not used but made again; None if all were used."""
    made_elsewhere: bool = False
    """Whether other software made and populated the base, so that it has no record of ours."""
    edited_in_place: bool = False
    """Whether other software edits the base in place, so that no fork can start from it."""
    referred: tuple[int, ...] = ()
    """Mips whose chunks are references to the files of the watershed instead of copies."""
    made_at: str | None = None
    """Folder of the watershed when the base was made; it differs after the folder was copied or moved."""

    @property
    def n_mips(self) -> int:
        """Number of mips."""
        return len(self.volume.scales)

    @property
    def refers(self) -> bool:
        """Whether the base refers to files of the watershed, which therefore must not change."""
        return bool(self.referred)

    def spec(
        self, *, creating: bool = False, coordinator: str | None = None, version: ocdbt.Version | None = None
    ) -> dict[str, Any]:
        """Return the key-value spec of the base; with its format if ``creating``. ``coordinator`` is host:port."""
        form, url = self.form if creating else None, self.watershed_url
        return ocdbt.base_spec(url, form=form, coordinator=coordinator, version=version, refers=self.refers)

    def part_spec(self, task: str, attempt: str, *, creating: bool = False) -> dict[str, Any]:
        """Return the key-value spec of the part of one attempt at a populate task; with its format if ``creating``."""
        form = self.form if creating else None
        return ocdbt.part_spec(self.watershed_url, task, attempt, form=form, refers=self.refers)

    def fork_spec(
        self, graph_id: str, version: ocdbt.Version | None = None, *, own: str | None = None
    ) -> dict[str, Any]:
        """Return the key-value spec of a fork of the base; ``own`` is as for `ocdbt.fork_spec`."""
        kind, url = self.form.manifest_kind, self.watershed_url
        return ocdbt.fork_spec(url, graph_id, manifest_kind=kind, version=version, refers=self.refers, own=own)


@dataclass(frozen=True, init=False)
class Base:
    """The base of one watershed: a value that can be sent to other processes. Each method opens the stored data."""

    watershed_url: str
    """Folder of the watershed."""

    def __init__(self, watershed_url: str | Path) -> None:
        object.__setattr__(self, "watershed_url", kv.as_url(watershed_url))

    @property
    def folder(self) -> str:
        """Folder of the base's own files."""
        return ocdbt.base_folder(self.watershed_url)

    def create(self, config: OcdbtConfig, grid: ChunkGrid | None = None, *, memory: int | None = None) -> BaseInfo:
        """Create the empty base, unless it exists.

        Parameters
        ----------
        config
            The format, the number of mips and the storage chunks.
        grid
            Chunks of the graph. Storage chunks are chosen so that populate tasks do not share any. Without a grid they
            are those of the source.
        memory
            Memory of a worker in bytes, which decides on the populate layer if ``config`` does not. Default: that of
            the environment (`memory_budget`).

        Raises
        ------
        ConfigError
            If the base exists with other values of fields that only we have; the message names them. For fields that
            PyChunkedGraph has as well, the base's info file counts instead of the configuration (`effective`).
        InputError
            If the source volume cannot be used.
        """
        url, folder = self.watershed_url, self.folder
        if grid is not None:
            config = with_populate_layer(config, grid, memory_budget() if memory is None else memory)
        if kv.read_bytes(folder, RECORD) is None:
            if (found := elsewhere.read_store(url)) is not None:
                if found.edited_in_place:
                    raise _edited_in_place(folder)
                info = _made_elsewhere(url, found)
                _refuse_another_config(info, config)
                return info
            source = read_info(url)
            usable, remade = usable_given_mips(url, config.mips)
            referred = mips_to_refer_to([stored_scale(url, mip) for mip in range(usable)], config, grid)
            volume = VolumeInfo("uint64", plan_scales(source, config, grid, usable=usable, referred=referred))
            info = BaseInfo(
                watershed_url=url,
                form=ocdbt.OcdbtFormat.of(config),
                volume=volume,
                source_mips=min(usable, len(volume.scales)),
                storage_chunk_size=config.storage_chunk_size,
                remade=remade,
                referred=referred,
                made_at=url,
            )
            if kv.write_if_absent(folder, RECORD, _encode(info)):
                _logger.info("creating the base of %s with %d mips", url, info.n_mips)
        info = self.info()
        _refuse_another_config(info, config)
        exists = kv.read_bytes(folder, ocdbt.SINGLE_MANIFEST) is not None
        # Writing the volume's info creates the database, unless it exists. Only its creator passes the format of the
        # database; later the format is in the manifest.
        write_volume_info(info.spec(creating=not exists), info.volume)
        layer = config.populate_layer or DEFAULT_POPULATE_LAYER
        layer = layer if grid is None else populate_layer(config, grid)
        markers.claim_settings(url, {**config.settings, **_settings(info.form), "populate_layer": layer})
        return info

    def effective(self, config: OcdbtConfig) -> OcdbtConfig:
        """Return the configuration that counts for this watershed: values of the base's info file replace others."""
        return markers.effective_config(self.watershed_url, config)

    def info(self) -> BaseInfo:
        """Read the description of the base from its record, or from the store itself if other software made it.

        Raises
        ------
        NotFoundError
            If there is no base.
        ConfigError
            If the stored data are not a base, or are a base of the first version.
        """
        raw = kv.read_bytes(self.folder, RECORD)
        if raw is None:
            found = elsewhere.read_store(self.watershed_url)
            if found is None:
                raise NotFoundError(f"there is no base at {self.folder}.", remedy="Create it first.")
            return _made_elsewhere(self.watershed_url, found)
        try:
            return _decode(self.watershed_url, raw)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.folder}{RECORD} cannot be read: {error!r}.",
                remedy="Another version wrote it. Remove the base (sv-pipeline retire-base) and create it again.",
            ) from error

    def settings(self) -> dict[str, Any]:
        """Return the values in the base's info file, under PyChunkedGraph's names; empty if there is no file."""
        return self.effective(OcdbtConfig()).settings if markers.read_settings(self.watershed_url) else {}

    def division(self) -> markers.PopulateMeta | None:
        """Return the division of the base into populate tasks; None before the first plan."""
        return markers.read_meta(self.watershed_url)

    def done_tasks(self) -> set[markers.Triple]:
        """Return the coordinates of all populate tasks that are done."""
        return markers.done_tasks(self.watershed_url)

    def n_done_tasks(self, division: markers.PopulateMeta) -> int:
        """Return the number of populate tasks of a division that are done."""
        return int(markers.done_mask(self.watershed_url, division.grid.shape(division.layer)).sum())

    def is_complete(self) -> bool:
        """Return whether the populate is finished."""
        return markers.read_complete(self.watershed_url) is not None

    def counts(self) -> dict[str, int]:
        """Return the numbers of storage chunks that are referred to, and of those copied in the same mips.

        The result is empty before the populate is finished.
        """
        complete = markers.read_complete(self.watershed_url) or {}
        return {name: int(complete[name]) for name in ("referred", "copied") if name in complete}

    def require_complete(self) -> None:
        """Raise NotReadyError, with the remedy, unless the populate of the base is complete.

        Raises
        ------
        ConfigError
            If other software edits the base in place.
        """
        if self.is_complete():
            return
        info = self.info()
        if info.made_elsewhere:
            _require_complete_elsewhere(info)
            return
        meta, url = self.division(), self.watershed_url
        if meta is None:
            raise NotReadyError(f"the base of {url} has not been populated.", remedy="Run the populate first.")
        n_tasks = meta.grid.count(meta.layer)
        n_missing = n_tasks - self.n_done_tasks(meta)
        if n_missing:
            raise NotReadyError(
                f"the populate of the base of {url} is not complete: {n_missing} of {n_tasks} tasks "
                f"(layer {meta.layer}) are missing.",
                remedy="Run the missing populate tasks, then finish the populate (finish_populate).",
            )
        raise NotReadyError(
            f"all {n_tasks} populate tasks of the base of {url} are done, but the populate is not finished.",
            remedy="Finish the populate (finish_populate).",
        )

    def forks(self) -> list[str]:
        """Return the ids of the graphs that have a fork, and of a graph whose voxels are the base itself."""
        folder = ocdbt.ocdbt_folder(self.watershed_url)
        keys = kv.list_keys(folder, FORKS)
        manifests = kv.read_many(folder, [f"{key.removeprefix(FORKS)}/{ocdbt.SINGLE_MANIFEST}" for key in keys])
        there = [key for key, manifest in zip(keys, manifests, strict=True) if manifest is not None]
        there += [key for key in keys if key not in there and IN_PLACE in (kv.read_bytes(folder, key) or b"")]
        return sorted(key.removeprefix(FORKS) for key in there)

    def wipe(self, *, force: bool = False) -> None:
        """Remove the base and the done-markers of its populate, through the driver of the file system or bucket.

        (Deleting through the OCDBT driver would leave every file, and the old configuration, in place.)

        Danger: all forks read from the base. With ``force`` the base is removed even if there are forks, which are
        then lost.

        Raises
        ------
        ConflictError
            If there are forks and ``force`` is not set.
        """
        url, forks = self.watershed_url, self.forks()
        if forks and not force:
            raise ConflictError(
                f"the base of {url} is in use by the forks {', '.join(forks)}, which would be lost.",
                remedy="Retire their graphs first (sv-pipeline retire).",
            )
        # Markers are removed first: a crash in between must not leave markers of voxels that are gone.
        kv.delete_prefix(ocdbt.ocdbt_folder(url), POPULATED_FOLDER + "/")
        kv.delete_prefix(self.folder)
        reset_context()


def _encode(info: BaseInfo) -> bytes:
    record: dict[str, Any] = {
        "record_version": RECORD_VERSION,
        "ocdbt": info.form.to_json(),
        "source_mips": info.source_mips,
        "storage_chunk_size": info.storage_chunk_size,
        "info": info_json(info.volume),
        **({} if info.remade is None else {"remade": info.remade}),
        **({"referred": info.referred, "made_at": info.made_at} if info.referred else {}),
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


@lru_cache(64)
def _decode(url: str, raw: bytes) -> BaseInfo:
    record = json.loads(raw)
    if record["record_version"] == 1:
        raise _first_version(url)
    chunk_size = record["storage_chunk_size"]
    return BaseInfo(
        watershed_url=url,
        form=ocdbt.OcdbtFormat(**record["ocdbt"]),
        volume=parse_info(record["info"]),
        source_mips=int(record["source_mips"]),
        storage_chunk_size=None if chunk_size is None else (chunk_size[0], chunk_size[1], chunk_size[2]),
        remade=record.get("remade"),
        referred=tuple(int(mip) for mip in record.get("referred", ())),
        made_at=record.get("made_at"),
    )


def _made_elsewhere(url: str, found: elsewhere.StoreOfOthers) -> BaseInfo:
    return BaseInfo(
        watershed_url=url,
        form=found.form,
        volume=found.volume,
        source_mips=found.source_mips,
        storage_chunk_size=found.volume.scales[0].chunk_size,
        made_elsewhere=True,
        edited_in_place=found.edited_in_place,
    )


def _edited_in_place(folder: str) -> ConfigError:
    return elsewhere.stranger(folder, "it has no info file (.populated/meta.json), so other software edits it in place")


def _require_complete_elsewhere(info: BaseInfo) -> None:
    folder = ocdbt.base_folder(info.watershed_url)
    if info.edited_in_place:
        raise _edited_in_place(folder)
    missing = elsewhere.first_missing(info.watershed_url, info.volume)
    if missing is not None:
        raise NotReadyError(
            f"the base at {folder}, which other software made, lacks voxels of the watershed: the first storage "
            f"chunk that is missing is {missing}.",
            remedy="Let that software finish its populate.",
        )


def _settings(form: ocdbt.OcdbtFormat) -> dict[str, Any]:
    config = form.config_json()
    return {name: config[name] for name in ("compression", "max_inline_value_bytes")}


def _refuse_another_config(info: BaseInfo, config: OcdbtConfig) -> None:
    # Compression and inline values are not compared, because those of the base count anyway (`Base.effective`).
    wanted, found = ocdbt.OcdbtFormat.of(config).to_json(), info.form.to_json()
    own = ("max_decoded_node_bytes", "version_tree_arity_log2", "manifest_kind")
    pairs = {name: (wanted[name], found[name]) for name in own}
    if config.mips is not None:
        pairs["mips"] = (config.mips, info.n_mips)
    pairs["storage_chunk_size"] = (config.storage_chunk_size, info.storage_chunk_size)
    if info.made_elsewhere:  # it has the defaults of other software, so only explicit values are compared
        pairs = {name: pair for name, pair in pairs.items() if name in config.model_fields_set}
    differing = [f"{name} is {have!r}, not {want!r}" for name, (want, have) in pairs.items() if want != have]
    if differing:
        raise ConfigError(
            f"the base at {ocdbt.base_folder(info.watershed_url)} was created with another ocdbt_config: "
            f"{'; '.join(differing)}.",
            remedy="Use the values that it has, or remove the base (sv-pipeline retire-base) and populate it again.",
        )


def write_volume_info(spec: dict[str, Any], volume: VolumeInfo) -> None:
    """Write the info of an empty volume to an OCDBT key space, unless it has one."""

    def write() -> None:
        store = ocdbt.OcdbtStore(spec)
        found = store.kv.read(INFO).result()
        if found.state == "missing":
            content = json.dumps(info_json(volume)).encode()
            with commit_guard(store.folder):
                store.kv.write(INFO, content, if_equal=found.stamp.generation).result()

    place = ocdbt.folder_of(spec)
    what = f"creating the database at {place}"
    try:
        retry_transport(write, what=what)
    except DamagedError as error:
        if not is_of_another_database(error):
            raise
        raise ConfigError(
            f"the database at {place} does not have the configuration in its record: {error}.",
            remedy="Remove the base (sv-pipeline retire-base) and create it again.",
        ) from error
