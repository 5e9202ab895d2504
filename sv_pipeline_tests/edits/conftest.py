"""Small graphs to edit, in every backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.table.interface import Table
from sv_pipeline_tests.edits.model import Model, stored_components, verify_rows
from sv_pipeline_tests.graph.worlds import World, ingest, random_world

EVERYWHERE = (10_000, 10_000, 10_000)
"""A region that is the whole volume."""


@dataclass
class Edited:
    """A graph, and the model of what it must be."""

    graph: ChunkedGraph
    world: World
    model: Model

    def merge(self, source: int, sink: int) -> edits.CommittedEdit:
        """A merge of the graph and of the model."""
        edit = edits.merge(self.graph, merge_request([source], [sink]))
        self.model.merge(source, sink)
        return edit

    def split(self, source: int, sink: int) -> edits.CommittedEdit:
        """A split of the graph; the model follows the edges that were removed."""
        edit = edits.split(self.graph, split_request([source], [sink]))
        self.model.remove(edit.edges)
        return edit

    def prove(self) -> None:
        """The rows are sound, and the objects are those of the model."""
        verify_rows(self.graph)
        assert stored_components(self.graph, self.world) == self.model.components

    def pairs(self, *, same: bool, seed: int = 0) -> list[tuple[int, int]]:
        """Near supervoxels of one object, or of two, in a random order."""
        rng = np.random.default_rng(seed)
        supervoxels = self.world.supervoxels
        number = {sv: i for i, piece in enumerate(self.model.components) for sv in piece}
        pairs = [tuple(rng.choice(supervoxels, 2, replace=False).tolist()) for _ in range(500)]
        coordinates = self.world.layout.coordinates(np.array(pairs, np.uint64))
        near = np.abs(coordinates[:, 0] - coordinates[:, 1]).max(axis=1) <= 3
        return [p for p, ok in zip(pairs, near, strict=True) if ok and (number[p[0]] == number[p[1]]) is same]


def merge_request(sources: list[int], sinks: list[int], **options: object) -> edits.MergeRequest:
    given = {"offset": EVERYWHERE, **options}
    return edits.MergeRequest("tester", edits.Points.of(sources), edits.Points.of(sinks), **given)  # type: ignore[arg-type]


def split_request(sources: list[int], sinks: list[int], **options: object) -> edits.SplitRequest:
    given = {"offset": EVERYWHERE, "disallow_isolating_cut": False, **options}
    return edits.SplitRequest("tester", edits.Points.of(sources), edits.Points.of(sinks), **given)  # type: ignore[arg-type]


@pytest.fixture
def make_graph(new_table: Table, tmp_path: Path) -> Callable[..., Edited]:
    """Ingest a random world into a new table."""

    def make(shape: tuple[int, int, int] = (3, 2, 2), seed: int = 1, **options: float) -> Edited:
        world = random_world(shape, seed, **options)
        graph, _ = ingest(world, new_table, tmp_path)
        return Edited(graph, world, Model.of(world))

    return make


@pytest.fixture
def edited(make_graph: Callable[..., Edited]) -> Edited:
    """A graph of 5 x 2 x 2 chunks with objects of several supervoxels."""
    return make_graph((5, 2, 2), seed=6, objects=0.3, cross=0.03)


def state(edited: Edited) -> set[frozenset[int]]:
    """The objects as sets of supervoxels, after a check of all rows."""
    verify_rows(edited.graph)
    return stored_components(edited.graph, edited.world)
