"""Facts about labels, gathered chunk by chunk: as if all were known at once, at near linear cost."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.ingest.watershed.gathering import OverlapSums, SeenLabels

pairs = st.tuples(st.integers(1, 9), st.integers(0, 4), st.integers(1, 100))


@given(st.lists(st.lists(pairs, max_size=12), max_size=20))
def test_overlaps_are_summed_up_as_if_all_were_known_at_once(chunks: list[list[tuple[int, int, int]]]) -> None:
    sums, expected = OverlapSums(), Counter[tuple[int, int]]()
    for chunk in chunks:
        sums.add(*np.array(chunk, np.uint64).reshape(-1, 3).T)
        for label, shared, count in chunk:
            expected[label, shared] += count
    found = list(zip(*(array.tolist() for array in sums.total()), strict=True))
    assert found == [(*pair, count) for pair, count in sorted(expected.items())]


def test_the_work_for_overlaps_grows_hardly_faster_than_the_chunks() -> None:
    def work(n_chunks: int) -> float:
        sums, ones = OverlapSums(), np.ones(10, np.uint64)
        for i in range(n_chunks):
            sums.add(np.arange(10 * i, 10 * i + 10).astype(np.uint64), ones, ones)
        sums.total()
        return sums.merged / n_chunks

    assert work(4096) < 2.5 * work(64)


@given(st.lists(st.integers(1, 20), max_size=10), st.lists(st.lists(st.integers(1, 20), max_size=6), max_size=10))
def test_named_labels_that_occur_are_found_whatever_the_chunks_are(named: list[int], chunks: list[list[int]]) -> None:
    seen = SeenLabels(np.array(named, np.uint64))
    for chunk in chunks:
        seen.add(np.array(chunk, np.uint64))
    found, occurring = set(seen.found().tolist()), {label for chunk in chunks for label in chunk}
    assert found & set(named) == occurring & set(named)
    assert found <= occurring
    assert bool(found) == bool(occurring)
