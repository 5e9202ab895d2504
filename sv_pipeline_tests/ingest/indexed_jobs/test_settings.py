"""Settings of the Jobs as people write them: read, or refused with the field's name; and the Job that follows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sv_pipeline.errors import ConfigError
from sv_pipeline.ingest.batches import Batch, Stage
from sv_pipeline.ingest.indexed_jobs.explaining import indexes_in
from sv_pipeline.ingest.indexed_jobs.manifest import TEMPLATE, base_name, job_manifest
from sv_pipeline.ingest.indexed_jobs.settings import SETTINGS_VARIABLE, parse_settings, settings_from_environment
from sv_pipeline.ingest.runner import FANOUT_VARIABLE, runner_from_environment
from sv_pipeline.ingest.work import WorkPlan
from sv_pipeline.memory import INTERPRETER_MB, MEMORY_VARIABLE
from sv_pipeline.testing.servers.kubernetes_jobs import indexes_as_text

IMAGE = {"image": "sv-pipeline:1"}


def manifest_of(changes: dict[str, Any] | None = None, *, stage: Stage = Stage.GRAPH, batches: int = 3) -> Any:
    plan = WorkPlan("tissue", tuple(f"{stage}_L02_{i}_{i + 1}" for i in range(batches)))
    return job_manifest(parse_settings({**IMAGE, **(changes or {})}, "here"), plan, name="sv-1", home="gs://home/")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": ""}, "image"),
        ({"imagge": "a"}, "imagge: there is no such field; did you mean image"),
        ({"namespace": "With Capitals"}, "namespace"),
        ({"parallelism": 0}, "parallelism"),
        ({"parallelism": True}, "parallelism: a number is needed"),
        ({"resources": {"default": {"memory": "a lot"}}}, "resources.default.memory"),
        ({"resources": {"default": {"memory": "300Mi"}}}, "memory 300Mi is too little"),
        ({"resources": {"grahp": {}}}, "'grahp' is no kind of work"),
        ({"resources": {"graph_L": {}}}, "'graph_L' is no kind of work"),
        ({"backoff_limit_per_index": -1}, "backoff_limit_per_index"),
        ({"poll_seconds": float("nan")}, "poll_seconds"),
        ({"image_pull_policy": "Sometimes"}, "image_pull_policy"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_settings({**IMAGE, **changes}, "here.yaml")


def test_missing_settings_are_told_with_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(SETTINGS_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=f"{SETTINGS_VARIABLE} is not set"):
        settings_from_environment()
    path = tmp_path / "fanout.yaml"
    monkeypatch.setenv(SETTINGS_VARIABLE, str(path))
    with pytest.raises(ConfigError, match="cannot read"):
        settings_from_environment()
    path.write_text("- a list")
    with pytest.raises(ConfigError, match="holds a list"):
        settings_from_environment()
    path.write_text("parallelism: 3")
    with pytest.raises(ConfigError, match="image: this field is missing"):
        settings_from_environment()
    monkeypatch.setenv("SV_PIPELINE_IMAGE", "sv-pipeline:7")
    assert settings_from_environment().image == "sv-pipeline:7"


def test_an_unknown_runner_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FANOUT_VARIABLE, "k8s")
    with pytest.raises(ConfigError, match="local or kubernetes"):
        runner_from_environment(1)


def test_a_cluster_that_is_not_configured_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FANOUT_VARIABLE, "kubernetes")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("SV_PIPELINE_IMAGE", "sv-pipeline:7")
    path = tmp_path / "fanout.yaml"
    path.write_text("parallelism: 3")
    monkeypatch.setenv(SETTINGS_VARIABLE, str(path))
    with pytest.raises(ConfigError, match="no Kubernetes cluster is configured"):
        runner_from_environment(1)


def test_the_client_of_kubernetes_is_loaded_only_where_it_is_used() -> None:
    code = "import sv_pipeline.ingest.run, sv_pipeline.definitions, sys; sys.exit('kubernetes' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_most_specific_resources_count() -> None:
    settings = parse_settings(
        {
            **IMAGE,
            "resources": {"default": {"memory": "1Gi"}, "graph": {"memory": "2Gi"}, "graph_L02": {"memory": "3Gi"}},
        },
        "here",
    )
    found = [settings.resources_for(*kind).memory for kind in ((Stage.GRAPH, 2), (Stage.GRAPH, 3), (Stage.VOXELS, 2))]
    assert found == ["3Gi", "2Gi", "1Gi"]


@pytest.mark.parametrize(
    ("memory", "mebibytes"),
    [("4Gi", 4096), ("2000Mi", 2000), ("2G", 1907), ("1.5Gi", 1536), ("4294967296", 4096), ("4194304Ki", 4096)],
)
def test_the_budget_of_a_worker_is_its_limit_without_the_interpreter(memory: str, mebibytes: int) -> None:
    (worker,) = manifest_of({"resources": {"default": {"memory": memory}}})["spec"]["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["memory"] == worker["resources"]["requests"]["memory"] == memory
    assert {"name": MEMORY_VARIABLE, "value": str(mebibytes - INTERPRETER_MB)} in worker["env"]


def test_a_variable_of_the_settings_replaces_ours() -> None:
    (worker,) = manifest_of({"env": {MEMORY_VARIABLE: "99"}})["spec"]["template"]["spec"]["containers"]
    assert [v["value"] for v in worker["env"] if v["name"] == MEMORY_VARIABLE] == ["99"]


def test_no_more_pods_than_batches() -> None:
    assert manifest_of({"parallelism": 50})["spec"]["parallelism"] == 3
    assert manifest_of({"resources": {"graph": {"parallelism": 2}}})["spec"]["parallelism"] == 2
    assert manifest_of({"max_failed_indexes": 7})["spec"]["maxFailedIndexes"] == 3


def test_names_of_jobs_are_short_and_differ_by_home_graph_stage_and_layer() -> None:
    batch = Batch(Stage.VOXELS, 12, 0, 1)
    cases = [("gs://a/", "x" * 50, batch), ("gs://b/", "x" * 50, batch), ("gs://a/", "X" * 50, batch),
             ("gs://a/", "_..", batch), ("gs://a/", "x" * 50, Batch(Stage.GRAPH, 12, 0, 1))]  # fmt: skip
    names = [base_name(*case) for case in cases]
    assert len(set(names)) == len(cases)
    assert max(map(len, names)) + len("-999-99999") <= 63


def test_a_job_is_the_same_unless_what_its_pods_do_changes() -> None:
    def digest(changes: dict[str, Any]) -> str:
        return str(manifest_of(changes)["metadata"]["annotations"][TEMPLATE])

    same = [{}, {"poll_seconds": 1}, {"parallelism": 7}, {"resources": {"voxels": {"memory": "9Gi"}}}]
    others = [{"image": "sv-pipeline:2"}, {"env": {"A": "b"}}, {"resources": {"graph": {"memory": "9Gi"}}}]
    assert len({digest(changes) for changes in same}) == 1
    assert len({digest(changes) for changes in [{}, *others]}) == 4


@pytest.mark.parametrize("text", ["", "0", "0,1", "1,3-5,9", "0-99"])
def test_lists_of_indexes_are_read_as_they_are_written(text: str) -> None:
    assert indexes_as_text(indexes_in(text)) == text
