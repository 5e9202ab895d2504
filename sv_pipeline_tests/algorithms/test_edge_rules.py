"""The rule of atomic edges: what breaks it is named, and what was stored before it was held can be cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.algorithms import edge_rules
from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.algorithms.multicut.graph import LocalGraph
from sv_pipeline.errors import InputError
from sv_pipeline.graph import edge_files
from sv_pipeline.graph.edge_files import ChunkEdges
from sv_pipeline.ids import IdLayout

LAYOUT, HERE, THERE = IdLayout(5, 10), (3, 1, 2), (4, 1, 2)
HERE_1, HERE_2 = (int(LAYOUT.chunk_ids(1, HERE)) | n for n in (1, 2))
THERE_1 = int(LAYOUT.chunk_ids(1, THERE)) | 1
BAD = (-0.5, float("nan"), float("-inf"), -1e-45)


def edges(*rows: tuple[int, int, float, int]) -> Edges:
    one, other, affinity, area = zip(*rows, strict=True)
    areas = np.array(area, np.int64).view(np.uint64)
    return Edges(np.array(one, np.uint64), np.array(other, np.uint64), np.array(affinity, np.float32), areas)


FAULTY: dict[str, tuple[ChunkEdges, str]] = {
    **{f"in, {bad}": (ChunkEdges(in_=edges((HERE_1, HERE_2, bad, 1))), "affinity is not a finite") for bad in BAD},
    **{
        f"between, {bad}": (ChunkEdges(between=edges((HERE_1, THERE_1, bad, 1))), "affinity is not a finite")
        for bad in BAD
    },
    **{
        f"cross, {bad}": (ChunkEdges(cross=edges((HERE_1, THERE_1, bad, 1))), "only they, have affinity inf")
        for bad in (*BAD, 1.0)
    },
    "in, inf": (ChunkEdges(in_=edges((HERE_1, HERE_2, np.inf, 1))), "only they, have affinity inf"),
    "between, inf": (ChunkEdges(between=edges((HERE_1, THERE_1, np.inf, 1))), "only they, have affinity inf"),
    "a negative area": (ChunkEdges(in_=edges((HERE_1, HERE_2, 1, -1))), "area is 2\\^63"),
    "a loop": (ChunkEdges(in_=edges((HERE_1, HERE_1, 1, 1))), "to itself"),
    "twice": (ChunkEdges(in_=edges((HERE_1, HERE_2, 1, 1), (HERE_1, HERE_2, 1, 1))), "more than once"),
    "twice, turned": (ChunkEdges(in_=edges((HERE_1, HERE_2, 1, 1), (HERE_2, HERE_1, 2, 1))), "more than once"),
    "twice, between": (ChunkEdges(between=edges((HERE_1, THERE_1, 1, 1), (HERE_1, THERE_1, 1, 1))), "more than once"),
    "twice, of two kinds": (
        ChunkEdges(between=edges((HERE_1, THERE_1, 1, 1)), cross=edges((HERE_1, THERE_1, np.inf, 1))),
        "more than once",
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_ingest_refuses_an_edge_that_breaks_the_rule_by_file_and_edge(case: str) -> None:
    chunk, said = FAULTY[case]
    with pytest.raises(InputError, match=rf"edge file a/file: edge \d+ - \d+ of affinity .*{said}") as error:
        edge_files.decode_edges(edge_files.encode_edges(chunk), where="a/file", layout=LAYOUT, coordinate=HERE)
    assert error.value.remedy


@pytest.mark.parametrize("affinity", [0.0, 1e-45, float(np.finfo(np.float32).max), 3])
def test_any_other_affinity_is_fine(affinity: float) -> None:
    chunk = ChunkEdges(
        in_=edges((HERE_1, HERE_2, affinity, 0)),
        cross=edges((HERE_1, THERE_1, np.inf, 1), (HERE_2, THERE_1, np.inf, 1)),
    )
    data = edge_files.encode_edges(chunk)
    assert edge_files.decode_edges(data, where="x", layout=LAYOUT, coordinate=HERE) == chunk == edge_files.usable(chunk)


@pytest.mark.filterwarnings("error")
@given(st.lists(st.floats(), max_size=8))
def test_the_rule_is_held_after_the_cast(values: list[float]) -> None:
    stored = edge_rules.as_stored(np.array(values, np.float64))
    expected = [not (-1e-46 < v < 3.4028235677973366e38) for v in values]  # a tinier one is stored as zero
    assert edge_rules.unusable_affinities(stored).tolist() == expected


@given(st.lists(st.floats(width=32), min_size=1, max_size=8), st.data())
def test_whatever_was_stored_can_be_cut(values: list[float], data: Any) -> None:
    affinities = np.array(values, np.float32)
    cross = np.array([data.draw(st.booleans()) for _ in values])
    usable = edge_rules.usable_affinities(affinities, cross)
    ids = np.arange(len(values) + 1, dtype=np.uint64)
    LocalGraph(np.stack([ids[:-1], ids[1:]], axis=-1), usable)
    assert not np.isinf(usable[~cross]).any()
    fine = ~edge_rules.unusable_affinities(affinities)
    assert np.array_equal(usable[fine], affinities[fine])


def test_repeats_are_counted_within_each_file() -> None:
    pairs = np.array([[1, 2], [2, 1], [3, 4], [1, 2], [3, 4]], np.uint64)
    assert edge_rules.repeated(pairs).tolist() == [False, True, False, True, True]
    files = np.array([1, 2, 1, 1, 3], np.uint64)
    assert edge_rules.repeated(pairs, files).tolist() == [False, False, False, True, False]
    assert edge_rules.repeated(pairs[:0]).tolist() == []
