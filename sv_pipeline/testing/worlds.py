"""Small graphs with voxels: built in one line from any labelled volume or any dataset YAML, and copied at little cost.

A world is a registered graph like any other: what builds it is the product's own ingest. So whatever holds in a world
that was cut out of a user's data is a statement about that data.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.config import load_config, parse_config
from sv_pipeline.edits import MergeRequest, Points, SplitRequest
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.queries import roots
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.run import ingest
from sv_pipeline.places import local_folder
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.registry import Dataset, Registry
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv
from sv_pipeline.table import meta
from sv_pipeline.table.interface import RowMutation, Table
from sv_pipeline.testing.invariants import assert_sound
from sv_pipeline.testing.tables import EVERYTHING, PLACE, Backend, all_rows, unique_name
from sv_pipeline.testing.volumes import LabelledVolume, crop
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline.verify.report import VerifyReport

__all__ = [
    "EVERYWHERE",
    "World",
    "build",
    "configuration",
    "fast_folder",
    "lasting_folder",
    "small_world",
]

EVERYWHERE = (10_000, 10_000, 10_000)
"""Margin around the points of a request, in voxels, that takes in the whole volume."""
MEMORY_FOLDER, MEMORY_NEEDED = Path("/dev/shm"), 1 << 30
USER = "tester"

Labels = npt.NDArray[np.uint64]
Triple = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class World:
    """A graph with voxels, built and registered, to look at and to edit.

    Arrays of this class hold the whole volume: shape (x, y, z), index 0 is the first voxel of the volume.
    """

    dataset: Dataset

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process opens everything itself.
        return World, (Dataset(self.dataset.config, self.dataset.home),)

    @property
    def graph(self) -> ChunkedGraph:
        """The chunked graph."""
        return self.dataset.graph

    @property
    def table(self) -> Table:
        """The table of the graph."""
        return self.dataset.table

    @cached_property
    def volume(self) -> ts.TensorStore:
        """The base mip of the fork, in absolute coordinates; each read shows the newest edits."""
        return self.dataset.fork.open()

    @property
    def offset(self) -> npt.NDArray[np.int64]:
        """Coordinate of the first voxel of the volume."""
        return np.asarray(self.graph.grid.bounds.start)

    @property
    def generation(self) -> int:
        """Generation of the fork: each commit of voxels adds one."""
        return self.dataset.fork.generation()

    def open(self) -> OpenGraph:
        """The graph as a proofreader uses it."""
        return OpenGraph(self.dataset)

    # -- looking ------------------------------------------------------------------------------------------------------

    def voxels(self, generation: int | None = None) -> Labels:
        """Supervoxel id of each voxel, now or at a generation of the fork."""
        volume = self.volume
        if generation is not None:
            volume = self.dataset.fork.open(version=generation)
        return np.asarray(volume[self.graph.grid.bounds.slices].read(order="F").result(), np.uint64)

    def voxels_at(self, time: int) -> Labels:
        """Supervoxel id of each voxel at a logical time of the graph, in milliseconds."""
        return self.voxels(self.dataset.fork.generation_at(time))

    def objects(self, voxels: Labels, at: int | None = None) -> Labels:
        """Root of each voxel, 0 for background; now, or at a logical time in milliseconds."""
        ids, index = np.unique(voxels, return_inverse=True)
        found = np.zeros(len(ids), np.uint64)
        found[ids > 0] = roots(self.graph, ids[ids > 0], at=at)
        return found[index].reshape(voxels.shape)

    def rows(self) -> dict[bytes, dict[Any, Any]]:
        """Every row of the table, with all cells."""
        return {key: dict(row) for key, row in self.table.scan([EVERYTHING])}

    def report(self) -> VerifyReport:
        """What every check of ``sv-pipeline verify`` finds."""
        return verify_dataset(self.dataset)

    def verify(self) -> VerifyReport:
        """Assert that every check of ``sv-pipeline verify`` passes and finds nothing."""
        return assert_sound(self.dataset)

    # -- requests of edits --------------------------------------------------------------------------------------------

    def points(self, *voxels: npt.ArrayLike) -> Points:
        """Points of a request. Voxels are indices into the arrays of this class."""
        return Points.of([], (np.asarray(voxels).reshape(-1, 3) + self.offset).tolist())

    def split_request(self, sources: npt.ArrayLike, sinks: npt.ArrayLike, **options: Any) -> SplitRequest:
        """A split that looks at the whole volume, unless ``offset`` is among the options of the request."""
        given = {"offset": EVERYWHERE, "disallow_isolating_cut": False, **options}
        return SplitRequest(USER, self.points(sources), self.points(sinks), **given)

    def merge_request(self, sources: npt.ArrayLike, sinks: npt.ArrayLike, **options: Any) -> MergeRequest:
        """A merge that looks at the whole volume, unless ``offset`` is among the options of the request."""
        return MergeRequest(USER, self.points(sources), self.points(sinks), **{"offset": EVERYWHERE, **options})

    # -- copies -------------------------------------------------------------------------------------------------------

    @cached_property
    def _rows(self) -> list[RowMutation]:
        """Rows of a world that is not edited any more: what its copies begin with."""
        return all_rows(self.table)

    @contextmanager
    def copied(self, backend: Backend = "sqlite") -> Iterator[World]:
        """A copy for the time of the block, which costs a fork and the rows of a table.

        The copy has a table and a fork of its own, and shares the base. So this world must never have been edited, and
        the files of the base must not be changed.
        """
        url, name = self.dataset.watershed_url, unique_name()
        with fast_folder() as home:
            copy = self._registered(Path(home), backend, graph_id=name)
            Fork(url, name).create()
            try:
                yield copy
            finally:
                copy.table.drop()
                copy.dataset.close()
                Fork(url, name).remove(force=True)

    def copied_to(
        self, folder: Path, backend: Backend = "sqlite", *, home: Path | None = None, watershed: str | None = None
    ) -> World:
        """A copy of everything, edits and files included, under the same graph id.

        Parameters
        ----------
        folder
            Where the copy goes.
        home
            Home folder in which it is registered. Default: ``home`` in ``folder``.
        watershed
            URL of where the volume goes. Default: the folder ``watershed`` in ``folder``.
        """
        source, target = local_folder(self.dataset.watershed_url), watershed or str(folder / "watershed")
        if watershed is None:
            shutil.copytree(source, folder / "watershed")
        else:
            files = [p for p in Path(source).rglob("*") if p.is_file() and not p.name.endswith(".__lock")]
            kv.write_many(target, {str(path.relative_to(source)): path.read_bytes() for path in files})
        return self._registered(home or folder / "home", backend, watershed=target, prefix=f"{unique_name()}-")

    def _registered(
        self,
        home: Path,
        backend: Backend,
        *,
        graph_id: str | None = None,
        watershed: str | None = None,
        prefix: str | None = None,
    ) -> World:
        """The rows of this world in a table of its own, registered in a home folder."""
        raw = self.dataset.config.model_dump(mode="json", by_alias=True)
        raw["graph_id"] = graph_id or raw["graph_id"]
        raw["data_source"] |= {"WATERSHED": watershed} if watershed else {}
        if backend == "bigtable":
            raw["graph_config"]["ID_PREFIX"] = prefix or ""  # a table of a server needs a name of its own
            config = dict(zip(("PROJECT", "INSTANCE"), PLACE, strict=True))
            raw["backend_client"] = {"TYPE": "bigtable", "CONFIG": config}
        else:
            raw["backend_client"] = {"TYPE": "sqlite"}
        dataset = Registry(str(home)).register(parse_config(raw))
        dataset.table.create()
        dataset.table.mutate(self._rows)
        meta.write_meta(dataset.table, meta.from_config(dataset.config), overwrite=True)
        return World(dataset)


# -- building ---------------------------------------------------------------------------------------------------------


def configuration(
    volume: LabelledVolume, folder: Path, graph_id: str = "world", *, chunk_size: Triple = (8, 8, 8), **changes: Any
) -> dict[str, Any]:
    """Write a volume to a folder, and make the dataset configuration that builds a graph of it there.

    Parameters
    ----------
    changes
        Sections of the configuration. What they hold replaces fields of the same name; None removes a section.
    """
    raw: dict[str, Any] = {
        "graph_id": graph_id,
        "data_source": {"WATERSHED": str(folder / "watershed")},
        "graph_config": {"CHUNK_SIZE": [int(size) for size in chunk_size]},
        "ocdbt_config": {"populate_layer": 3},
        "ingest": {"workers": 1},
    }
    if "source" not in changes:
        raw["source"] = volume.write(folder / "source")
    for name, section in changes.items():
        if section is None:
            raw.pop(name, None)
        else:
            raw[name] = {**raw.get(name, {}), **section} if isinstance(section, Mapping) else section
    return raw


def build(
    volume: LabelledVolume,
    folder: Path,
    graph_id: str = "world",
    *,
    home: Path | None = None,
    chunk_size: Triple = (8, 8, 8),
    **changes: Any,
) -> World:
    """Build a graph of a volume, in this process, as an ingest of these labels does it.

    Parameters
    ----------
    folder
        Where source and watershed go.
    home
        Home folder in which the graph is registered. Default: ``home`` in ``folder``.
    changes
        As for :func:`configuration`.
    """
    raw = configuration(volume, folder, graph_id, chunk_size=chunk_size, **changes)
    dataset = stages.register(parse_config(raw), str(home or folder / "home"))
    ingest(dataset)
    return World(dataset)


def small_world(
    path: str | Path,
    folder: Path,
    *,
    size: Triple = (48, 48, 24),
    at: Triple | None = None,
    chunk_size: Triple | None = None,
    **changes: Any,
) -> World:
    """Build a small graph of a crop of the data that a dataset YAML names. The data themselves are only read.

    Parameters
    ----------
    path
        The dataset YAML.
    folder
        Where the small graph goes, with a table and a home folder of its own.
    size, at
        The crop, see :func:`sv_pipeline.testing.volumes.crop`.
    chunk_size
        Voxels of a chunk. Default: about a third of the crop on each axis, so that the graph has several layers.
    changes
        As for :func:`configuration`.

    Raises
    ------
    ConfigError
        If the YAML cannot be used.
    InputError
        If the data cannot be read, or the crop holds nothing but background.
    """
    config = load_config(path)
    volume = crop(config, size, at)
    x, y, z = (max(4, -(-length // 3)) for length in volume.labels.shape)
    return build(volume, folder, config.graph_id, chunk_size=chunk_size or (x, y, z), **changes)


# -- folders and rows -------------------------------------------------------------------------------------------------


def fast_folder() -> TemporaryDirectory[str]:
    """A temporary folder in memory, where the system has room for it; otherwise on disk."""
    in_memory = MEMORY_FOLDER.is_dir() and os.access(MEMORY_FOLDER, os.W_OK)
    if in_memory and shutil.disk_usage(MEMORY_FOLDER).free < MEMORY_NEEDED:
        in_memory = False
    return TemporaryDirectory(prefix="sv_pipeline_world_", dir=MEMORY_FOLDER if in_memory else None)


@cache
def _process_folder() -> TemporaryDirectory[str]:
    return fast_folder()


def lasting_folder() -> Path:
    """A new folder that lasts as long as this process: for worlds that are built once and copied for each test."""
    folder = Path(_process_folder().name) / uuid.uuid4().hex
    folder.mkdir()
    return folder
