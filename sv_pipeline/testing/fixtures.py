"""Pytest fixtures: servers, and tables in every backend.

Load them by ``pytest_plugins = ["sv_pipeline.testing.fixtures"]``.

A test that needs software which this machine lacks is skipped with the reason; with SV_PIPELINE_REQUIRE_ALL=1 it fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sv_pipeline.table.interface import Table
from sv_pipeline.testing.servers.bigtable import BINARY, find_emulator, running_emulator
from sv_pipeline.testing.servers.gcs_client import GcsControl, running_gcs_server
from sv_pipeline.testing.tables import BACKENDS, Backend
from sv_pipeline.testing.tables import new_table as unused_table


def need(available: object, reason: str) -> None:
    """Skip the calling test with ``reason`` unless ``available``; fail it if SV_PIPELINE_REQUIRE_ALL=1."""
    if available:
        return
    if os.environ.get("SV_PIPELINE_REQUIRE_ALL") == "1":
        pytest.fail(f"needed here, but missing: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def bigtable_emulator() -> Iterator[str]:
    """``host:port`` of a running emulator; BIGTABLE_EMULATOR_HOST is set to it until the session ends."""
    binary = find_emulator()
    need(binary, f"the Bigtable emulator ({BINARY} of the Google Cloud SDK)")
    with running_emulator(str(binary)) as address:
        yield address


@pytest.fixture(scope="session")
def gcs_process() -> Iterator[GcsControl]:
    """A GCS server that all tests of the session share."""
    with running_gcs_server() as control:
        yield control


@pytest.fixture
def gcs_server(gcs_process: GcsControl) -> Iterator[GcsControl]:
    """The session's GCS server, without faults and with an empty log."""
    gcs_process.clear()
    yield gcs_process
    gcs_process.clear()


@pytest.fixture(params=["file", "gs"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a fresh folder: on disk, and on the GCS server."""
    if request.param == "file":
        # A name that must be quoted in URLs, because users have such folders.
        return f"file://{tmp_path}/a%20folder/"
    server: GcsControl = request.getfixturevalue("gcs_server")
    return server.new_bucket()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend of tables, with its server running. A test with this fixture runs once for each backend."""
    if request.param == "bigtable":
        request.getfixturevalue("bigtable_emulator")
    chosen: Backend = request.param
    return chosen


@pytest.fixture
def new_table(backend: Backend, tmp_path: Path) -> Iterator[Table]:
    """A table that does not exist yet; the test runs once for each backend."""
    table = unused_table(backend, tmp_path)
    yield table
    table.drop()
    table.close()


@pytest.fixture
def table(new_table: Table) -> Table:
    """An empty table; the test runs once for each backend."""
    new_table.create()
    return new_table
