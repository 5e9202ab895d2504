from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.errors import InputError
from sv_pipeline.graph import edge_files as formats
from sv_pipeline.graph.edge_files import ChunkEdges
from sv_pipeline.ids import IdLayout
from sv_pipeline.storage import kv
from sv_pipeline_tests.properties import examples

LAYOUT = IdLayout(6)
HERE = (3, 1, 2)


def node(segment, chunk=HERE, layer=1):
    return int(LAYOUT.node_ids(LAYOUT.chunk_ids(layer, chunk), segment))


def edges(*rows):
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    return Edges(*(np.array(c, t) for c, t in zip(columns, (np.uint64, np.uint64, np.float32, np.uint64), strict=True)))


EXAMPLE = ChunkEdges(
    in_=edges((node(1), node(2), 0.25, 7)),
    between=edges((node(1), node(9, (4, 1, 2)), 0.5, 3)),
    cross=edges((node(2), node(4, (3, 1, 3)), np.inf, 1)),
)


@st.composite
def any_edges(draw):
    n = draw(st.integers(0, 5))
    u64 = arrays(np.uint64, n, elements=st.integers(0, 2**64 - 1))
    affinities = arrays(np.float32, n, elements=st.floats(0, width=32))
    return Edges(draw(u64), draw(u64), draw(affinities), draw(u64))


@examples(50)
@given(any_edges(), any_edges(), any_edges())
def test_edges_survive_writing_and_reading(a, b, c):
    chunk = ChunkEdges(a, b, c)
    assert formats.decode_edges(formats.encode_edges(chunk), where="x") == chunk


@examples(50)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1), min_size=1), max_size=5))
def test_components_survive_writing_and_reading(groups):
    found = formats.decode_components(formats.encode_components(groups), where="x")
    assert [ids.tolist() for ids in found] == groups


def test_the_bytes_are_those_of_the_wire_format():
    """Field numbers and types by hand: in = 1, cross = 2, between = 3; node_ids1 .. areas = 1 .. 4."""

    def part(n1, n2, affinity, area):
        values = np.uint64(n1).tobytes(), np.uint64(n2).tobytes(), np.float32(affinity).tobytes()
        fields = [*values, np.uint64(area).tobytes()]
        return b"".join(bytes([number << 3 | 2, len(v)]) + v for number, v in enumerate(fields, start=1))

    rows = [part(node(1), node(2), 0.25, 7), part(node(2), node(4, (3, 1, 3)), np.inf, 1)]
    rows.append(part(node(1), node(9, (4, 1, 2)), 0.5, 3))
    message = b"".join(bytes([number << 3 | 2, len(row)]) + row for number, row in enumerate(rows, start=1))
    assert zstandard.decompress(formats.encode_edges(EXAMPLE)) == message
    compressed = zstandard.ZstdCompressor(level=17).compress(message)
    assert formats.decode_edges(compressed, where="x", layout=LAYOUT, coordinate=HERE) == EXAMPLE
    # packed varints of field 1: 2, 5, 300, 1, 7
    components = bytes([0x0A, 6, 2, 5, 0xAC, 0x02, 1, 7])
    assert formats.encode_components([[5, 300], [7]]) == components


def test_files_are_named_by_chunk_and_a_missing_one_is_empty():
    url = "memory://formats_names/"
    formats.write_edges(url, HERE, EXAMPLE)
    formats.write_components(url, HERE, [[1, 2]])
    assert kv.list_keys(url) == ["components_3_1_2.proto", "edges_3_1_2.proto.zst"]
    found = formats.read_edges_many(url, [HERE, (0, 0, 0), HERE], layout=LAYOUT)
    assert found == [EXAMPLE, ChunkEdges(), EXAMPLE]
    assert formats.read_edges(url, HERE) == EXAMPLE
    assert [c.tolist() for c in formats.read_components(url, HERE)] == [[1, 2]]
    assert formats.read_components(url, (9, 9, 9)) == []
    assert formats.read_edges_many(url, np.empty((0, 3), int)) == []


def packed(**parts):
    """Bytes of an edge file with raw columns."""
    chunk = formats._messages()[0]()
    for name, columns in parts.items():
        for column, raw in columns.items():
            setattr(getattr(chunk, name), column, raw)
    return zstandard.compress(chunk.SerializeToString())


ONE = np.uint64(1).tobytes()
BROKEN_EDGES = {
    "truncated": formats.encode_edges(EXAMPLE)[:-3],
    "half": formats.encode_edges(EXAMPLE)[:30],
    "nothing": b"",
    "not compressed": b"hello world",
    "not protobuf": zstandard.compress(b"\xff\xff\xff"),
    "columns of different length": packed(in_chunk={"node_ids1": ONE}),
    "broken number": packed(in_chunk={"node_ids1": ONE[:7], "node_ids2": ONE[:7]}),
    "affinity that is no number": formats.encode_edges(ChunkEdges(in_=edges((node(1), node(2), np.nan, 1)))),
}


@pytest.mark.parametrize("name", BROKEN_EDGES)
def test_a_broken_edge_file_is_named_with_a_remedy(name):
    url = "memory://formats_broken/"
    kv.write_bytes(url, formats.edges_key(HERE), BROKEN_EDGES[name])
    with pytest.raises(InputError, match=r"formats_broken/edges_3_1_2") as caught:
        formats.read_edges(url, HERE, layout=LAYOUT)
    assert caught.value.remedy


WRONG_IDS = {
    "first end elsewhere": ChunkEdges(between=edges((node(1, (4, 1, 2)), node(2), 0.5, 1))),
    "in edge that leaves": ChunkEdges(in_=edges((node(1), node(2, (4, 1, 2)), 0.5, 1))),
    "between edge that stays": ChunkEdges(between=edges((node(1), node(2), 0.5, 1))),
    "cross edge to a node of layer 2": ChunkEdges(cross=edges((node(1), node(2, (4, 1, 2), 2), np.inf, 1))),
    "no segment": ChunkEdges(in_=edges((node(0), node(2), 0.5, 1))),
}


@pytest.mark.parametrize("name", WRONG_IDS)
def test_ids_that_do_not_belong_to_the_chunk_are_refused_when_the_layout_is_known(name):
    data = formats.encode_edges(WRONG_IDS[name])
    formats.decode_edges(data, where="x")
    with pytest.raises(InputError, match="1 edges do not belong to this chunk"):
        formats.decode_edges(data, where="x", layout=LAYOUT, coordinate=HERE)


@pytest.mark.parametrize("data", [b"\x0a\xff", b"\xff\xff", b"\x0a\x03\x05\x01\x02"])
def test_a_broken_component_file_is_named_with_a_remedy(data):
    with pytest.raises(InputError, match="component file some/place") as caught:
        formats.decode_components(data, where="some/place")
    assert caught.value.remedy
