"""Registration of a graph: its configuration and inputs are checked before anything is written. Nothing is built."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from sv_pipeline.config import BackendType, DatasetConfig, IngestMode, PopulateMethod
from sv_pipeline.errors import ConfigError, ConflictError, InputError, NotFoundError, NotReadyError
from sv_pipeline.graph import edge_files
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline.ingest import watershed
from sv_pipeline.ingest.missing_chunks import report_missing_chunks
from sv_pipeline.ingest.watershed.source import open_source
from sv_pipeline.memory import memory_budget
from sv_pipeline.places import is_spec, parse_folder, parse_source
from sv_pipeline.registry import Dataset, Registry, absolute
from sv_pipeline.segmentation.base import layout, populate, referring
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.precomputed import stored_scale
from sv_pipeline.storage.stored_scale import StoredScale
from sv_pipeline.storage.volume_info import VolumeInfo, check_label_encoding, info_json
from sv_pipeline.table.meta import OCDBT_CONFIG
from sv_pipeline.table.restoring import being_restored_from

__all__ = ["attach", "register", "require_local_inputs", "require_watershed", "source_is_needed"]

logger = logging.getLogger(__name__)

SOURCE_VOLUMES = ("segmentation", "agglomeration", "affinities")
PROBES = 64
"""Number of chunks of a given watershed for which edge files are looked for."""


def register(config: DatasetConfig, home: str) -> Dataset:
    """Check a configuration against its inputs and folders, then store it; nothing is written if anything is wrong.

    Raises
    ------
    ConflictError
        If a graph of this id exists that has another configuration, or a table of it that is not registered here.
    InputError, ConfigError
        If the source, the watershed volume or a place to write to cannot be used.
    """
    registry = Registry(home)
    config = absolute(config)
    registry.check(config)
    dataset = Dataset(config, home)
    _check_places(dataset)
    # The order matters: a table is made after its graph is registered, so our own table is registered by the time
    # that it can be seen here.
    exists = config.ingest.mode is not IngestMode.VOXELS and dataset.table.exists()
    if exists and config.graph_id not in registry.graph_ids():
        raise ConflictError(
            f"the table {dataset.table.name!r} of graph {config.graph_id!r} exists, but is not registered here.",
            remedy="Choose another graph_id, or run 'sv-pipeline attach CONFIG.yaml' to use the existing table.",
        )
    _check_image(config)
    _check_base(dataset)
    if config.source is None:
        _check_watershed(dataset)
        _check_mips(config, dataset.volume)
        if not dataset.base.is_complete():
            report_missing_chunks(dataset)
    else:
        if not _watershed_is_complete(dataset):
            report_missing_chunks(dataset)
        source_is_needed(dataset)
    return registry.register(config)


def attach(config: DatasetConfig, home: str) -> Dataset:
    """Register a graph whose table exists already (made by PyChunkedGraph, or from another home).

    Raises
    ------
    NotFoundError
        If there is no such table, or it holds no graph.
    ConflictError
        If the table holds a graph of another watershed or with other chunks than the configuration says, or is being
        restored.
    """
    registry = Registry(home)
    config = absolute(config)
    registry.check(config)
    dataset = Dataset(config, home)
    _check_places(dataset)
    if not dataset.table.exists():
        raise NotFoundError(f"there is no table {dataset.table.name!r}.", remedy="Run 'sv-pipeline ingest' to make it.")
    source = being_restored_from(dataset.table)
    if source is not None and config.graph_id not in registry.graph_ids():
        raise ConflictError(
            f"the table {dataset.table.name!r} is incomplete: it is being restored from the backup {source}.",
            remedy="Run 'sv-pipeline restore' again, which registers the graph.",
        )
    graph = dataset.graph
    pairs = {
        "data_source.WATERSHED": (dataset.watershed_url, graph.watershed_url),
        "graph_config.CHUNK_SIZE": (config.graph_config.chunk_size, graph.meta.chunk_size),
        "graph_config.SPATIAL_BITS": (config.graph_config.spatial_bits, graph.layout.spatial_bits),
    }
    differing = [f"{name} is {found}, not {asked}" for name, (asked, found) in pairs.items() if asked != found]
    if differing:
        raise ConflictError(
            f"table {dataset.table.name!r} holds another graph than the configuration describes: "
            f"{'; '.join(differing)}.",
            remedy="Correct the configuration.",
        )
    _check_image(config)
    _adopt_voxels(dataset)
    return registry.register(config)


def _adopt_voxels(dataset: Dataset) -> None:
    """Adopt the existing voxels of a graph that its meta names: a fork, or a base that is edited in place."""
    fork = dataset.fork
    if fork.exists():
        fork.adopt()
        return
    known = dataset.graph.meta.custom_data
    if OCDBT_CONFIG in known or not (known.get("seg") or {}).get("ocdbt"):
        return
    try:
        stored = dataset.base.info()
    except NotFoundError:
        return
    if stored.edited_in_place:
        fork.adopt(in_place=True)


def require_local_inputs(config: DatasetConfig) -> None:
    """Raise InputError if a local file or folder that the configuration reads does not exist. Opens nothing."""
    inputs = {"image": config.image}
    if config.source is None:
        inputs["data_source.WATERSHED"] = config.data_source.watershed
    else:
        inputs |= {f"source.{name}": getattr(config.source, name) for name in SOURCE_VOLUMES}
    for name, text in inputs.items():
        place = None if text is None or is_spec(text) else parse_source(text)
        if place is not None and place.file is not None and not place.file.exists():
            raise InputError(f"{name}: there is no {place.file}.", remedy="Correct the path; this machine must see it.")


def source_is_needed(dataset: Dataset) -> bool:
    """Prepare the watershed. Returns False if the source cannot be read any more, but the watershed is complete.

    Raises
    ------
    ConfigError, InputError, ConflictError
        If the source cannot be used, or the watershed was made from another source.
    """
    try:
        watershed.prepare_watershed(dataset.config, lambda volume: _check_mips(dataset.config, volume))
    except InputError as error:
        if not _watershed_is_complete(dataset):
            raise
        logger.warning("the source cannot be read any more, but the watershed is already complete: %s", error)
        return False
    return True


def require_watershed(dataset: Dataset) -> None:
    """Raise NotReadyError if the watershed is made here and is not complete: its base would lack voxels for ever."""
    if dataset.config.source is not None and not _watershed_is_complete(dataset):
        raise NotReadyError(
            f"the watershed {dataset.watershed_url} of graph {dataset.graph_id!r} is not complete, so its voxels "
            "cannot be put into the base yet.",
            remedy="Make the watershed first (asset watershed, or 'sv-pipeline ingest').",
        )


def _watershed_is_complete(dataset: Dataset) -> bool:
    try:
        grid = dataset.grid
    except InputError:
        return False
    return all(watershed.done_mask(dataset.watershed_url, stage, grid).all() for stage in watershed.WatershedPass)


# -- checks -----------------------------------------------------------------------------------------------------------


def _check_places(dataset: Dataset) -> None:
    """Raise ConfigError unless files can be created in all local folders that an ingest writes to."""
    config, client = dataset.config, dataset.config.backend_client
    places = {"the home folder": dataset.home, "data_source.WATERSHED": config.data_source.watershed}
    if config.source is not None:
        places |= {"data_source.EDGES": config.edges_url, "data_source.COMPONENTS": config.components_url}
    if client.type is BackendType.SQLITE and client.config.path:
        places["backend_client.CONFIG.PATH"] = client.config.path
    folders = {
        "the home folder": [kv.join_url(dataset.home, "graphs"), kv.join_url(dataset.home, "tables")],
        "data_source.WATERSHED": [
            ocdbt.base_folder(dataset.watershed_url),
            dataset.fork.folder,
            kv.join_url(dataset.watershed_url, watershed.markers_folder()),
        ],
    }
    files = {"the home folder": f"graphs/{config.graph_id}.json", "data_source.WATERSHED": "info"}
    for name, place in places.items():
        if (folder := parse_folder(place).file) is None:
            continue
        for inner in (place, *folders.get(name, ())):
            _check_folder(name, Path(str(parse_folder(inner).file)))
        if name in files and (folder / files[name]).is_dir():
            raise ConfigError(
                f"{name} cannot be {folder}: {folder / files[name]} is a folder, but must be a file.",
                remedy="Move that folder away, or choose another place.",
            )


def _check_folder(name: str, folder: Path) -> None:
    existing = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not existing.is_dir():
        raise ConfigError(f"{name} cannot be {folder}: {existing} is not a folder.", remedy="Choose another place.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{name} cannot be {folder}: {existing} is not writable for this user.",
            remedy="Choose another place, or change its permissions.",
        )


def _check_image(config: DatasetConfig) -> None:
    """Raise InputError unless the image of the dataset, if it has one, can be opened as a volume with one channel."""
    if config.image is not None:
        open_source(config.image, labels=False)


def _check_base(dataset: Dataset) -> None:
    """Raise ConfigError if the watershed already has a base that does not fit the configuration. Writes nothing."""
    base, config = dataset.base, dataset.config
    if config.ingest.mode is IngestMode.GRAPH:
        return
    try:
        base.info()
    except NotFoundError:
        return
    if not dataset.fork.exists():
        base.create(config.ocdbt_config, grid=dataset.grid, memory=memory_budget(config.ingest.worker_memory_mb))
    _name_other_settings(dataset)
    if base.division() is not None:
        populate.populate_plan(base, dataset.grid, config.ocdbt_config)


def _name_other_settings(dataset: Dataset) -> None:
    config = dataset.config.ocdbt_config
    counts = dataset.base.effective(config).settings
    asked = {**config.settings, "populate_layer": layout.populate_layer(config, dataset.grid)}
    if config.populate_layer is None:
        del asked["populate_layer"]
    differing = [f"{name} {counts[name]} (not {asked[name]})" for name in asked if counts[name] != asked[name]]
    if differing:
        logger.warning("the existing base determines these settings of the graph: %s", ", ".join(differing))
    method, refers = dataset.config.ocdbt_config.populate_method, dataset.base.info().refers
    if refers and not method.refers:
        logger.warning(
            "the existing base refers to the watershed's chunks, although populate_method is %s: the watershed must "
            "not change, and PyChunkedGraph's own servers cannot read the graph's voxels",
            method.value,
        )
    elif not refers and method is PopulateMethod.REFERENCE:
        logger.warning(
            "the existing base holds copies of the watershed's voxels, although populate_method is reference"
        )


def _check_watershed(dataset: Dataset) -> None:
    info = dataset.volume
    if info.data_type != "uint64":
        raise InputError(
            f"the watershed volume {dataset.watershed_url} has data type {info.data_type}, not uint64.",
            remedy="Name it as source.segmentation to make supervoxels of it.",
        )
    check_label_encoding(info.scales[0], f"{dataset.watershed_url}info: scales[0].")
    IdLayout(dataset.grid.n_layers, dataset.config.graph_config.spatial_bits)
    _check_edge_files(dataset)


def _check_edge_files(dataset: Dataset) -> None:
    """Raise InputError if no edge file is found: some may be missing, but without any no supervoxels are joined."""
    coordinates = dataset.grid.coordinates(2)
    chosen = coordinates[np.unique(np.linspace(0, len(coordinates) - 1, PROBES).astype(np.int64))]
    url = dataset.config.edges_url
    if not any(kv.list_keys(url, edge_files.edges_key(coordinate)) for coordinate in chosen):
        raise InputError(
            f"there is no edge file in {url} (files of {len(chosen)} of {len(coordinates)} chunks were looked for, "
            f"first {edge_files.edges_key(chosen[0])}).",
            remedy="Check data_source.EDGES and graph_config.CHUNK_SIZE.",
        )


def _check_mips(config: DatasetConfig, volume: VolumeInfo) -> None:
    """Raise ConfigError if the volume cannot be divided into the configured mips and populate tasks."""
    if config.ingest.mode is not IngestMode.GRAPH:
        grid = ChunkGrid(volume.bounds, config.graph_config.chunk_size)
        ocdbt_config = layout.with_populate_layer(
            config.ocdbt_config, grid, memory_budget(config.ingest.worker_memory_mb)
        )
        layout.plan_scales(volume, ocdbt_config, grid)
        usable = min(layout.usable_mips(volume)[0], ocdbt_config.mips or len(volume.scales))
        url, made = kv.as_url(config.data_source.watershed), config.source is not None
        raw = info_json(volume) if made else None
        mips = [StoredScale(url, raw, volume, mip) if raw else stored_scale(url, mip) for mip in range(usable)]
        referring.mips_to_refer_to(mips, ocdbt_config, grid, look=not made)
