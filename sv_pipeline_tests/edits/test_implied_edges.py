"""Nodes near nodes of another colour: comparing all pairs, and looking in neighbouring chunks, give the same."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.edits.plan import implied_edges
from sv_pipeline.ids import IdLayout

LAYOUT = IdLayout(6)
NODES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 3), st.tuples(*[st.integers(0, 7)] * 3), st.integers(2, 3)), max_size=30
)


@given(NODES, st.integers(2, 3), st.integers(1, 3))
def test_few_nodes_are_compared_as_many_are(
    nodes: list[tuple[int, int, tuple[int, int, int], int]], layer: int, reach: int
) -> None:
    groups = np.array([group for group, *_ in nodes], np.int64)
    colours = np.array([colour for _, colour, *_ in nodes], np.uint64)
    layers = np.array([min(own, layer) for *_, own in nodes], np.int64)
    ids = [LAYOUT.node_ids(LAYOUT.chunk_ids(a, np.array(at) >> (a - 2)), i + 1) for i, ((_, _, at, _), a) in
           enumerate(zip(nodes, layers.tolist(), strict=True))]  # fmt: skip
    tops = 3 + groups
    found = []
    for few in (0, 700):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(implied_edges, "FEW_NODES", few)
            graph = SimpleNamespace(layout=LAYOUT)
            arrays = groups, colours, np.array(ids, np.uint64), tops
            found.append(implied_edges._near_others(graph, *arrays, layer, reach).tolist())  # type: ignore[arg-type]
    assert found[0] == found[1]
