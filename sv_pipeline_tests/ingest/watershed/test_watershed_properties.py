"""On any small volume the watershed says the same as a slow, independent look at every voxel."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sv_pipeline_tests.ingest.watershed import reference
from sv_pipeline_tests.ingest.watershed.helpers import Made, dataset
from sv_pipeline_tests.properties import examples

SIDE = st.integers(2, 6)
SHAPES = st.tuples(SIDE, SIDE, SIDE)
CHUNKS = st.tuples(*[st.integers(2, 4)] * 3)
OFFSETS = st.tuples(*[st.integers(-3, 70)] * 3)


@st.composite
def volumes(draw):
    shape = draw(SHAPES)
    highest = draw(st.integers(1, 6))
    return draw(arrays(np.uint16, shape, elements=st.integers(0, highest), fill=st.nothing()))


def make(labels, chunk_size, offset, objects=None):
    with tempfile.TemporaryDirectory() as folder:
        options = {}
        np.savez(Path(folder) / "source.npz", segmentation=labels)
        if objects is not None:
            rows = "\n".join(f"{label},{obj}" for label, obj in sorted(objects.items()))
            (Path(folder) / "objects.csv").write_text(f"label,object\n{rows}\n")
            options["agglomeration"] = Path(folder) / "objects.csv"
        return Made(dataset(Path(folder) / "source.npz", chunk_size, voxel_offset=offset, **options))


def id_of(made, piece):
    chunk, number = piece
    return int(made.plan.layout.node_ids(made.plan.layout.chunk_ids(1, chunk), number))


def compare(made, labels, objects, chunk_size):
    pieces = reference.supervoxels(labels, chunk_size)
    expected_volume = np.zeros(labels.shape, np.uint64)
    for voxel, piece in pieces.items():
        expected_volume[voxel] = id_of(made, piece)
    np.testing.assert_array_equal(made.volume, expected_volume)

    found, surface = made.all_edges(), reference.surfaces(pieces)
    expected = reference.contacts(labels, objects, pieces)
    assert len(found) == len(expected)
    for (a, b), (area, kind) in expected.items():
        fraction = np.float32(area / (1 + min(surface[a], surface[b])))
        row = (area, np.inf if kind == "cross" else float(fraction), kind)
        pair = tuple(sorted((id_of(made, a), id_of(made, b))))
        assert found[pair] == [row] * (1 if kind == "in" else 2)

    expected_roots = {frozenset(id_of(made, p) for p in part) for part in reference.roots(objects, pieces)}
    assert made.roots() == expected_roots


@examples(40)
@given(labels=volumes().filter(np.any), chunk_size=CHUNKS, offset=OFFSETS)
def test_without_agglomeration_roots_are_the_26_connected_pieces_of_labels(labels, chunk_size, offset):
    made = make(labels, chunk_size, offset)
    compare(made, labels, labels, chunk_size)


@examples(40)
@given(labels=volumes().filter(np.any), chunk_size=CHUNKS, data=st.data())
def test_with_agglomeration_roots_are_the_26_connected_pieces_of_objects(labels, chunk_size, data):
    names = [int(n) for n in np.unique(labels) if n]
    # Objects carry the same numbers as labels do, so that a lone label may meet an object of its own name.
    table = data.draw(st.dictionaries(st.sampled_from(names), st.integers(0, 6)))
    lookup = {0: 0} | {n: 100 + table[n] if table.get(n) else n for n in names}
    made = make(labels, chunk_size, (0, 0, 0), table)
    compare(made, labels, np.vectorize(lookup.__getitem__)(labels), chunk_size)
