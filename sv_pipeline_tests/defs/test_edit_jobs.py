"""Edits as Dagster jobs: stages, what their metadata shows, refusals, and runs that are executed again."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from sv_pipeline.definitions import defs
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.registry import HOME_VARIABLE
from sv_pipeline.reports.sizes import DIALOG_WIDTH
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.editable import (
    BACKGROUND,
    RING_POINTS,
    Point,
    editable_graph,
    neighbours_of_two_objects,
    ring_graph,
    two_parts_of_an_object,
)

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def graph(home: str, tmp_path: Path) -> OpenGraph:
    return editable_graph(tmp_path, Path(home))


class Jobs:
    """Runs jobs in this process, recorded in one instance."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance

    def __call__(self, job: str, **config: Any) -> Outcome:
        result = (
            defs()
            .resolve_job_def(job)
            .execute_in_process(run_config=config, instance=self.instance, raise_on_error=False)
        )
        return Outcome(result, self.instance)


class Outcome:
    """What a run shows."""

    def __init__(self, result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> None:
        self.success = result.success
        self.run_id = result.run_id
        run = instance.get_run_by_id(result.run_id)
        assert run is not None
        self.tags = run.tags
        outputs = [e for e in result.all_node_events if e.is_successful_output]
        self.metadata = {e.step_key: dict(e.step_output_data.metadata) for e in outputs}
        failed = [e.step_failure_data for e in result.all_node_events if e.is_step_failure]
        self.failure = failed[0].user_failure_data if failed else None
        self.error = failed[0].error if failed else None

    def value(self, step: str, name: str) -> Any:
        return self.metadata[step][name].value

    def picture(self, step: str, name: str) -> bytes:
        text = str(self.metadata[step][name].value)
        head, data = text.removesuffix(")").split(";base64,")
        assert head.endswith("(data:image/png")
        return base64.b64decode(data)


@pytest.fixture
def jobs(instance: dg.DagsterInstance) -> Jobs:
    return Jobs(instance)


def sides(points: tuple[Point, Point]) -> dict[str, list[list[int]]]:
    return {"source": [list(points[0])], "sink": [list(points[1])]}


# -- what is made -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_a_supervoxel", [False, True])
def test_a_split_goes_through_its_stages_and_shows_each(graph: OpenGraph, jobs: Jobs, of_a_supervoxel: bool) -> None:
    points = two_parts_of_an_object(graph, of_a_supervoxel=of_a_supervoxel)
    run = jobs("split_job", graph_id="small", user="me", **sides(points))
    assert run.success
    assert list(run.metadata) == ["look_up", "preview", "commit_split", "report"]
    assert run.tags["sv/graph_id"] == "small"
    assert run.tags["sv/op_id"] == "1"
    assert len(set(graph.roots(points).tolist())) == 2
    assert [r.data["side"] for r in run.metadata["look_up"]["points"].records] == ["source", "sink"]
    assert run.value("preview", "removed_edges") == run.value("report", "edges")
    assert (run.value("report", "new_supervoxels") > 0) is of_a_supervoxel
    assert set(run.value("report", "new_roots").split(", ")) == set(map(str, graph.roots(points).tolist()))
    assert run.value("report", "user") == "me"
    assert run.value("commit_split", "seconds") >= 0
    for step, name in (("look_up", "objects"), ("preview", "cut"), ("report", "before_and_after")):
        assert run.picture(step, name).startswith(PNG)
        assert next(iter(run.metadata[step])) == name  # what the UI shows without being asked for more
    assert run.picture("report", "before_and_after") == graph.picture(1, width=DIALOG_WIDTH)
    assert run.value("report", "view it").endswith(" view small --operation 1")
    assert verify_dataset(graph.dataset).ok


def test_a_split_that_would_leave_one_object_is_refused_or_says_so(home: str, tmp_path: Path, jobs: Jobs) -> None:
    graph = ring_graph(tmp_path, Path(home))
    refused = jobs("split_job", graph_id="ring", region_memory_gb=0.0, **sides(RING_POINTS))
    assert refused.failure is not None
    assert refused.failure.metadata["reason"].value == "still_connected"
    run = jobs("split_job", graph_id="ring", allow_partial=True, **sides(RING_POINTS))
    assert run.success
    for step in ("preview", "commit_split", "report"):
        assert run.value(step, "still_one_object")
    assert jobs("undo_job", graph_id="ring", operation=int(run.tags["sv/op_id"])).success
    run = jobs("split_job", graph_id="ring", **sides(RING_POINTS))
    assert run.success
    assert not run.value("report", "still_one_object")
    assert len(set(graph.roots(RING_POINTS).tolist())) == 2


def test_merge_undo_and_redo(graph: OpenGraph, jobs: Jobs) -> None:
    points = neighbours_of_two_objects(graph)
    run = jobs("merge_job", graph_id="small", **sides(points))
    assert run.success
    assert list(run.metadata) == ["look_up", "commit_merge", "report"]
    assert run.picture("report", "before_and_after").startswith(PNG)
    operation = int(run.tags["sv/op_id"])
    assert jobs("undo_job", graph_id="small", operation=operation).success
    assert len(set(graph.roots(points).tolist())) == 2
    assert jobs("redo_job", graph_id="small", operation=operation, user="me").success
    assert len(set(graph.roots(points).tolist())) == 1
    assert graph.operations()["kind"].tolist() == ["merge", "undo", "redo"]


def test_a_preview_writes_nothing(graph: OpenGraph, jobs: Jobs) -> None:
    run = jobs("preview_split_job", graph_id="small", **sides(two_parts_of_an_object(graph)))
    assert run.success
    assert run.picture("preview", "cut").startswith(PNG)
    assert len(graph.operations()) == 0


# -- what is refused --------------------------------------------------------------------------------------------------

GOOD = [30, 30, 16]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "outside": ({"source": [GOOD], "sink": [[640, 0, 0]]}, "outside"),
    "background": ({"source": [GOOD], "sink": [list(BACKGROUND)]}, "background"),
    "none": ({"source": [GOOD], "sink": []}, "no_points"),
    "thousands": ({"source": [GOOD], "sink": [[i % 60, 9, 9] for i in range(3000)]}, "too_many_points"),
    "the same": ({"source": [GOOD], "sink": [GOOD]}, "same_point"),
    "two numbers": ({"source": [GOOD], "sink": [[1, 2]]}, "bad_request"),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> OpenGraph:
    folder = tmp_path_factory.mktemp("built")
    return editable_graph(folder, folder / "home")


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("job", ["split_job", "merge_job", "preview_split_job"])
def test_a_refusal_is_a_failure_that_says_why_and_is_not_retried(
    built: OpenGraph, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, job: str, name: str
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, built.dataset.home)
    points, reason = REFUSED[name]
    run = jobs(job, graph_id="small", **points)
    assert not run.success
    assert run.failure is not None
    assert run.failure.metadata["reason"].value == reason
    assert run.error is not None
    assert run.error.cause is None
    assert run.error.context is None
    assert run.tags["dagster/max_retries"] == "0"
    log = built.operations()["status"]
    assert set(log) <= {"EXCEPTION"}
    if "sv/op_id" in run.tags:  # its operation had a row already, which says so
        assert int(run.tags["sv/op_id"]) in log.index


def test_a_cut_that_would_be_refused_is_shown_all_the_same(graph: OpenGraph, jobs: Jobs) -> None:
    run = jobs("split_job", graph_id="small", **sides(neighbours_of_two_objects(graph)))
    assert not run.success
    assert run.failure is not None
    assert run.failure.metadata["reason"].value == "several_roots"
    assert run.picture("look_up", "objects").startswith(PNG)
    assert len(graph.operations()) == 0  # the preview has refused it


def test_an_unknown_graph_fails_with_those_that_are_known(graph: OpenGraph, jobs: Jobs) -> None:
    for job, config in (
        ("split_job", {"source": [GOOD], "sink": [GOOD]}),
        ("merge_job", {"source": [GOOD], "sink": [GOOD]}),
        ("undo_job", {"operation": 1}),
    ):
        run = jobs(job, graph_id="nowhere", **config)
        assert not run.success
        assert run.failure is not None
        assert "known: small" in str(run.failure.description)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"graph_id": "small"},
        {"graph_id": "small", "source": "here", "sink": [GOOD]},
        {"graph_id": "small", "source": [["a", "b", "c"]], "sink": [GOOD]},
        {"graph_id": "small", "source": [[1.5, 2, 3]], "sink": [GOOD]},
        {"graph_id": "small", "source": [GOOD], "sink": [GOOD], "sinks": []},
    ],
)
def test_what_does_not_fit_the_schema_is_not_even_launched(home: str, config: dict[str, Any]) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match="root"):
        dg.validate_run_config(defs().resolve_job_def("split_job"), config)


def test_edits_are_made_by_one_process_and_never_retried_by_themselves(home: str) -> None:
    for name in ("split_job", "merge_job", "undo_job", "redo_job", "preview_split_job"):
        job = defs().resolve_job_def(name)
        assert job.executor_def.name == "in_process"
        assert job.tags["dagster/max_retries"] == "0"
        assert all(node.definition.retry_policy is None for node in job.nodes)  # type: ignore[attr-defined]
        assert job.description
