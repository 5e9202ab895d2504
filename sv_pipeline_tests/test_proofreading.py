"""An open graph as a proofreader uses it, in Python and in the terminal."""

from __future__ import annotations

import contextlib
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import sv_pipeline
from sv_pipeline.algorithms.multicut import Preview
from sv_pipeline.algorithms.synthetic import synthetic_neuropil
from sv_pipeline.cli.main import cli
from sv_pipeline.config import parse_config
from sv_pipeline.edits import EditRefused
from sv_pipeline.engine import run, stages
from sv_pipeline.engine.proof import verify_dataset
from sv_pipeline.errors import NotFoundError
from sv_pipeline.proofreading import OpenGraph

Point = tuple[int, int, int]


@pytest.fixture
def graph(tmp_path: Path) -> OpenGraph:
    volume = synthetic_neuropil((64, 64, 32), seed=5)
    source = tmp_path / "small.npz"
    np.savez(source, segmentation=volume.segmentation, bodies=volume.bodies, resolution=np.asarray(volume.resolution))
    raw = {
        "graph_id": "small",
        "data_source": {"WATERSHED": str(tmp_path / "watershed")},
        "source": {"segmentation": f"{source}#segmentation", "agglomeration": f"{source}#bodies"},
        "graph_config": {"CHUNK_SIZE": [32, 32, 16]},
    }
    dataset = stages.register(parse_config(raw), str(tmp_path / "home"))
    run.ingest(dataset, workers=1)
    return sv_pipeline.open_graph("small", str(tmp_path / "home"))


def neighbours_of_two_objects(graph: OpenGraph) -> tuple[Point, Point]:
    """Two voxels side by side in the middle plane that belong to two objects."""
    points = [(x, 20, 16) for x in range(64)]
    roots = graph.roots(points)
    here = int(np.flatnonzero(roots[1:] != roots[:-1])[0])
    return points[here], points[here + 1]


def test_merge_then_undo_gives_the_objects_back(graph: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(graph)
    before = graph.roots([one, other])
    merged = graph.merge([one], [other], user="me")
    assert len(set(graph.roots([one, other]).tolist())) == 1
    undone = graph.undo(merged.id, user="me")
    assert len(set(graph.roots([one, other]).tolist())) == 2
    graph.redo(merged.id, user="me")
    assert len(set(graph.roots([one, other]).tolist())) == 1
    table = graph.operations()
    assert table["kind"].tolist() == ["merge", "undo", "redo"]
    assert set(table["status"]) == {"SUCCESS"}
    assert set(merged.old_roots.tolist()) == set(before.tolist())
    assert undone.id == 2
    assert verify_dataset(graph.dataset).ok


def two_parts_of_an_object(graph: OpenGraph) -> tuple[Point, Point]:
    """Two voxels of one object between which a cut is legal."""
    points = [(x, y, z) for x in range(2, 64, 6) for y in range(2, 64, 6) for z in (8, 24)]
    roots = graph.roots(points)
    for root in np.unique(roots).tolist():
        for one, other in combinations([p for p, r in zip(points, roots.tolist(), strict=True) if r == root], 2):
            with contextlib.suppress(EditRefused):  # on one supervoxel
                preview = graph.preview_split([one], [other]).outcome
                if isinstance(preview, Preview) and not preview.illegal:
                    return one, other
    raise AssertionError("no object can be split")


def test_split_then_undo_gives_the_object_back(graph: OpenGraph) -> None:
    one, other = two_parts_of_an_object(graph)
    assert len(graph.operations()) == 0  # previews leave no trace
    cut = graph.split([one], [other], user="me")
    assert len(set(graph.roots([one, other]).tolist())) == 2
    assert verify_dataset(graph.dataset).ok
    graph.undo(cut.id, user="me")
    assert len(set(graph.roots([one, other]).tolist())) == 1
    assert verify_dataset(graph.dataset).ok


def test_refusals_name_what_is_wrong(graph: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(graph)
    with pytest.raises(EditRefused, match="objects"):
        graph.split([one], [other], user="me")
    with pytest.raises(EditRefused, match="volume"):
        graph.merge([one], [(10**6, 0, 0)], user="me")
    with pytest.raises(NotFoundError, match="nowhere"):
        sv_pipeline.open_graph("nowhere", graph.dataset.home)


def test_the_terminal_does_the_same(graph: OpenGraph) -> None:
    one, other = (",".join(map(str, p)) for p in two_parts_of_an_object(graph))
    runner = CliRunner()

    def call(*arguments: str) -> str:
        result = runner.invoke(cli, ["--home", graph.dataset.home, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    sides = ("--source", one, "--sink", other)
    assert json.loads(call("preview", "small", *sides, "--json"))["legal"]
    cut = json.loads(call("split", "small", *sides, "--user", "me", "--json"))
    assert len(cut["new_roots"]) == 2
    call("merge", "small", *sides)
    call("undo", "small", "2")
    call("redo", "small", "2")
    log = json.loads(call("ops", "small", "--json"))
    assert [row["kind"] for row in log] == ["split", "merge", "undo", "redo"]
    assert "SUCCESS" in call("ops", "small")
