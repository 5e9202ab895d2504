"""Two real graphs in the Bigtable emulator, built from dataset files as PyChunkedGraph's operators write them."""

from __future__ import annotations

import csv
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cloudvolume import CloudVolume
from kvdbclient import BigTableClient, BigTableConfig

from sv_pipeline.config import parse_config
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.run import ingest
from sv_pipeline.registry import Dataset
from sv_pipeline.testing.fixtures import need
from sv_pipeline_tests.compatibility.wire import ChunkFiles, read_chunk_files
from sv_pipeline_tests.ingest.conftest import cli as cli
from sv_pipeline_tests.reference import ReferenceHierarchy, expected_hierarchy

Triple = tuple[int, int, int]
EM = Path(__file__).parents[3] / "shared" / "data" / "em_128.npz"
ISOLATED = np.array([45, 20, 12])
"""A voxel, counted from the corner of the volume, that is a supervoxel of its own without any contact."""


@dataclass(frozen=True)
class Case:
    """What is ingested, and how."""

    shape: Triple
    offset: Triple
    chunk_size: Triple
    spatial_bits: int = 10


CASES = {
    "isotropic": Case((75, 67, 45), (104, 57, 13), (32, 32, 32)),
    "anisotropic": Case((70, 61, 33), (8, 0, 1000), (24, 40, 7), spatial_bits=4),
}


@dataclass
class Ingested:
    """A graph that was ingested here, as other software sees it."""

    case: Case
    folder: Path
    dataset: Dataset
    raw: dict[str, Any]
    client: BigTableClient

    @property
    def layout(self) -> Any:
        return self.dataset.graph.layout

    @cached_property
    def voxels(self) -> npt.NDArray[np.uint64]:
        """The watershed volume, read by cloud-volume."""
        return np.asarray(CloudVolume(self.raw["data_source"]["WATERSHED"], mip=0, progress=False)[:])[..., 0]

    @cached_property
    def files(self) -> dict[Triple, ChunkFiles]:
        """Edge and component files of every chunk, taken apart by hand."""
        source = self.raw["data_source"]
        return {
            (x, y, z): read_chunk_files(source["EDGES"], source["COMPONENTS"], (x, y, z))
            for x, y, z in self.dataset.grid.coordinates(2).tolist()
        }

    @cached_property
    def active_edges(self) -> set[tuple[int, int]]:
        """Active atomic edges, smaller id first."""
        return {edge for files in self.files.values() for edge in files.active}

    @cached_property
    def hierarchy(self) -> ReferenceHierarchy:
        """What the rows must hold, ids aside: straight from the definitions."""
        supervoxels = np.unique(self.voxels)
        return expected_hierarchy(self.active_edges, supervoxels[supervoxels != 0].tolist(), self.layout)

    @cached_property
    def nodes(self) -> dict[int, dict[Any, list[Any]]]:
        """Every node row with all columns, through kvdbclient: a column that it does not know is an error there."""
        rows = self.client.read_nodes(start_id=np.uint64(1 << 56), end_id=np.uint64(0xFF << 56))
        return {int(node): row for node, row in rows.items()}


def write_source(folder: Path, case: Case) -> dict[str, Any]:
    """A crop of real data with odd sizes and a piece that touches nothing; some objects of two labels."""
    with np.load(EM) as file:
        labels = file["segmentation"][tuple(slice(n) for n in case.shape)].copy()
    around = tuple(slice(c - 2, c + 3) for c in ISOLATED)
    labels[around] = 0
    labels[tuple(ISOLATED)] = labels.max() + 1
    np.savez(folder / "segmentation.npz", segmentation=labels, resolution=np.array([16, 16, 40]))
    ids = np.unique(labels[labels > 0]).tolist()
    with (folder / "objects.csv").open("w") as table:
        csv.writer(table).writerows([("label", "object"), *((label, 1 + label // 3) for label in ids)])
    return {
        "segmentation": str(folder / "segmentation.npz"),
        "agglomeration": str(folder / "objects.csv"),
        "voxel_offset": list(case.offset),
    }


def operators_config(folder: Path, case: Case) -> dict[str, Any]:
    """The dataset file of a given watershed, with every key that PyChunkedGraph's operators use."""
    name = f"t{uuid.uuid4().hex[:8]}"
    return {
        "graph_id": name,
        "data_source": {
            # A slash at the end changes nothing.
            "EDGES": f"file://{folder}/agglomeration/edges/",
            "COMPONENTS": f"file://{folder}/agglomeration/components",
            "WATERSHED": f"file://{folder}/watershed",
            "DATA_VERSION": 4,
        },
        "graph_config": {
            "CHUNK_SIZE": list(case.chunk_size),
            "FANOUT": 2,
            "SPATIAL_BITS": case.spatial_bits,
            "ID_PREFIX": "compat_",
            "ROOT_LOCK_EXPIRY": {"DAYS": 0, "MINUTES": 5},
        },
        "backend_client": {
            "TYPE": "bigtable",
            "CONFIG": {"ADMIN": True, "READ_ONLY": False, "PROJECT": "project", "INSTANCE": "instance"},
        },
        "ingest_config": {"AGGLOMERATION": None, "TEST_RUN": False},
    }


def make_watershed(folder: Path, case: Case) -> dict[str, Any]:
    """Volume, edges and components as another group would hand them over; the dataset file for them."""
    raw = operators_config(folder, case)
    making = {key: raw[key] for key in ("data_source", "graph_config")}
    source = write_source(folder, case)
    maker = parse_config({**making, "graph_id": "maker", "source": source, "ingest": {"mode": "setup", "workers": 1}})
    ingest(stages.register(maker, str(folder / "maker")))
    return raw


def open_client(table_name: str) -> BigTableClient:
    return BigTableClient(table_name, BigTableConfig(PROJECT="project", INSTANCE="instance", ADMIN=True))


@pytest.fixture(scope="package", params=CASES)
def ingested(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bigtable_emulator: str
) -> Iterator[Ingested]:
    need(EM.exists(), f"real data ({EM.name})")
    case, folder = CASES[request.param], tmp_path_factory.mktemp("shared")
    raw = make_watershed(folder, case)
    dataset = stages.register(parse_config({**raw, "ingest": {"mode": "graph", "workers": 1}}), str(folder / "home"))
    ingest(dataset)
    client = open_client(dataset.table.name)
    yield Ingested(case, folder, dataset, raw, client)
    client.close()
    dataset.table.drop()
    dataset.table.close()
