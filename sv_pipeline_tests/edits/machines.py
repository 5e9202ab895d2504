"""How state machines run: in shards with seeds of their own, so that several processes can share them."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

__all__ = ["AT_LENGTH", "IN_CI", "run_shard"]

AT_LENGTH = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
"""Many more runs than a change can wait for; for a night."""
IN_CI = AT_LENGTH or os.environ.get("HYPOTHESIS_PROFILE") == "ci"
SHARDS_APART = 1_000_003


def run_shard(machine: type[RuleBasedStateMachine], number: int, runs: int, steps: int) -> None:
    """Run a machine so many times; in CI always the same runs, elsewhere others each time.

    A failure prints its steps. They are not made fewer: that would take longer than a test may.
    """
    if IN_CI:
        machine = seed(number * SHARDS_APART)(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )
