"""Distinct values and their numbers are those of NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst

from sv_pipeline.algorithms.numbering import numbered


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint64])
@given(data=st.data())
def test_distinct_values_are_numbered_in_ascending_order(kind: type[np.integer], data: st.DataObject) -> None:
    limit = np.iinfo(kind).max
    few = st.sampled_from([0, 1, 2, 300, limit - 1, limit])
    values = data.draw(nst.arrays(kind, st.integers(0, 50), elements=few | st.integers(0, limit)))
    distinct, index = numbered(values)
    expected, of_value = np.unique(values, return_inverse=True)
    assert distinct.dtype == values.dtype
    np.testing.assert_array_equal(distinct, expected)
    np.testing.assert_array_equal(index, of_value)
