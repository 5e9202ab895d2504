"""How the seeds of a side are joined."""

from __future__ import annotations

from typing import Any

import dijkstra3d
import edt
import numpy as np
from hypothesis import given, reject
from hypothesis import strategies as st

from sv_pipeline.algorithms.voxel_cut.seeds import SeedPair, join_seeds
from sv_pipeline_tests.algorithms.test_voxel_cut import masks


@given(mask=masks(), data=st.data())
def test_the_way_between_two_seeds_is_that_of_a_search_of_the_whole_mask(mask: np.ndarray, data: Any) -> None:
    places = np.argwhere(mask)
    if len(places) < 3:
        reject()
    chosen = data.draw(st.lists(st.integers(0, len(places) - 1), min_size=3, max_size=3, unique=True))
    start, goal, other = places[chosen]
    depth = edt.edt(mask.view(np.uint8), black_border=True)[mask]
    cost = np.full(mask.shape, np.inf, np.float32, order="F")
    cost[mask] = 1 / depth
    cost[tuple(other)] = np.inf
    way = dijkstra3d.path_from_parents(dijkstra3d.parental_field(cost, tuple(start), connectivity=26), tuple(goal))
    if not (way == start).all(axis=1).any():
        reject()  # the other seed is in the only way
    joined = join_seeds(mask, depth, mask, SeedPair(np.stack([start, goal]), other[None]))
    np.testing.assert_array_equal(joined.first, np.unique(way, axis=0))
    np.testing.assert_array_equal(joined.second, other[None])
