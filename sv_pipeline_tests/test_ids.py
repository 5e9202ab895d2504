"""The layout of ids: bit widths as PyChunkedGraph has them, nothing lost between coordinates and ids, cross layers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sv_pipeline.errors import ConfigError
from sv_pipeline.ids import DEFAULT_SPATIAL_BITS, IdLayout

Triple = tuple[int, int, int]


@st.composite
def layouts(draw: st.DrawFn, *, min_layers: int = 2) -> IdLayout:
    """Any layout that is allowed, those with the fewest spatial bits included."""
    n_layers = draw(st.integers(min_layers, 20))
    return IdLayout(n_layers, draw(st.sampled_from([max(1, n_layers - 2), 18]) | st.integers(n_layers - 2, 18)))


@st.composite
def places(draw: st.DrawFn) -> tuple[IdLayout, int, Triple, int]:
    """A layout, a layer, a chunk coordinate that it can name, and a segment."""
    layout = draw(layouts())
    layer = draw(st.integers(1, layout.n_layers))
    top = (1 << layout.bits_per_dimension(layer)) - 1
    axis = st.sampled_from([0, top]) | st.integers(0, top)
    highest = layout.max_segment(layer)
    segment = draw(st.sampled_from([0, 1, highest]) | st.integers(0, highest))
    return layout, layer, (draw(axis), draw(axis), draw(axis)), segment


# -- widths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_layers", "spatial_bits", "expected"),
    [
        (2, 10, [10, 10]),
        (3, 10, [10, 10, 1]),
        (4, 10, [10, 10, 1, 1]),
        (5, 10, [10, 10, 2, 1, 1]),
        (12, 10, [10, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1]),
        (4, 2, [2, 2, 1, 1]),
        (7, 5, [5, 5, 4, 3, 2, 1, 1]),
        (20, 18, [18, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1]),
    ],
)
def test_bits_per_dimension(n_layers: int, spatial_bits: int, expected: list[int]) -> None:
    layout = IdLayout(n_layers, spatial_bits)
    assert [layout.bits_per_dimension(layer) for layer in range(1, n_layers + 1)] == expected
    assert [layout.segment_bits(layer) for layer in range(1, n_layers + 1)] == [56 - 3 * b for b in expected]


def test_a_chunk_of_the_default_layout_has_room_for_67_million_supervoxels() -> None:
    assert IdLayout(12, DEFAULT_SPATIAL_BITS).max_segment(1) == 67_108_863


@pytest.mark.parametrize(
    ("n_layers", "spatial_bits"), [(1, 10), (0, 10), (256, 10), (13, 10), (4, 1), (5, 2), (12, 9), (20, 19), (3, 19)]
)
def test_a_layout_that_cannot_be_is_refused(n_layers: int, spatial_bits: int) -> None:
    with pytest.raises(ConfigError):
        IdLayout(n_layers, spatial_bits)


@pytest.mark.parametrize("layer", [0, -1, 6])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(ValueError, match=r"outside 1\.\.5"):
        IdLayout(5).bits_per_dimension(layer)


@given(layouts())
def test_every_chunk_of_a_layer_can_be_named_by_the_layer_above(layout: IdLayout) -> None:
    """Halving the highest coordinate gives one that fits."""
    for layer in range(2, layout.n_layers):
        top = (1 << min(layout.bits_per_dimension(layer), max(1, layout.n_layers - layer))) - 1
        assert top >> 1 < 1 << layout.bits_per_dimension(layer + 1)


# -- packing ----------------------------------------------------------------------------------------------------------


@given(places())
@example((IdLayout(12, 10), 1, (1023, 1023, 1023), 67_108_863))
@example((IdLayout(2, 10), 2, (0, 0, 0), 1))
@example((IdLayout(20, 18), 1, (262_143, 262_143, 262_143), 3))
def test_nothing_is_lost_between_coordinates_and_ids(place: tuple[IdLayout, int, Triple, int]) -> None:
    layout, layer, coordinate, segment = place
    chunk = layout.chunk_ids(layer, coordinate)
    node = layout.node_ids(chunk, segment)
    assert chunk.dtype == node.dtype == np.uint64
    assert int(layout.layers(node)) == layer
    assert tuple(layout.coordinates(node).tolist()) == coordinate
    assert int(layout.segments(node)) == segment
    assert int(layout.chunks(node)) == int(chunk)
    assert int(layout.segments(chunk)) == 0


@given(places())
@example((IdLayout(2, 0), 1, (0, 0, 0), 72_057_594_037_927_935))
def test_an_id_is_layer_x_y_z_and_segment_from_the_highest_bit_down(place: tuple[IdLayout, int, Triple, int]) -> None:
    layout, layer, coordinate, segment = place
    width = layout.bits_per_dimension(layer)
    text = f"{layer:08b}" + ("".join(f"{c:0{width}b}" for c in coordinate) if width else "")
    text += f"{segment:0{64 - len(text)}b}"
    assert int(layout.node_ids(layout.chunk_ids(layer, coordinate), segment)) == int(text, 2)


@given(st.data(), layouts())
def test_many_ids_of_any_layers_at_once_are_as_one_by_one(data: st.DataObject, layout: IdLayout) -> None:
    ids = []
    for layer in data.draw(st.lists(st.integers(1, layout.n_layers), max_size=8)):
        top = (1 << layout.bits_per_dimension(layer)) - 1
        coordinate = data.draw(st.tuples(*[st.integers(0, top)] * 3))
        ids.append(int(layout.node_ids(layout.chunk_ids(layer, coordinate), layout.max_segment(layer))))
    many = np.array(ids, np.uint64)
    for function in (layout.layers, layout.segments, layout.chunks):
        assert function(many).tolist() == [function(np.uint64(i)).tolist() for i in ids]
    assert layout.coordinates(many).shape == (len(ids), 3)
    assert layout.coordinates(many).tolist() == [layout.coordinates(np.uint64(i)).tolist() for i in ids]


@given(layouts())
def test_a_coordinate_that_does_not_fit_is_refused_not_folded_into_another_chunk(layout: IdLayout) -> None:
    for layer in {1, 2, layout.n_layers}:
        beyond = 1 << layout.bits_per_dimension(layer)
        for axis in range(3):
            with pytest.raises(ConfigError, match="does not fit"):
                layout.chunk_ids(layer, np.eye(3, dtype=np.int64)[axis] * beyond)


def test_a_negative_coordinate_is_refused() -> None:
    with pytest.raises((ConfigError, OverflowError)):
        IdLayout(5).chunk_ids(2, np.array([-1, 0, 0]))


@given(places(), places())
def test_ids_of_a_chunk_follow_each_other(one: tuple[IdLayout, int, Triple, int], other: tuple) -> None:
    """Rows of a chunk are one range of keys: no id of another chunk of the layout is among them."""
    layout, layer, coordinate, segment = one
    chunk = int(layout.chunk_ids(layer, coordinate))
    assert chunk <= int(layout.node_ids(chunk, segment)) <= chunk + layout.max_segment(layer)
    layer_2, coordinate_2 = other[1], other[2]
    if layer_2 <= layout.n_layers and max(coordinate_2) < 1 << layout.bits_per_dimension(layer_2):
        chunk_2 = int(layout.chunk_ids(layer_2, coordinate_2))
        inside = chunk <= chunk_2 <= chunk + layout.max_segment(layer)
        assert inside == ((layer, coordinate) == (layer_2, coordinate_2))


# -- cross layers -----------------------------------------------------------------------------------------------------


@st.composite
def pairs_of_chunks(draw: st.DrawFn) -> tuple[IdLayout, Triple, Triple]:
    """Two chunks of a grid that has as many layers as the layout; often neighbours."""
    layout = draw(layouts())
    top = (1 << (layout.n_layers - 2)) - 1
    one = draw(st.tuples(*[st.integers(0, top)] * 3))
    near = st.tuples(*[st.integers(max(0, c - 1), min(top, c + 1)) for c in one])
    return layout, one, draw(near | st.tuples(*[st.integers(0, top)] * 3))


@given(pairs_of_chunks())
@example((IdLayout(2), (0, 0, 0), (0, 0, 0)))
@example((IdLayout(3), (0, 0, 0), (1, 1, 1)))
@example((IdLayout(12), (511, 0, 0), (512, 0, 0)))
@example((IdLayout(12), (1023, 1023, 1023), (0, 0, 0)))
@example((IdLayout(20, 18), (131_071, 5, 5), (131_072, 5, 5)))
def test_cross_layer_is_one_more_than_the_number_of_layers_that_differ(case: tuple[IdLayout, Triple, Triple]) -> None:
    layout, one, other = case
    a, b = (layout.node_ids(layout.chunk_ids(1, [c]), 1) for c in (one, other))
    differing = sum(
        any(p >> (layer - 2) != q >> (layer - 2) for p, q in zip(one, other, strict=True))
        for layer in range(2, layout.n_layers)
    )
    assert layout.cross_layers(a, b).tolist() == layout.cross_layers(b, a).tolist() == [1 + differing]


@given(pairs_of_chunks())
def test_an_edge_joins_different_chunks_at_its_cross_layer_and_one_above(case: tuple[IdLayout, Triple, Triple]) -> None:
    layout, one, other = case
    a, b = (layout.chunk_ids(1, [c]) for c in (one, other))
    [layer] = layout.cross_layers(a, b).tolist()
    assert 1 <= layer <= max(1, layout.n_layers - 1)

    def parent(coordinate: Triple, at: int) -> tuple[int, ...]:
        return tuple(c >> max(0, at - 2) for c in coordinate)

    assert parent(one, layer + 1) == parent(other, layer + 1)
    assert layer == 1 or parent(one, layer) != parent(other, layer)


def test_no_pairs_have_no_cross_layers() -> None:
    none = np.zeros(0, np.uint64)
    assert IdLayout(5).cross_layers(none, none).shape == (0,)
