"""What kvdbclient, through which PyChunkedGraph reads, finds in a table that was ingested here: item by item."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from google.cloud import bigtable
from kvdbclient import attributes
from kvdbclient.base import DEFAULT_COLUMN_FAMILIES

from sv_pipeline_tests.compatibility.conftest import ISOLATED, Ingested

Node = int
ZSTD = b"\x28\xb5\x2f\xfd"


@pytest.fixture(scope="module")
def cells(ingested: Ingested) -> dict[bytes, dict[str, dict[bytes, list[Any]]]]:
    """Every cell of the table, undecoded: key, family, qualifier, cells."""
    return {key: row.cells for key, row in ingested.client.read_all_rows().rows.items()}


# -- rows and columns -------------------------------------------------------------------------------------------------


def test_families_and_their_garbage_rules_are_those_of_kvdbclient(ingested: Ingested) -> None:
    admin = bigtable.Client(project="project", admin=True)
    families = admin.instance("instance").table(ingested.dataset.table.name).list_column_families()
    assert set(families) == {"0", "1", "2", "3", "4"} == {f.family_id for f in DEFAULT_COLUMN_FAMILIES}
    rules = {name: family.gc_rule for name, family in families.items()}
    assert rules["1"].max_num_versions == 1
    assert rules["3"].max_age == timedelta(days=365)
    assert not any(rules[name] for name in "024")


def test_keys_are_of_known_kinds_and_only_our_own_rows_hold_our_own_columns(cells: dict[bytes, Any]) -> None:
    kinds = defaultdict(set)
    for key, families in cells.items():
        columns = {(family, qualifier) for family, by in families.items() for qualifier in by}
        if key.startswith((b"sv_pipeline:ingest:", b"sv_pipeline:counts")):
            kinds[key.split(b":")[1].decode()] |= columns
            continue
        for family, qualifier in columns:
            attributes.from_key(family, qualifier)  # KeyError for one that it does not know
        if key in {b"meta", b"version"}:
            kinds["meta"] |= columns
        elif key.startswith(b"i"):
            chunk, _, shard = key[1:].partition(b"_")
            assert len(chunk) == 20
            assert not shard or (shard == b"%d" % int(shard) and int(shard) < 256)
            kinds["counter"] |= columns
        else:
            assert len(key) == 20
            assert key.isdigit()
            assert int(key) >> 56 >= 1
            kinds["node"] |= {(family, qualifier.rstrip(b"0123456789")) for family, qualifier in columns}
    assert kinds["ingest"] == {("1", b"reservation"), ("1", b"done")}
    assert kinds["counts"] == {("1", b"kept"), ("1", b"counts"), ("1", b"states")}
    assert kinds["meta"] == {("0", b"meta"), ("0", b"version")}
    assert kinds["counter"] == {("1", b"counter")}
    assert kinds["node"] == {
        ("0", b"parents"),
        ("0", b"children"),
        ("3", b"atomic_cross_edges_"),
        ("4", b"cross_edges_"),
    }


def test_no_scan_of_kvdbclient_meets_our_own_rows(ingested: Ingested) -> None:
    client = ingested.client
    assert len(client.read_nodes(start_id=np.uint64(0), end_id=np.uint64(2**64 - 1), end_id_inclusive=True)) == len(
        ingested.nodes
    )
    assert not client.read_nodes(start_id=np.uint64(0), end_id=np.uint64(2**64 - 1), fake_edges=True)
    assert client.read_log_entries() == {}
    assert client.read_log_entry(np.uint64(1)) == ({}, None)
    assert client.read_table_version() == "3.1.7"


def test_edges_and_children_are_compressed_and_parents_are_not(cells: dict[bytes, Any]) -> None:
    for key, families in cells.items():
        if not key.isdigit():
            continue
        for family, by_column in families.items():
            for qualifier, versions in by_column.items():
                value = versions[0].value
                assert (qualifier == b"parents") == (len(value) == 8 and not value.startswith(ZSTD))
                assert value.startswith(ZSTD) or qualifier == b"parents", (family, qualifier)


def test_each_cell_of_a_node_is_written_once_and_in_whole_milliseconds(cells: dict[bytes, Any]) -> None:
    for key, families in cells.items():
        if key.isdigit():
            for by_column in families.values():
                for versions in by_column.values():
                    assert len(versions) == 1
                    assert versions[0].timestamp % 1000 == 0


# -- the graph --------------------------------------------------------------------------------------------------------


def parent_of(ingested: Ingested, node: Node) -> Node | None:
    found = ingested.nodes[node].get(attributes.Hierarchy.Parent)
    return int(found[0].value) if found else None


def children_of(ingested: Ingested, node: Node) -> list[Node]:
    return ingested.nodes[node][attributes.Hierarchy.Child][0].value.tolist()


def smallest_leaf(ingested: Ingested) -> Callable[[Node], tuple[int, int]]:
    """Names nodes by layer and smallest supervoxel, so that ids do not matter."""
    known: dict[Node, tuple[int, int]] = {}

    def name(node: Node) -> tuple[int, int]:
        if node not in known:
            below = [] if node >> 56 == 1 else children_of(ingested, node)
            known[node] = (node >> 56, min((name(child)[1] for child in below), default=node))
        return known[node]

    return name


def test_children_of_every_node_are_those_of_the_definition(ingested: Ingested) -> None:
    name, expected = smallest_leaf(ingested), ingested.hierarchy
    names: dict[Node, tuple[int, int]] = {}

    def expected_name(node: Node) -> tuple[int, int]:
        if node not in names:
            below = expected.children.get(node, [])
            names[node] = (node >> 56, min((expected_name(child)[1] for child in below), default=node))
        return names[node]

    found = {name(n): {name(c) for c in children_of(ingested, n)} for n in ingested.nodes if n >> 56 > 1}
    assert found == {
        expected_name(n): {expected_name(c) for c in children} for n, children in expected.children.items()
    }
    parents = {name(n): parent_of(ingested, n) for n in ingested.nodes}
    assert {n: p and name(p) for n, p in parents.items() if p} == {
        expected_name(child): expected_name(parent) for child, parent in expected.parents.items()
    }
    assert {n[0] for n, p in parents.items() if p is None} == {ingested.layout.n_layers}


def test_ids_name_the_chunk_that_the_node_is_in(ingested: Ingested) -> None:
    layout, grid = ingested.layout, ingested.dataset.grid
    for node in ingested.nodes:
        parent = parent_of(ingested, node)
        assert (layout.coordinates(np.uint64(node)) < grid.shape(max(node >> 56, 2))).all()
        if parent is not None:
            steps = (parent >> 56) - max(node >> 56, 2)
            inside = layout.coordinates(np.uint64(node)) >> steps
            assert inside.tolist() == layout.coordinates(np.uint64(parent)).tolist()


def ancestor(ingested: Ingested, node: Node, layer: int) -> Node:
    """Highest ancestor with a layer of at most ``layer``."""
    while (parent := parent_of(ingested, node)) is not None and parent >> 56 <= layer:
        node = parent
    return node


def cross_layer(ingested: Ingested, a: Node, b: Node) -> int:
    one, other = (ingested.layout.coordinates(np.uint64(sv)) for sv in (a, b))
    return 1 + sum((one >> s != other >> s).any() for s in range(ingested.layout.n_layers - 2))


def test_atomic_cross_edges_of_layer_2_are_the_active_edges_that_leave_it(ingested: Ingested) -> None:
    expected: dict[tuple[Node, int], set[tuple[int, int]]] = defaultdict(set)
    for pair in ingested.active_edges:
        layer = cross_layer(ingested, *pair)
        for a, b in (pair, pair[::-1]) if layer > 1 else ():
            expected[ancestor(ingested, a, 2), layer].add((a, b))
    assert edges_of(ingested, attributes.Connectivity.AtomicCrossChunkEdge) == dict(expected)


def test_cross_edges_are_complete_at_every_layer(ingested: Ingested) -> None:
    """PyChunkedGraph's edits trust them: [n, p], p the highest ancestor of the partner up to the layer of n."""
    expected: dict[tuple[Node, int], set[tuple[int, int]]] = defaultdict(set)
    for pair in ingested.active_edges:
        layer = cross_layer(ingested, *pair)
        for a, b in (pair, pair[::-1]) if layer > 1 else ():
            for own in range(2, layer + 1):
                node = ancestor(ingested, a, own)
                if node >> 56 == own:
                    expected[node, layer].add((node, ancestor(ingested, b, own)))
    assert edges_of(ingested, attributes.Connectivity.CrossChunkEdge) == dict(expected)


def edges_of(ingested: Ingested, columns: Any) -> dict[tuple[Node, int], set[tuple[int, int]]]:
    found = {}
    for node, row in ingested.nodes.items():
        for layer in range(20):
            if columns[layer] in row:
                value = row[columns[layer]][0].value
                assert value.dtype == np.uint64
                assert value.shape[1:] == (2,)
                found[node, layer] = {(int(a), int(b)) for a, b in value}
                assert len(found[node, layer]) == len(value) > 0
    return found


def test_a_piece_that_touches_nothing_has_a_root_of_its_own(ingested: Ingested) -> None:
    supervoxel = np.uint64(ingested.voxels[tuple(ISOLATED)])
    chain = ingested.client.root_ext.get_root(supervoxel, get_all_parents=True)
    assert [int(node) >> 56 for node in chain] == [1, 2, ingested.layout.n_layers]
    for node, below in zip(chain[1:], chain, strict=False):
        assert children_of(ingested, int(node)) == [int(below)]


def test_kvdbclient_finds_every_root(ingested: Ingested) -> None:
    """It computes the number of layers from the pickled meta and the watershed by itself."""
    supervoxels = np.unique(ingested.voxels)[1:]
    assert (ingested.voxels == 0).any()
    roots = ingested.client.root_ext.get_roots(supervoxels)
    assert ((roots >> np.uint64(56)) == ingested.layout.n_layers).all()
    assert len(np.unique(roots)) == len({ingested.hierarchy.root(int(sv), ingested.layout) for sv in supervoxels})
    assert ingested.client.root_ext.is_latest_roots(roots).all()


# -- times ------------------------------------------------------------------------------------------------------------


def test_no_node_is_newer_than_its_parent_and_both_directions_carry_one_time(ingested: Ingested) -> None:
    now = datetime.now(UTC)
    for node, row in ingested.nodes.items():
        parent = parent_of(ingested, node)
        if parent is None:
            continue
        made = ingested.nodes[parent][attributes.Hierarchy.Child][0].timestamp
        assert made <= now
        assert row[attributes.Hierarchy.Parent][0].timestamp == made
        if node >> 56 > 1:
            assert row[attributes.Hierarchy.Child][0].timestamp < made


def test_at_any_time_a_chain_of_parents_has_no_gap(ingested: Ingested) -> None:
    """Read as of the creation of a node, everything below it is there."""
    for node in ingested.nodes:
        if node >> 56 == ingested.layout.n_layers:
            made = ingested.nodes[node][attributes.Hierarchy.Child][0].timestamp
            leaf = node
            while leaf >> 56 > 1:
                leaf = children_of(ingested, leaf)[0]
            assert int(ingested.client.root_ext.get_root(np.uint64(leaf), time_stamp=made)) == node
            return


# -- meta -------------------------------------------------------------------------------------------------------------


class Strict(pickle.Unpickler):
    """Only what PyChunkedGraph's own meta names."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.asked: list[tuple[str, str]] = []

    def find_class(self, module: str, name: str) -> Any:
        self.asked.append((module, name))
        return timedelta if (module, name) == ("datetime", "timedelta") else type(name, (Recorded,), {})


class Recorded:
    """An object out of a pickle: its arguments, then its state."""

    def __new__(cls, *arguments: Any) -> Recorded:
        self = object.__new__(cls)
        self.arguments = arguments
        return self


def test_the_meta_is_the_pickle_that_pychunkedgraph_makes(ingested: Ingested, cells: dict[bytes, Any]) -> None:
    data = cells[b"meta"]["0"][b"meta"][0].value
    assert next(pickletools.genops(data))[1] == 4
    reader = Strict(data)
    meta = reader.load()
    module = "pychunkedgraph.graph.meta"
    assert set(reader.asked) == {
        (module, "ChunkedGraphMeta"),
        (module, "GraphConfig"),
        (module, "DataSource"),
        ("datetime", "timedelta"),
    }
    graph_config, data_source = meta.arguments
    assert meta.graph_config is graph_config
    assert meta.data_source is data_source
    raw = ingested.raw["data_source"]
    assert data_source.arguments == (raw["EDGES"].rstrip("/"), raw["COMPONENTS"], raw["WATERSHED"], 4, 0)
    graph_id, prefix, chunk_size, *numbers = graph_config.arguments
    assert (graph_id, prefix) == (ingested.raw["graph_id"], "compat_")
    assert chunk_size == list(ingested.case.chunk_size)
    assert type(chunk_size) is list
    assert {type(v) for v in chunk_size} == {int}
    assert numbers == [2, 8, ingested.case.spatial_bits, False, timedelta(minutes=5), 8]
    assert set(meta.custom_data) == {"seg", "ocdbt_config", "split_bounding_offset"}
    assert meta.custom_data["seg"]["ocdbt"] is True
    assert tuple(meta.custom_data["split_bounding_offset"]) == (240, 240, 24)


# -- counters ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cells")  # read before any id is given out, since other tests look at the counters
def test_kvdbclient_never_gives_out_an_id_that_exists(ingested: Ingested) -> None:
    layout, client = ingested.layout, ingested.client
    chunks = np.unique(layout.chunks(np.array(list(ingested.nodes), np.uint64)))
    for chunk in chunks:
        is_root = int(chunk) >> 56 == layout.n_layers
        for _ in range(40 if is_root else 1):
            fresh = client.create_node_ids(chunk, 3, root_chunk=is_root)
            assert not ingested.nodes.keys() & set(fresh.tolist())
            assert (layout.chunks(fresh) == chunk).all()


def test_roots_come_from_the_shards(ingested: Ingested, cells: dict[bytes, Any]) -> None:
    root_chunk = int(ingested.layout.chunk_ids(ingested.layout.n_layers, [0, 0, 0]))
    assert b"i%020d" % root_chunk not in cells
    segments = [node - root_chunk for node in ingested.nodes if node >> 56 == ingested.layout.n_layers]
    highest = {s % 256: max(t // 256 for t in segments if t % 256 == s % 256) for s in segments}
    for shard, number in highest.items():
        key = b"i%020d_%d" % (root_chunk, shard)
        assert int.from_bytes(cells[key]["1"][b"counter"][0].value, "big", signed=True) >= number >= 1


def test_the_counter_of_supervoxels_is_at_the_highest_in_use(ingested: Ingested, cells: dict[bytes, Any]) -> None:
    supervoxels = np.array([node for node in ingested.nodes if node >> 56 == 1], np.uint64)
    chunks = ingested.layout.chunks(supervoxels)
    for chunk in np.unique(chunks):
        highest = int(supervoxels[chunks == chunk].max() - chunk)
        value = cells[b"i%020d" % int(chunk)]["1"][b"counter"][0].value
        assert int.from_bytes(value, "big", signed=True) == highest
