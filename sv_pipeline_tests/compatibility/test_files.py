"""The watershed volume, edge and component files: in formats that PyChunkedGraph reads, and meaning what it takes."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
from cloudvolume import CloudVolume

from sv_pipeline_tests.compatibility.conftest import ISOLATED, Ingested
from sv_pipeline_tests.reference_data import contacts


def test_cloud_volume_reads_the_watershed(ingested: Ingested) -> None:
    volume = CloudVolume(ingested.raw["data_source"]["WATERSHED"], mip=0, progress=False)
    assert volume.dtype == "uint64"
    assert volume.layer_type == "segmentation"
    assert volume.encoding == "compressed_segmentation"
    assert tuple(volume.voxel_offset) == ingested.case.offset
    assert tuple(volume.volume_size) == ingested.case.shape == ingested.voxels.shape
    assert volume.resolution.tolist() == [16, 16, 40]


def test_a_voxel_holds_an_id_of_the_chunk_that_it_lies_in(ingested: Ingested) -> None:
    """Chunks are counted from the volume's corner, not from the origin."""
    voxels, bits = ingested.voxels, max(ingested.case.spatial_bits, ingested.layout.n_layers - 2)
    at = np.argwhere(voxels)
    ids = voxels[tuple(at.T)]
    assert (ids >> np.uint64(56) == 1).all()
    for axis in range(3):
        shift = np.uint64(56 - (axis + 1) * bits)
        coordinate = (ids >> shift) & np.uint64((1 << bits) - 1)
        np.testing.assert_array_equal(coordinate, at[:, axis] // ingested.case.chunk_size[axis])
    assert (ids & np.uint64((1 << (56 - 3 * bits)) - 1) > 0).all()


def test_edges_lie_in_the_file_and_under_the_kind_that_their_ends_say(ingested: Ingested) -> None:
    for coordinate, files in ingested.files.items():
        here = int(ingested.layout.chunk_ids(1, coordinate))
        for kind, edges in files.edges.items():
            assert {len(edges.node_ids2), len(edges.affinities), len(edges.areas)} == {len(edges)}
            assert (ingested.layout.chunks(edges.node_ids1) == here).all()
            assert ((ingested.layout.chunks(edges.node_ids2) == here) == (kind == "in")).all()
            assert (edges.node_ids1 != edges.node_ids2).all()
            assert (np.isinf(edges.affinities) == (kind == "cross")).all()
            assert kind != "cross" or (edges.areas == 1).all()


def test_edges_inside_are_listed_once_and_edges_between_chunks_in_both_files(ingested: Ingested) -> None:
    seen: dict[tuple[int, int], list[tuple[str, float, int]]] = defaultdict(list)
    for files in ingested.files.values():
        for kind, edges in files.edges.items():
            assert len(set(edges.pairs)) == len(edges)
            for pair, affinity, area in zip(edges.pairs, edges.affinities.tolist(), edges.areas.tolist(), strict=True):
                assert kind != "in" or pair[::-1] not in edges.pairs
                seen[min(pair), max(pair)].append((kind, affinity, area))
    for pair, rows in seen.items():
        assert len(rows) == (1 if rows[0][0] == "in" else 2), pair
        assert len(set(rows)) == 1, f"{pair} differs between both files"


def test_every_contact_is_an_edge_and_its_area_counts_faces(ingested: Ingested) -> None:
    finite, inf = {}, set()
    for files in ingested.files.values():
        inf |= {(min(p), max(p)) for p in files.edges["cross"].pairs}
        for kind in ("in", "between"):
            edges = files.edges[kind]
            finite |= {(min(p), max(p)): a for p, a in zip(edges.pairs, edges.areas.tolist(), strict=True)}
    with np.load(ingested.folder / "segmentation.npz") as file:
        labels = file["segmentation"]
    assert inf == touching_pieces(ingested, labels)
    faces = {pair: area for pair, area in contacts(ingested.voxels).items() if pair not in inf}
    corners = touching_pieces(ingested, labels // 3) - faces.keys() - inf
    assert finite == faces | dict.fromkeys(corners, 1)


def touching_pieces(ingested: Ingested, labels: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of supervoxels of one label (of three, with ``labels // 3``) that share a face, an edge or a corner."""
    found: set[tuple[int, int]] = set()
    for step in itertools.product((-1, 0, 1), repeat=3):
        here = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(step, labels.shape, strict=True))
        there = tuple(slice(max(0, d), n - max(0, -d)) for d, n in zip(step, labels.shape, strict=True))
        a, b = ingested.voxels[here], ingested.voxels[there]
        same = (labels[here] == labels[there]) & (a > 0) & (b > 0) & (a < b)
        found |= set(zip(a[same].tolist(), b[same].tolist(), strict=True))
    return found


def test_components_name_only_what_is_there_and_no_supervoxel_twice(ingested: Ingested) -> None:
    known = set(np.unique(ingested.voxels).tolist())
    for files in ingested.files.values():
        named = [sv for component in files.components for sv in component]
        assert len(set(named)) == len(named)
        assert set(named) <= known
        assert all(component for component in files.components)


def test_files_of_a_chunk_agree_with_those_of_its_neighbours_on_what_is_active(ingested: Ingested) -> None:
    by_chunk = {int(ingested.layout.chunk_ids(1, c)): files.active for c, files in ingested.files.items()}
    for coordinate, files in ingested.files.items():
        here = int(ingested.layout.chunk_ids(1, coordinate))
        for a, b in files.edges["between"].pairs + files.edges["cross"].pairs:
            there = int(ingested.layout.chunks(np.uint64(b)))
            pair = (min(a, b), max(a, b))
            assert (pair in by_chunk[here]) == (pair in by_chunk[there])


def test_the_data_has_what_these_tests_are_about(ingested: Ingested) -> None:
    edges = [files.edges for files in ingested.files.values()]
    for kind in ("in", "between", "cross"):
        assert sum(len(e[kind]) for e in edges) > 20
    active = ingested.active_edges
    between = {(min(p), max(p)) for e in edges for p in e["between"].pairs}
    assert between & active
    assert between - active
    isolated = int(ingested.voxels[tuple(ISOLATED)])
    assert not any(isolated in pair for e in edges for columns in e.values() for pair in columns.pairs)
