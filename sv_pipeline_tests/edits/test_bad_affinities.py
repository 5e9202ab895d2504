"""Graphs whose edge files hold what no ingest would take today: they can be cut, and ``verify`` names the edges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.graph.edge_files import read_edges, write_edges
from sv_pipeline.testing.worlds import World
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.edits.bars import Make
from sv_pipeline_tests.edits.bars import make as make


@pytest.fixture
def tissue(make: Make) -> World:
    """Three pieces in one row, over three chunks."""
    boxes = {1: np.s_[0:10, 1:4, 1:4], 2: np.s_[10:20, 1:4, 1:4], 3: np.s_[20:24, 1:4, 1:4]}
    return make((24, 5, 5), boxes)


@pytest.mark.parametrize("bad", [-0.5, float("nan"), float("-inf"), float("inf")])
def test_edges_are_cut_rather_than_supervoxels_and_verify_names_them(tissue: World, bad: float) -> None:
    url = tissue.graph.edges_url
    for coordinate in tissue.graph.grid.coordinates(2):
        stored = read_edges(url, coordinate)

        def spoilt(part: Edges) -> Edges:
            return replace(part, affinities=np.full(len(part), bad, np.float32))

        write_edges(url, coordinate, replace(stored, in_=spoilt(stored.in_), between=spoilt(stored.between)))
    request = tissue.split_request([(3, 2, 2)], [(22, 2, 2)])
    made = edits.split(tissue.graph, request, volume=tissue.volume)
    assert (len(made.roots), len(made.supervoxels)) == (2, 0)
    graph = tissue.graph
    report = verify(graph.table, graph.fork)
    assert {finding.check for finding in report.findings} == {"edge_files"}, report.summary()
    assert "affinity" in report.summary()
