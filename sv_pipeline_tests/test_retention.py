"""The retention policy: how it is written, and which generation it makes the oldest."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.config import parse_config
from sv_pipeline.errors import ConfigError
from sv_pipeline.retention import Bound, DatedGeneration, Retention, choose_horizon
from sv_pipeline_tests.properties import examples

MINUTE = 60 * 10**9


@pytest.mark.parametrize(
    ("given_as", "said"),
    [
        ({}, "forever"),
        ({"keep": "forever", "generations": 5}, "forever"),
        ({"keep": "90 days"}, "90 days"),
        ({"keep": "36 hours", "generations": 5}, "36 hours and 5 generations"),
        ({"keep": "1.5 days"}, "36 hours"),
        ({"generations": 1}, "1 generation"),
    ],
)
def test_a_policy_is_stored_as_it_is_written(given_as: dict[str, object], said: str) -> None:
    policy = Retention.model_validate(given_as)
    assert str(policy) == said
    assert Retention.model_validate(policy.model_dump(mode="json")) == policy
    assert policy.is_forever is (said == "forever")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("keep", "3 lots", "not a period"),
        ("keep", 90, "not a period"),
        ("keep", "900000000 days", "write forever"),
        ("generations", 0, "greater than or equal to 1"),
        ("grace", "3 seconds", "at least 10 minutes"),
    ],
)
def test_a_policy_that_cannot_be_used_names_its_field(field: str, value: object, said: str) -> None:
    raw = {"graph_id": "g", "data_source": {"WATERSHED": "/tmp/w"}, "retention": {field: value}}
    with pytest.raises(ConfigError, match=rf"retention\.{field}: .*{said}"):
        parse_config(raw)


ages = st.lists(st.integers(0, 500), min_size=1, max_size=20)


@examples(100)
@given(
    ages=ages,
    keep=st.none() | st.integers(0, 500),
    generations=st.none() | st.integers(1, 25),
    grace=st.integers(10, 100),
    pins=st.lists(st.integers(1, 20), max_size=3),
)
def test_nothing_that_anybody_needs_is_before_the_horizon(
    ages: list[int], keep: int | None, generations: int | None, grace: int, pins: list[int]
) -> None:
    now = 10_000 * MINUTE
    history = [
        DatedGeneration(number, now - age * MINUTE, now - age * MINUTE)
        for number, age in enumerate(sorted(ages, reverse=True), 1)
    ]
    bounds = [Bound(f"operation {pin}", generation=pin) for pin in pins]
    policy = Retention(
        keep=None if keep is None else timedelta(minutes=keep), generations=generations, grace=timedelta(minutes=grace)
    )
    horizon = choose_horizon(policy, history, now, bounds).generation
    assert horizon in {one.number for one in history}
    gone = [one for one in history if one.number < horizon]
    if policy.is_forever:
        assert not gone
        return
    for one in gone:
        following = next(later for later in history if later.number == one.number + 1)
        age = (now - (following.time or 0)) / MINUTE
        assert age >= grace, "it may still have been the latest for a reader"
        assert keep is None or age >= keep, "a moment inside the period shows it"
        assert generations is None or history[-1].number - one.number >= generations
        assert all(pin > one.number for pin in pins)
    tight = not gone or choose_horizon(policy, history[len(gone) :], now, bounds).generation == horizon
    assert tight


def test_what_holds_the_horizon_is_named() -> None:
    history = [DatedGeneration(number, number * MINUTE, number * MINUTE) for number in range(1, 10)]
    policy = Retention(generations=1)
    pinned = choose_horizon(policy, history, 10_000 * MINUTE, [Bound("operation 7 is unfinished", generation=4)])
    assert (pinned.generation, pinned.held_by) == (4, ("operation 7 is unfinished",))
    timed = choose_horizon(policy, history, 10_000 * MINUTE, [Bound("theirs", commit_time=3 * MINUTE + 1)])
    assert (timed.generation, timed.held_by) == (3, ("theirs",))
    young = choose_horizon(policy, history, 9 * MINUTE + 1)
    assert (young.generation, young.held_by) == (1, ("younger than the grace period",))
