"""The stage of the tests of recovery, and a fork server that also knows the tasks of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sv_pipeline.testing.harness.forkserver import ForkServer, running_fork_server
from sv_pipeline_tests.recovery.conftest import stages as stages
from sv_pipeline_tests.recovery.conftest import theatre as theatre


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """The process that forks editors, readers and collectors."""
    with running_fork_server("sv_pipeline_tests.upkeep.actors") as process:
        yield process
