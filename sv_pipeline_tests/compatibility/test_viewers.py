"""What viewers are given: the published documents are opened as they are, by TensorStore and by cloud-volume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
from cloudvolume import CloudVolume

from sv_pipeline import edits
from sv_pipeline.ids import IdLayout
from sv_pipeline.storage import kv
from sv_pipeline.testing import worlds
from sv_pipeline.testing.volumes import drawn
from sv_pipeline.testing.worlds import World
from sv_pipeline_tests.ingest.builds import CommandLine

ALL = slice(None)
BARS = {1: (ALL, slice(1, 5), slice(1, 5)), 2: (ALL, slice(5, 9), slice(1, 5)), 3: (ALL, slice(10, 14), slice(1, 5))}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A graph whose voxels were edited, and whose coarser mips are not behind."""
    volume = drawn((48, 16, 16), BARS, {1: 1, 2: 1, 3: 2}, voxel_offset=(8, -8, 16))
    world = worlds.build(volume, tmp_path_factory.mktemp("viewed"), ocdbt_config={"populate_layer": 3, "mips": 3})
    edits.split(world.graph, world.split_request([4, 2, 2], [28, 2, 2]), volume=world.volume)
    return world


def document_of(world: World) -> dict[str, Any]:
    """The published document, as a program finds it."""
    dataset = world.dataset
    raw = kv.read_bytes(f"{dataset.watershed_url}ocdbt/.readers/{dataset.graph_id}", "info")
    assert raw is not None
    published: dict[str, Any] = json.loads(raw)
    return published


def test_the_document_has_what_a_graphene_source_expects(world: World) -> None:
    document = document_of(world)
    watershed = json.loads(kv.read_bytes(world.dataset.watershed_url, "info") or b"")
    assert {name: document[name] for name in watershed} == watershed
    assert document["chunks_start_at_voxel_offset"] is True
    assert document["data_dir"] == world.dataset.watershed_url.removesuffix("/")
    graph = document["graph"]
    assert set(graph) == {
        "chunk_size",
        "bounding_box",
        "n_bits_for_layer_id",
        "cv_mip",
        "n_layers",
        "spatial_bit_masks",
        "ocdbt_seg",
        "ocdbt_kvstore_spec",
    }
    assert (graph["chunk_size"], graph["bounding_box"]) == ([8, 8, 8], [2048, 2048, 512])
    assert (graph["n_bits_for_layer_id"], graph["cv_mip"], graph["ocdbt_seg"]) == (8, 0, True)
    assert graph["n_layers"] == world.graph.n_layers
    layout = IdLayout(world.graph.n_layers)
    assert graph["spatial_bit_masks"] == {
        str(layer): layout.bits_per_dimension(layer) for layer in range(1, graph["n_layers"] + 1)
    }
    assert "mesh" not in document


def test_any_tensorstore_opens_the_spec_of_the_document_at_every_mip(world: World) -> None:
    spec = document_of(world)["graph"]["ocdbt_kvstore_spec"]
    for mip in range(3):
        array = {"driver": "neuroglancer_precomputed", "kvstore": spec, "scale_index": mip}
        seen = ts.open(array, context=ts.Context(), open=True).result()[..., 0].read().result()
        np.testing.assert_array_equal(seen, world.dataset.fork.open(mip).read().result())
    assert (world.voxels() != world.voxels(before_edits(world))).any()


def test_the_specs_of_the_published_contract_are_opened_as_they_are(world: World) -> None:
    dataset = world.dataset
    raw = kv.read_bytes(f"{dataset.watershed_url}ocdbt/.readers/{dataset.graph_id}", "contract.json")
    for mip in json.loads(raw or b"")["mips"]:
        seen = ts.open(mip["spec"], context=ts.Context(), open=True).result()[..., 0].read().result()
        np.testing.assert_array_equal(seen, dataset.fork.open(mip["mip"]).read().result())


@contextmanager
def served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_cloud_volume_opens_the_document_and_decodes_our_ids(world: World, tmp_path: Path) -> None:
    place = tmp_path / "segmentation" / "table" / "world"
    place.mkdir(parents=True)
    (place / "info").write_text(json.dumps(document_of(world)))
    with served(tmp_path) as address:
        volume = CloudVolume(
            f"graphene://{address}/segmentation/table/world", secrets="0123456789abcdef", progress=False
        )
        assert volume.meta.n_layers == world.graph.n_layers
        assert list(volume.graph_chunk_size) == [8, 8, 8]
        ids = np.unique(world.voxels())[1:]
        layout = world.graph.layout
        for supervoxel, coordinate in zip(ids.tolist(), layout.coordinates(ids).tolist(), strict=True):
            assert volume.meta.decode_layer_id(supervoxel) == 1
            assert list(volume.meta.decode_chunk_position(supervoxel)) == coordinate
        bounds = world.graph.grid.bounds
        voxels = volume.download(bounds.slices, agglomerate=False)[..., 0]
        np.testing.assert_array_equal(voxels, world.voxels(before_edits(world)))


def before_edits(world: World) -> int:
    """The generation of the fork that shows the watershed."""
    [record] = world.dataset.fork.records()
    return record.generation_before


def test_the_command_prints_the_document_that_is_published(cli: CommandLine, tmp_path: Path) -> None:
    volume = drawn((16, 16, 8), {1: (ALL, slice(1, 5), slice(1, 5))}, {1: 1})
    built = worlds.build(volume, tmp_path, "seen", home=cli.home)
    said = cli("info", "seen", "--graphene")
    assert said.code == 0, said.err
    assert json.loads(said.out) == document_of(built)
    built.dataset.fork.remove()
    assert not kv.list_keys(f"{built.dataset.watershed_url}ocdbt/.readers/")
    said = cli("info", "seen", "--graphene")
    assert said.code == 1
    assert "has no fork" in said.err
