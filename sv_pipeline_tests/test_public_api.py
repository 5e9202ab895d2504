"""The public API: what the package offers, and the examples of its page, run as they are written."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sv_pipeline
from sv_pipeline.graph import queries
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline_tests.editable import editable_graph, neighbours_of_two_objects

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SV_PIPELINE_HOME", str(tmp_path / "home"))
    names = {"two_objects": neighbours_of_two_objects}
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, globs=names)
    assert tried > 20
    assert not failed


@pytest.mark.parametrize("name", sv_pipeline.__all__)
def test_what_is_offered_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(sv_pipeline, name)
    if name != "__version__":
        assert inspect.getdoc(value)
    with pytest.raises(AttributeError, match="no attribute"):
        _ = sv_pipeline.nothing


def test_a_package_does_not_hide_the_function_of_its_name() -> None:
    loads = "import sv_pipeline, sv_pipeline.ingest.run, sv_pipeline.verify.dataset\n"
    code = loads + "print(sv_pipeline.ingest.__module__, sv_pipeline.verify.__module__)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["sv_pipeline.graphs"] * 2


def test_the_package_alone_loads_nothing_heavy() -> None:
    code = "import sys, sv_pipeline; print(*({'numpy', 'tensorstore', 'dagster', 'pandas'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not said.stdout.split()


def test_a_graph_is_closed_by_with_and_opens_again(tmp_path: Path) -> None:
    with editable_graph(tmp_path, tmp_path / "home") as graph:
        one, other = neighbours_of_two_objects(graph)
        assert repr(graph) == f"<OpenGraph 'small' in {str(tmp_path / 'home')!r}>"
    assert len(graph.roots([one, other])) == 2
    shown: Any = graph.preview_merge([one], [other])
    assert shown.legal
    assert shown.picture()[:4] == b"\x89PNG"
    assert isinstance(graph, OpenGraph)
    edit = graph.merge([one], [other])
    assert set(queries.roots(graph.graph, edit.edges.ravel()).tolist()) == set(edit.roots.tolist())
    refused = graph.preview_merge([one], [other])
    assert (refused.legal, refused.numbers["reason"]) == (False, "same_root")
    assert len(graph.operations()) == 1
