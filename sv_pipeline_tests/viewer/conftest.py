"""A graph to look at and to edit: ingested once, copied for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.testing.worlds import World, lasting_folder
from sv_pipeline_tests.editable import editable_graph


@pytest.fixture(scope="session")
def built() -> World:
    folder = lasting_folder()
    return World(editable_graph(folder, folder / "home").dataset)


@pytest.fixture
def graph(built: World) -> Iterator[OpenGraph]:
    with built.copied() as copy:
        yield copy.open()
