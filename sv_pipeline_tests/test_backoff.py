"""Pauses between tries: they grow to a longest one, and chance only shortens them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.backoff import Backoff
from sv_pipeline.defs.runs import PYRAMID_BACKOFF


@given(st.integers(0, 10), st.floats(0, 1e5))
def test_each_failure_doubles_the_wait(failures: int, waited: float) -> None:
    due = Backoff(60.0).due(failures, 1000.0, 1000.0 + waited)
    assert due is (not failures or waited >= 60.0 * 2 ** (failures - 1))
    assert Backoff(60.0).due(failures, None, 1000.0)


@given(st.integers(0, 10_000), st.floats(1e-4, 100), st.floats(1e-4, 1e4), st.floats(1.0, 4.0))
def test_chance_only_shortens_a_pause(failures: int, first: float, longest: float, factor: float) -> None:
    backoff = Backoff(first, longest, factor)
    whole = backoff.after(failures)
    assert whole <= longest
    assert whole / 2 <= backoff.jittered(failures) <= whole


def test_attempts_become_rarer_and_never_end() -> None:
    waits = [PYRAMID_BACKOFF.after(failures) for failures in range(40)]
    first = PYRAMID_BACKOFF.first
    assert waits[:4] == [0.0, first, 2 * first, 4 * first]
    assert waits == sorted(waits)
    assert waits[-1] == PYRAMID_BACKOFF.longest


@pytest.mark.parametrize("failures", [1, 64, 100_000])
def test_no_number_of_failures_overflows(failures: int) -> None:
    assert Backoff(1.0).after(failures) < float("inf")
