"""Small graphs with voxels (*worlds*), built from any labelled volume or dataset YAML in one line, and cheap to copy.

A world is a registered graph like any other, and is built by the normal ingest. So a test on a world that was cropped
from a user's data is a test on that data.
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
    "merged",
    "small_world",
]

EVERYWHERE = (10_000, 10_000, 10_000)
"""Margin around the points of a request, in voxels (x, y, z), that includes the whole volume."""
MEMORY_FOLDER, MEMORY_NEEDED = Path("/dev/shm"), 1 << 30
USER = "tester"

Labels = npt.NDArray[np.uint64]
Triple = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class World:
    """A registered graph with voxels, to inspect and to edit.

    Arrays of this class hold the whole volume: they have shape (x, y, z), and index 0 is its first voxel.
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
        """Coordinate (x, y, z) of the first voxel of the volume."""
        return np.asarray(self.graph.grid.bounds.start)

    @property
    def generation(self) -> int:
        """Generation of the fork, which grows by one with each commit of voxels."""
        return self.dataset.fork.generation()

    def open(self) -> OpenGraph:
        """Open the graph as a proofreader uses it."""
        return OpenGraph(self.dataset)

    # -- inspection ---------------------------------------------------------------------------------------------------

    def voxels(self, generation: int | None = None) -> Labels:
        """Read the supervoxel id of each voxel, now or at a generation of the fork."""
        volume = self.volume
        if generation is not None:
            volume = self.dataset.fork.open(version=generation)
        return np.asarray(volume[self.graph.grid.bounds.slices].read(order="F").result(), np.uint64)

    def voxels_at(self, time: int) -> Labels:
        """Read the supervoxel id of each voxel at a logical time of the graph, in milliseconds."""
        return self.voxels(self.dataset.fork.generation_at(time))

    def objects(self, voxels: Labels, at: int | None = None) -> Labels:
        """Return the root of each voxel, 0 for background; now, or at a logical time in milliseconds."""
        ids, index = np.unique(voxels, return_inverse=True)
        found = np.zeros(len(ids), np.uint64)
        found[ids > 0] = roots(self.graph, ids[ids > 0], at=at)
        return found[index].reshape(voxels.shape)

    def rows(self) -> dict[bytes, dict[Any, Any]]:
        """Read every row of the table, with all cells."""
        return {key: dict(row) for key, row in self.table.scan([EVERYTHING])}

    def report(self) -> VerifyReport:
        """Run every check of ``sv-pipeline verify``, and return the report."""
        return verify_dataset(self.dataset)

    def verify(self) -> VerifyReport:
        """Assert that every check of ``sv-pipeline verify`` passes and finds nothing."""
        return assert_sound(self.dataset)

    # -- requests of edits --------------------------------------------------------------------------------------------

    def points(self, *voxels: npt.ArrayLike) -> Points:
        """Make points of a request from voxels that are indices into the arrays of this class."""
        return Points.of([], (np.asarray(voxels).reshape(-1, 3) + self.offset).tolist())

    def split_request(self, sources: npt.ArrayLike, sinks: npt.ArrayLike, **options: Any) -> SplitRequest:
        """Make a request to split, whose region is the whole volume unless the options contain an ``offset``."""
        given = {"offset": EVERYWHERE, "disallow_isolating_cut": False, **options}
        return SplitRequest(USER, self.points(sources), self.points(sinks), **given)

    def merge_request(self, sources: npt.ArrayLike, sinks: npt.ArrayLike, **options: Any) -> MergeRequest:
        """Make a request to merge, whose region is the whole volume unless the options contain an ``offset``."""
        return MergeRequest(USER, self.points(sources), self.points(sinks), **{"offset": EVERYWHERE, **options})

    # -- copies -------------------------------------------------------------------------------------------------------

    @cached_property
    def _rows(self) -> list[RowMutation]:
        """Rows of this world, which must not be edited any more; its copies start with them."""
        return all_rows(self.table)

    @contextmanager
    def copied(self, backend: Backend = "sqlite") -> Iterator[World]:
        """Provide a copy during the block; this takes a new fork and a copy of the rows.

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
        """Copy everything, including edits and files, under the same graph id.

        Parameters
        ----------
        folder
            Folder of the copy.
        home
            Home folder in which the copy is registered; by default ``home`` in ``folder``.
        watershed
            URL of the copied volume; by default the folder ``watershed`` in ``folder``.
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
        """Make a world with the rows of this one in a table of its own, registered in a home folder."""
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
    """Write a volume to a folder, and return the dataset configuration that builds a graph from it there.

    Parameters
    ----------
    changes
        Sections of the configuration. Their fields replace default ones of the same name; None removes a section.
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
    return merged(raw, changes)


def merged(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dataset configuration with changed sections, see :func:`configuration`."""
    result = dict(raw)
    for name, section in changes.items():
        if section is None:
            result.pop(name, None)
        else:
            result[name] = {**result.get(name, {}), **section} if isinstance(section, Mapping) else section
    return result


def build(
    volume: LabelledVolume,
    folder: Path,
    graph_id: str = "world",
    *,
    home: Path | None = None,
    chunk_size: Triple = (8, 8, 8),
    **changes: Any,
) -> World:
    """Build a graph from a volume in this process, by the same steps as an ingest.

    Parameters
    ----------
    folder
        Folder of source and watershed.
    home
        Home folder in which the graph is registered; by default ``home`` in ``folder``.
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
    """Build a small graph from a crop of the data that a dataset YAML names. The data themselves are only read.

    Parameters
    ----------
    path
        The dataset YAML.
    folder
        Folder of the small graph, which has a table and a home folder of its own.
    size, at
        The crop; see :func:`sv_pipeline.testing.volumes.crop`.
    chunk_size
        Shape of a chunk (x, y, z) in voxels. By default, it is about a third of the crop along each axis, so that the
        graph has several layers.
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
    """Make a temporary folder, in memory if there is enough free space, otherwise on disk."""
    in_memory = MEMORY_FOLDER.is_dir() and os.access(MEMORY_FOLDER, os.W_OK)
    if in_memory and shutil.disk_usage(MEMORY_FOLDER).free < MEMORY_NEEDED:
        in_memory = False
    return TemporaryDirectory(prefix="sv_pipeline_world_", dir=MEMORY_FOLDER if in_memory else None)


@cache
def _process_folder() -> TemporaryDirectory[str]:
    return fast_folder()


def lasting_folder() -> Path:
    """Make a folder that exists as long as this process, for worlds that are built once and copied for each test."""
    folder = Path(_process_folder().name) / uuid.uuid4().hex
    folder.mkdir()
    return folder
