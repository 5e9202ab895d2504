"""The home folder: which graphs this installation knows, and what each was built from. Builds nothing itself.

``$SV_PIPELINE_HOME`` holds ``graphs/<graph_id>.json`` (the dataset configuration of each graph) and, for the embedded
backend, ``tables/<table>.sqlite``. Every process that works on a graph finds its configuration here by graph id.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from sv_pipeline.config import BackendType, DatasetConfig, IngestOptions, SourceConfig, parse_config, validate_graph_id
from sv_pipeline.errors import ConflictError, CorruptionError, NotFoundError
from sv_pipeline.failpoints import reach
from sv_pipeline.graph.chunked_graph import ChunkedGraph, open_chunked_graph
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.places import is_spec, local_folder, parse_folder, parse_source
from sv_pipeline.redaction import redacted, redacted_value
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv
from sv_pipeline.storage.precomputed import VolumeInfo, read_info
from sv_pipeline.storage.private_files import write_private
from sv_pipeline.storage.wall import our_error
from sv_pipeline.table import open_table
from sv_pipeline.table.interface import Table

__all__ = [
    "HOME_VARIABLE",
    "PATIENCE",
    "Dataset",
    "Registry",
    "absolute",
    "ask_every_graph",
    "default_home",
    "home_or_default",
    "open_dataset",
]

logger = logging.getLogger(__name__)

HOME_VARIABLE = "SV_PIPELINE_HOME"
RETIRING = ".retiring"
"""Suffix of the entry of a graph whose retirement was begun."""
AT_ONCE = 8
SHOWN = 20
"""Number of graphs that a message lists."""
PATIENCE = 40.0
"""Seconds to wait for the answers of all graphs; a tick of a Dagster sensor may take 60."""
# A field that is chosen at registration if it is not given: it differs only if both configurations give it.
_CHOSEN = "ocdbt_config", "populate_layer"
# Fields that may differ between two runs of one graph: they affect how it is built, never what is built.
_FREE_FIELDS = {
    ("ingest", "mode"),
    ("ingest", "workers"),
    ("ingest", "chunks_per_batch"),
    ("ingest", "ramp_seconds"),
    ("ingest", "worker_memory_mb"),
    ("ingest_config",),
    ("events",),
    ("image",),
    ("retention",),
    ("backend_client", "config", "admin"),
    ("backend_client", "config", "read_only"),
    ("ocdbt_config", "coordinator_address"),
    ("ocdbt_config", "populate_method"),
    ("data_source", "fill_missing"),
    ("source", "fill_missing"),
}

Answer = TypeVar("Answer")


def default_home() -> str:
    """Return ``$SV_PIPELINE_HOME``, or an existing ``.sv_pipeline`` of the working directory, or ``~/.sv_pipeline``."""
    if home := os.environ.get(HOME_VARIABLE):
        return parse_folder(home).text
    here = Path.cwd() / ".sv_pipeline"
    return str(here if here.is_dir() else Path.home() / ".sv_pipeline")


@dataclass(frozen=True)
class Dataset:
    """The configuration of one graph and its home folder; opens what is stored on demand."""

    config: DatasetConfig
    home: str

    @property
    def graph_id(self) -> str:
        """Name of the graph."""
        return self.config.graph_id

    @property
    def watershed_url(self) -> str:
        """Folder of the watershed volume."""
        return kv.as_url(self.config.data_source.watershed)

    @property
    def base(self) -> Base:
        """The voxels that the forks of this watershed share (they may not exist yet)."""
        return Base(self.watershed_url)

    @property
    def fork(self) -> Fork:
        """The graph's version of the voxels (it may not exist yet)."""
        return Fork(self.watershed_url, self.graph_id)

    def close(self) -> None:
        """Close the table's connections if any are open; they are reopened when they are needed."""
        if "table" in self.__dict__:
            self.table.close()

    def forget(self) -> None:
        """Discard what is cached, after the stored data has been created anew."""
        for name in ("volume", "grid", "table", "graph"):
            self.__dict__.pop(name, None)

    @cached_property
    def volume(self) -> VolumeInfo:
        """Shape of the watershed volume; raises InputError while it does not exist."""
        return read_info(self.watershed_url)

    @cached_property
    def grid(self) -> ChunkGrid:
        """Chunk grid of the graph."""
        return ChunkGrid(self.volume.bounds, self.config.graph_config.chunk_size)

    @cached_property
    def table(self) -> Table:
        """The graph's table (it may not exist yet)."""
        return open_table(self.config, self.home)

    @property
    def existing_table(self) -> Table | None:
        """The graph's table; None while it does not exist, as for a graph that has only voxels."""
        return self.table if self.table.exists() else None

    @cached_property
    def graph(self) -> ChunkedGraph:
        """The chunked graph; raises NotFoundError before it is set up."""
        return open_chunked_graph(self.table)


@dataclass(frozen=True)
class Registry:
    """The graphs of one home folder (a local folder, or any kvstore URL)."""

    home: str

    @property
    def _graphs_url(self) -> str:
        return kv.as_url(self.home) + "graphs/"

    def require_home(self) -> None:
        """Raise NotFoundError if the home is a local folder that does not exist; buckets have no folders to miss."""
        folder = parse_folder(self.home).file
        if folder is not None and not folder.is_dir():
            raise NotFoundError(
                f"the home {self.home} does not exist, so no graph is known there.",
                remedy=f"Check --home and {HOME_VARIABLE}; 'sv-pipeline ingest CONFIG.yaml' makes a new home.",
            )

    def graph_ids(self) -> list[str]:
        """Return the ids of all registered graphs, sorted."""
        keys = kv.list_keys(self._graphs_url)
        return sorted(key.removesuffix(".json") for key in keys if key.endswith(".json"))

    def get(self, graph_id: str) -> Dataset:
        """Return a registered graph; NotFoundError lists the graphs that exist."""
        raw = kv.read_bytes(self._graphs_url, f"{validate_graph_id(graph_id)}.json")
        if raw is None:
            self._refuse_retiring(graph_id)
            self.require_home()
            known = self.graph_ids()
            close = difflib.get_close_matches(graph_id, known, 1)
            meant = f"Did you mean {close[0]!r}? Otherwise check" if close else "Check"
            raise NotFoundError(
                f"graph {graph_id!r} is not known in {self.home} (known: {_listed(known)}).",
                remedy=f"{meant} the id, set {HOME_VARIABLE}, or run 'sv-pipeline ingest CONFIG.yaml'.",
            )
        return Dataset(self._parse(graph_id, raw), self.home)

    def _parse(self, graph_id: str, raw: bytes) -> DatasetConfig:
        """Parse a stored configuration, written by this version or an earlier one."""
        where = f"{self._graphs_url}{graph_id}.json"
        try:
            stored = json.loads(raw)
            # Earlier versions had other ingest options. They do not affect what was built.
            stored["ingest"] = {k: v for k, v in stored["ingest"].items() if k in IngestOptions.model_fields}
            return parse_config(stored, where=where, stored=True)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptionError(
                f"{where} does not hold the configuration of a graph ({error}).",
                remedy="Remove that file, then run 'sv-pipeline attach CONFIG.yaml'.",
            ) from error

    def check(self, config: DatasetConfig) -> None:
        """Raise ConflictError if the graph id is registered for another dataset; it names the fields that differ."""
        raw = kv.read_bytes(self._graphs_url, f"{config.graph_id}.json")
        if raw is None:
            self._refuse_retiring(config.graph_id)
            return
        known = self._parse(config.graph_id, raw)
        if differing := _differences(known, config):
            raise ConflictError(
                f"graph {config.graph_id!r} exists already, built with another configuration "
                f"(differs in {', '.join(differing)}).",
                remedy="Choose another graph_id, or use the configuration it was built with.",
            )

    def register(self, config: DatasetConfig) -> Dataset:
        """Store a configuration under its graph id, with absolute paths; storing an equal one again is harmless."""
        config = absolute(config)
        self.check(config)
        dump = config.model_dump(mode="json", by_alias=True)
        # The configuration may hold passwords and tokens of the places that it names.
        write_private(self._graphs_url, f"{config.graph_id}.json", json.dumps(dump, indent=1).encode())
        return Dataset(config, self.home)

    # -- the end of a graph -------------------------------------------------------------------------------------------

    def get_retiring(self, graph_id: str) -> Dataset | None:
        """Return a graph whose retirement was begun and not completed; None if there is none of this id."""
        raw = kv.read_bytes(self._graphs_url, validate_graph_id(graph_id) + RETIRING)
        return None if raw is None else Dataset(self._parse(graph_id, raw), self.home)

    def begin_retiring(self, graph_id: str) -> Dataset:
        """Hide a graph from everything but its retirement; one that was killed while it did so is completed."""
        raw = kv.read_bytes(self._graphs_url, f"{graph_id}.json")
        if raw is not None:
            write_private(self._graphs_url, graph_id + RETIRING, raw)
            reach("retire noted")
            kv.delete_key(self._graphs_url, f"{graph_id}.json")
        return self.get_retiring(graph_id) or self.get(graph_id)

    def stop_retiring(self, graph_id: str) -> None:
        """Show a graph again whose retirement was begun, and of which nothing was removed."""
        raw = kv.read_bytes(self._graphs_url, graph_id + RETIRING)
        if raw is not None:
            write_private(self._graphs_url, f"{graph_id}.json", raw)
            kv.delete_key(self._graphs_url, graph_id + RETIRING)

    def end_retiring(self, graph_id: str) -> None:
        """Forget a graph; its id can be used again."""
        kv.delete_keys(self._graphs_url, [graph_id + RETIRING])

    def _refuse_retiring(self, graph_id: str) -> None:
        if kv.read_bytes(self._graphs_url, graph_id + RETIRING) is not None:
            raise ConflictError(
                f"graph {graph_id!r} is being retired, and parts of it may be gone.",
                remedy=f"Run 'sv-pipeline retire {graph_id} --apply' to complete that.",
            )


def home_or_default(home: str | os.PathLike[str] | None) -> str:
    """Return the home folder that a caller names, or :func:`default_home`; ConfigError if it cannot be one."""
    if home is None or (isinstance(home, str) and not home):
        return default_home()
    return parse_folder(home).text


def open_dataset(graph_id: str, home: str | os.PathLike[str] | None = None) -> Dataset:
    """Open the graph that is registered under this id in ``home`` (default: :func:`default_home`)."""
    return Registry(home_or_default(home)).get(graph_id)


def absolute(config: DatasetConfig) -> DatasetConfig:
    """Return the configuration with every local path made absolute, so that any process can use it."""

    def url(value: str | None) -> str | None:
        return None if value is None else kv.as_url(value)

    def source(value: str | None) -> str | None:
        return value if value is None or is_spec(value) else parse_source(value).text

    data_source = config.data_source.model_copy(
        update={
            "watershed": url(config.data_source.watershed),
            "edges": url(config.data_source.edges),
            "components": url(config.data_source.components),
        }
    )
    update: dict[str, Any] = {"data_source": data_source, "image": source(config.image)}
    if config.source is not None:
        places: dict[str, str | None] = {
            name: source(getattr(config.source, name)) for name in ("segmentation", "agglomeration", "affinities")
        }
        update["source"] = SourceConfig.model_validate({**config.source.model_dump(), **places})
    if config.backend_client.type is BackendType.SQLITE and config.backend_client.config.path:
        options = config.backend_client.config.model_copy(
            update={"path": str(local_folder(config.backend_client.config.path))}
        )
        update["backend_client"] = config.backend_client.model_copy(update={"config": options})
    return config.model_copy(update=update)


def _listed(names: Sequence[str]) -> str:
    """Names for a message, which must stay readable in a home of thousands of graphs."""
    more = f" and {len(names) - SHOWN:,} more; 'sv-pipeline list' shows all" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more


def _differences(a: DatasetConfig, b: DatasetConfig) -> list[str]:
    """Return the dotted names of the fields in which two configurations differ, without ``_FREE_FIELDS``."""

    def flatten(value: Any, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
        if prefix in _FREE_FIELDS:
            return {}
        if not isinstance(value, dict):
            return {prefix: value}
        return {k: v for name, sub in value.items() for k, v in flatten(sub, (*prefix, name)).items()}

    # Secrets are masked before the comparison: a place with another password or token is the same place.
    left, right = (flatten(redacted_value(absolute(one).model_dump(mode="json"))) for one in (a, b))
    differing = {k for k in left.keys() | right.keys() if left.get(k) != right.get(k)}
    if None in (left.get(_CHOSEN), right.get(_CHOSEN)):
        differing.discard(_CHOSEN)
    return sorted(".".join(k) for k in differing)


def ask_every_graph(
    registry: Registry,
    ask: Callable[[Registry, str], Answer],
    graph_ids: Sequence[str] | None = None,
    *,
    patience: float = PATIENCE,
) -> dict[str, Answer | str]:
    """Ask several graphs a question in parallel; return the answers by graph id.

    Parameters
    ----------
    registry
        The home folder of the graphs.
    ask
        Function that is called in a thread for each graph. A call that takes too long goes on after this function
        returns.
    graph_ids
        Graphs to ask; default: all.
    patience
        Seconds to wait for all graphs.

    Returns
    -------
    dict
        The answer of each graph, or a text that says why there is none.
    """
    wanted = registry.graph_ids() if graph_ids is None else sorted(graph_ids)
    deadline = time.monotonic() + patience
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ask")
    futures = [pool.submit(ask, registry, graph_id) for graph_id in wanted]
    answers: dict[str, Answer | str] = {}
    try:
        for graph_id, future in zip(wanted, futures, strict=True):
            try:
                answers[graph_id] = future.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                answers[graph_id] = f"it did not answer within {patience:.0f} s"
            except Exception as error:
                if (ours := our_error(error)) is None:
                    logger.warning("graph %s: an unexpected error", graph_id, exc_info=error)
                answers[graph_id] = redacted(str(ours or f"{type(error).__name__}: {error}"))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return answers
