"""A table that PyChunkedGraph made and edited is opened, asked, proved and left alone here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
import yaml

from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.config import parse_config
from sv_pipeline.edits.plan.node_cache import NodeCache
from sv_pipeline.edits.plan.region import read_region
from sv_pipeline.feed.reading import events_after
from sv_pipeline.graph import lineage, queries
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline.operations.log import read_operations
from sv_pipeline.registry import Dataset, absolute
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage.precomputed import open_volume, read_info
from sv_pipeline.table import counters
from sv_pipeline.testing.fixtures import need
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.compatibility.conftest import CASES, EM, ISOLATED, make_watershed, open_client
from sv_pipeline_tests.compatibility.foreign import CREATED, EXCEPTION, Foreign
from sv_pipeline_tests.compatibility.wire import read_chunk_files
from sv_pipeline_tests.graph.compare import dump
from sv_pipeline_tests.ingest.builds import CommandLine


@dataclass
class World:
    """Their table, and how we see it."""

    foreign: Foreign
    raw: dict[str, Any]
    folder: Path
    merged: tuple[int, int]
    merge: int
    undo: int
    merged_at: datetime
    undone_at: datetime
    cut: int
    pieces: list[int]
    isolated: int

    @property
    def graph(self) -> ChunkedGraph:
        return self.dataset.graph

    @property
    def dataset(self) -> Dataset:
        return Dataset(absolute(parse_config(self.raw)), str(self.folder / "ours"))


def make_foreign(raw: dict[str, Any]) -> Foreign:
    """Their ingest of a given watershed."""
    source, graph_config = raw["data_source"], raw["graph_config"]
    grid = ChunkGrid(read_info(source["WATERSHED"]).bounds, tuple(graph_config["CHUNK_SIZE"]))
    layout = IdLayout(grid.n_layers, graph_config["SPATIAL_BITS"])
    files = [
        read_chunk_files(source["EDGES"], source["COMPONENTS"], (x, y, z)) for x, y, z in grid.coordinates(2).tolist()
    ]
    active = {edge for file in files for edge in file.active}
    named = {sv for file in files for part in file.edges.values() for pair in part.pairs for sv in pair}
    client = open_client(graph_config["ID_PREFIX"] + raw["graph_id"])
    foreign = Foreign(client, layout, active, sorted(named), raw)
    foreign.create()
    foreign.ingest()
    return foreign


def make_world(folder: Path, raw: dict[str, Any]) -> World:
    foreign = make_foreign(raw)
    active, named = foreign.active, set(foreign.supervoxels)
    time = foreign.began + timedelta(hours=1)
    roots = sorted({foreign.root(sv) for sv in named})
    a, b = min(foreign.hierarchy.leaves(roots[0])), min(foreign.hierarchy.leaves(roots[5]))
    merge = foreign.merge(a, b, time)
    foreign.log(
        CREATED, time + timedelta(minutes=1), AddedEdge=np.array([[a, b]], np.uint64), RootID=np.zeros(0, np.uint64)
    )
    foreign.log(EXCEPTION, time + timedelta(minutes=2), OperationException="ValueError('no')")
    undo = foreign.undo(merge, a, b, time + timedelta(minutes=3))
    active_of = {sv: [e for e in active if sv in e] for sv in foreign.supervoxels}
    cut = max(foreign.supervoxels, key=lambda sv: len(active_of[sv]))
    pieces = foreign.split_supervoxel(cut, time + timedelta(minutes=4))
    isolated = next(iter(_ids_of(raw) - named))
    return World(foreign, raw, folder, (a, b), merge, undo, time, time + timedelta(minutes=3), cut, pieces, isolated)


def _ids_of(raw: dict[str, Any]) -> set[int]:
    return set(np.unique(open_volume(raw["data_source"]["WATERSHED"]).read().result()).tolist()) - {0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, bigtable_emulator: str) -> Iterator[World]:
    need(EM.exists(), f"real data ({EM.name})")
    folder = tmp_path_factory.mktemp("theirs")
    made = make_world(folder, make_watershed(folder, CASES["isotropic"]))
    yield made
    made.foreign.client.close()
    made.dataset.table.drop()


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory, bigtable_emulator: str) -> Iterator[Foreign]:
    """A graph that they ingested, and nobody has edited."""
    need(EM.exists(), f"real data ({EM.name})")
    folder = tmp_path_factory.mktemp("uncut")
    foreign = make_foreign(make_watershed(folder, CASES["isotropic"]))
    yield foreign
    foreign.client.close()


@pytest.fixture
def attached(world: World, cli: CommandLine, tmp_path: Path) -> CommandLine:
    (tmp_path / "graph.yaml").write_text(yaml.safe_dump(world.raw))
    said = cli("attach", tmp_path / "graph.yaml")
    assert said.code == 0, said.err
    return cli


# -- the edit feed ----------------------------------------------------------------------------------------------------


def test_their_edits_are_events_as_ours_are(world: World) -> None:
    graph = world.graph
    merge, undo, split = events_after(graph, 0)
    assert [merge.operation_id, undo.operation_id] == [world.merge, world.undo]
    assert [event.kind for event in (merge, undo, split)] == ["merge", "undo", "split"]
    assert {event.user for event in (merge, undo, split)} == {"them"}
    assert undo.about == world.merge
    assert undo.old_roots.tolist() == merge.new_roots.tolist()
    assert split.supervoxels.tolist() == [[world.cut, piece] for piece in sorted(world.pieces)]
    home = graph.layout.coordinates(np.uint64(world.cut))
    assert split.boxes == (graph.grid.box(2, home),), "their log does not tell the voxels: the chunk of the supervoxel"
    for event in (merge, undo, split):
        below = [leaf for leaf in queries.leaves(graph, event.new_layer2).values.tolist() if leaf not in world.pieces]
        assert set(below) <= set(queries.leaves(graph, event.new_roots).values.tolist()) | {world.cut}
        assert set(graph.layout.layers(np.concatenate([event.new_layer2, event.old_layer2])).tolist()) == {2}


# -- opening ----------------------------------------------------------------------------------------------------------


def test_their_meta_says_what_the_graph_is(world: World) -> None:
    meta = world.graph.meta
    assert world.raw["graph_id"] == meta.graph_config.ID
    assert timedelta(minutes=5) == meta.graph_config.ROOT_LOCK_EXPIRY
    assert meta.chunk_size == tuple(world.raw["graph_config"]["CHUNK_SIZE"])
    assert meta.custom_data["operation_id"] == 7
    assert world.graph.layout == world.foreign.layout


def test_attach_writes_nothing(world: World, cli: CommandLine, tmp_path: Path) -> None:
    before = dump(world.dataset.table)
    (tmp_path / "graph.yaml").write_text(yaml.safe_dump(world.raw))
    assert cli("attach", tmp_path / "graph.yaml").code == 0
    assert dump(world.dataset.table) == before


# -- an ingest that is not ours ---------------------------------------------------------------------------------------


def test_status_of_their_graph_does_not_wait_for_an_ingest(world: World, attached: CommandLine) -> None:
    said = attached("status", world.raw["graph_id"], "--json")
    assert said.code == 0, said.err
    rows = {row["name"]: row for row in json.loads(said.out)["stages"]}
    for layer in range(2, world.foreign.layout.n_layers + 1):
        assert rows[f"layer {layer}"]["state"] == "built elsewhere"
    assert "waiting" not in attached("status", world.raw["graph_id"]).out.split("fork")[0].split("voxels")[0]


@pytest.mark.parametrize("mode", ["graph", "both"])
def test_ingest_leaves_the_rows_of_their_graph_as_they_are(
    world: World, attached: CommandLine, tmp_path: Path, mode: str
) -> None:
    before = dump(world.dataset.table)
    said = attached("ingest", tmp_path / "graph.yaml", "--mode", mode, "--workers", "1")
    assert "Traceback" not in said.err
    assert said.code == 1
    assert "other software" in said.err
    assert dump(world.dataset.table) == before


def test_voxels_that_would_lack_their_pieces_are_not_made(world: World, attached: CommandLine, tmp_path: Path) -> None:
    said = attached("ingest", tmp_path / "graph.yaml", "--mode", "voxels", "--workers", "1")
    assert said.code == 1
    assert "split supervoxels" in said.err
    assert not Fork(world.dataset.watershed_url, world.raw["graph_id"]).exists()


def test_a_graph_of_theirs_without_pieces_gets_voxels(uncut: Foreign, cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "graph.yaml").write_text(yaml.safe_dump(uncut.raw))
    graph_id = uncut.raw["graph_id"]
    assert cli("attach", tmp_path / "graph.yaml").code == 0
    said = cli("ingest", tmp_path / "graph.yaml", "--mode", "voxels", "--workers", "1")
    assert said.code == 0, said.err
    assert json.loads(cli("status", graph_id, "--json").out)["complete"]
    at = ",".join(map(str, ISOLATED - 4 + CASES["isotropic"].offset))
    [found] = json.loads(cli("roots", graph_id, "--at", at, "--json").out)
    assert found["root"] == uncut.root(found["supervoxel"])


def test_a_base_that_they_made_is_refused_and_kept(uncut: Foreign, cli: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "watershed"
    shutil.copytree(uncut.raw["data_source"]["WATERSHED"].removeprefix("file://"), folder)
    shutil.rmtree(folder / "ocdbt", ignore_errors=True)
    theirs = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/ocdbt/base/"}).result()
    theirs.write("info", b"cut").result()
    raw = {**uncut.raw, "graph_id": "other", "data_source": {**uncut.raw["data_source"], "WATERSHED": str(folder)}}
    (tmp_path / "graph.yaml").write_text(yaml.safe_dump(raw))
    said = cli("ingest", tmp_path / "graph.yaml", "--mode", "voxels", "--workers", "1")
    assert said.code == 1
    assert "PyChunkedGraph keeps split supervoxels there" in said.err
    assert theirs.read("info").result().value == b"cut"


def test_a_layer_of_their_graph_is_not_purged(world: World, attached: CommandLine) -> None:
    before = dump(world.dataset.table)
    said = attached("purge-layer", world.raw["graph_id"], "2", "--yes")
    assert said.code == 1
    assert dump(world.dataset.table) == before


# -- asking -----------------------------------------------------------------------------------------------------------


def test_roots_now_are_theirs(world: World, attached: CommandLine) -> None:
    foreign = world.foreign
    live = [sv for sv in [*foreign.supervoxels, *world.pieces] if sv != world.cut]
    assert queries.roots(world.graph, live).tolist() == [foreign.root(sv) for sv in live]
    said = attached("roots", world.raw["graph_id"], *world.pieces, "--json")
    assert [row["root"] for row in json.loads(said.out)] == [foreign.root(sv) for sv in world.pieces]


def test_roots_of_the_past_follow_the_cells_of_that_time(world: World) -> None:
    a, b = world.merged
    between = world.merged_at + timedelta(minutes=1)
    before, merged, after = (
        queries.roots(world.graph, [a, b], at=at).tolist()
        for at in (world.merged_at - timedelta(minutes=1), between, world.undone_at + timedelta(minutes=1))
    )
    assert before[0] != before[1]
    assert merged[0] == merged[1]
    assert after[0] != after[1]
    assert not set(before) & set(after)


def test_a_piece_without_a_node_is_named_not_a_crash(world: World, attached: CommandLine) -> None:
    assert queries.roots(world.graph, [world.isolated], missing_ok=True).tolist() == [0]
    said = attached("roots", world.raw["graph_id"], world.isolated)
    assert said.code == 1
    assert str(world.isolated) in said.err


def test_leaves_hold_the_pieces_of_a_cut_supervoxel_and_no_orphan_is_reached(world: World) -> None:
    foreign = world.foreign
    roots = sorted({foreign.root(sv) for sv in [*foreign.supervoxels, *world.pieces] if sv != world.cut})
    found = queries.leaves(world.graph, roots)
    assert {int(sv) for sv in found.values} == {sv for sv in foreign.supervoxels if sv != world.cut} | set(world.pieces)
    assert len(np.unique(found.values)) == len(found.values)
    assert lineage.latest_roots(world.graph, roots).tolist() == roots
    layer_2 = queries.leaves(world.graph, roots, stop_layer=2).values
    assert not set(layer_2.tolist()) & set(foreign.orphans)


def test_edges_of_a_cut_supervoxel_are_complete_although_the_newest_compaction_is_not(world: World) -> None:
    """Also where the clock moved between the cells of its edges, affinities and areas."""
    foreign = world.foreign
    root = foreign.root(world.pieces[0])
    region = read_region(world.graph, NodeCache(world.graph), np.array([root], np.uint64), world.graph.grid.bounds)
    found = Edges(*(array[region.active] for array in region.edges.arrays))
    pairs = set(pairs_of(found))
    expected = {e for e in foreign.active if foreign.root(e[0]) == root}
    assert expected <= pairs
    assert not any(world.cut in pair for pair in pairs)
    of_cut = [
        (affinity, area)
        for p, affinity, area in zip(pairs_of(found), found.affinities.tolist(), found.areas.tolist(), strict=True)
        if world.pieces[0] in p and world.pieces[1] not in p and p in expected
    ]
    assert of_cut
    assert set(of_cut) == {(0.5, 1)}


def pairs_of(found: Edges) -> list[tuple[int, int]]:
    ends = found.node_ids1.tolist(), found.node_ids2.tolist()
    return [(min(pair), max(pair)) for pair in zip(*ends, strict=True)]


# -- history ----------------------------------------------------------------------------------------------------------


def test_operations_of_every_kind_are_read(world: World) -> None:
    operations = {o.operation_id: o for o in read_operations(world.graph)}
    assert [o.kind for o in operations.values()] == ["merge", "merge", "unknown", "undo", "split"]
    assert [int(o.status or 0) for o in operations.values()] == [0, CREATED, EXCEPTION, 0, 0]
    assert operations[3].exception == "ValueError('no')"
    assert len(operations[2].roots) == 0
    assert operations[world.merge].timestamp == world.merged_at
    assert operations[world.merge].roots.tolist() == [
        int(queries.roots(world.graph, [world.merged[0]], at=world.merged_at)[0])
    ]


def test_lineage_leads_from_the_ingest_to_the_present(world: World) -> None:
    a, b = world.merged
    first = queries.roots(world.graph, [a, b], at=world.merged_at - timedelta(seconds=1))
    now = queries.roots(world.graph, [a, b])
    tree = lineage.lineage(world.graph, first)
    assert len(tree.edges) == 4 + (2 if world.foreign.root(world.pieces[0]) in now else 0)
    assert {world.merge, world.undo} <= set(tree.operations.tolist())
    assert set(now.tolist()) <= set(lineage.latest_roots(world.graph, first[:1]).tolist())


def test_an_operation_of_ours_comes_after_theirs(world: World) -> None:
    assert counters.last_operation_id(world.dataset.table) == 5


# -- proof ------------------------------------------------------------------------------------------------------------

GRAPH_CHECKS = [
    "meta",
    "ids",
    "hierarchy",
    "edge_files",
    "cross_edges",
    "atomic_cross_edges",
    "connectivity",
    "inf_edges",
    "progress",
    "operations",
]


def test_their_graph_is_proved_sound(world: World) -> None:
    report = verify_dataset(world.dataset, checks=GRAPH_CHECKS)
    results = {result.name: result for result in report.results}
    assert "other software" in (results["progress"].skipped or "")
    faults = [f for r in report.results for f in r.findings if f.severity == "error"]
    assert not faults, report.summary()


def test_what_their_ingest_left_behind_is_a_warning(world: World) -> None:
    report = verify_dataset(world.dataset, checks=["hierarchy"])
    assert report.ok
    [finding] = report.results[0].findings
    assert finding.count >= len(world.foreign.orphans)


# -- ids --------------------------------------------------------------------------------------------------------------


def test_no_id_of_theirs_is_given_out_again(world: World) -> None:
    """Their roots have numbers of a counter without shards, which the shards know nothing of."""
    layout, table = world.foreign.layout, world.dataset.table
    rows = world.foreign.client.read_nodes(start_id=np.uint64(1 << 56), end_id=np.uint64(0xFF << 56))
    known = {int(node) for node in rows}
    assert max(n - world.foreign.root_chunk for n in known if n >> 56 == layout.n_layers) > 0
    for chunk in np.unique(layout.chunks(np.array(sorted(known), np.uint64))).tolist():
        for shard in range(256) if chunk == world.foreign.root_chunk else [None]:
            first = counters.reserve(table, layout, chunk, 2, shard=shard)
            fresh = counters.node_ids(layout, chunk, first, 2).tolist()
            assert not known & set(fresh)


def test_a_shard_starts_above_the_roots_of_a_counter_without_shards(world: World) -> None:
    layout, table = world.foreign.layout, world.dataset.table
    chunk = world.foreign.root_chunk
    top = 5000
    world.foreign.client.set_max_node_id(np.uint64(chunk), np.uint64(chunk | top))
    first = counters.reserve(table, layout, chunk, 3, shard=17)
    assert first > top
    assert first % 256 == 17
    again = counters.reserve(table, layout, chunk, 1, shard=17)
    assert again == first + 3 * 256
