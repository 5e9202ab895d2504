"""The files for Kubernetes: they keep the schemas of its API, and every name in them leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
import yaml
from dagster_k8s.launcher import K8sRunLauncher
from kubernetes_validate.utils import all_versions

from sv_pipeline.ingest.batches import Stage
from sv_pipeline.ingest.indexed_jobs.manifest import job_manifest
from sv_pipeline.ingest.indexed_jobs.settings import JobSettings, settings_from_environment
from sv_pipeline.ingest.work import WorkPlan
from sv_pipeline_tests.test_house import PACKAGE, ROOT

FILES = ROOT / "deploy" / "kubernetes"
SECRETS = {"sv-pipeline-postgres": {"SV_PIPELINE_POSTGRES_PASSWORD"}}
"""Secrets that an operator creates, and their keys; no file holds them."""
VERSIONS = [v for v in all_versions() if tuple(map(int, v.split(".")[:2])) >= (1, 31)]
WAIT_FOR_CODE = "DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR"
OF_OTHERS = {"DAGSTER_DISABLE_TELEMETRY", "DAGSTER_HOME", "POD_NAME", "NODE_NAME", WAIT_FOR_CODE}
"""Variables that Dagster reads, and those that say where a process runs."""


def read(name: str) -> Any:
    return yaml.safe_load((FILES / name).read_text())


KUSTOMIZATION = read("kustomization.yaml")
MANIFESTS = [m for name in KUSTOMIZATION["resources"] for m in yaml.safe_load_all((FILES / name).read_text())]
ENVIRONMENT = dict(
    line.split("=", 1) for line in (FILES / "settings.env").read_text().splitlines() if line and line[0] != "#"
)


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {m["metadata"]["name"]: m for m in MANIFESTS if m["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    return {name: m["spec"]["template"]["spec"] for name, m in of_kind("Deployment").items()}


def config_maps() -> dict[str, set[str]]:
    """Names and keys of the config maps that kustomize makes."""
    return {
        made["name"]: {*made.get("files", ())} | (set(ENVIRONMENT) if made.get("envs") else set())
        for made in KUSTOMIZATION["configMapGenerator"]
    }


def all_values(node: Any, key: str) -> Iterator[Any]:
    """Every value under a key, however deep."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if name == key:
            yield value
        yield from all_values(value, key)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> JobSettings:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SV_PIPELINE_KUBERNETES", str(FILES / "fanout.yaml"))
    return settings_from_environment()


def schema_holds(manifest: dict[str, Any], version: str = VERSIONS[-1]) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_keeps_the_schema_of_each_supported_version(version: str) -> None:
    for manifest in MANIFESTS:
        schema_holds(manifest, version)


def test_a_broken_manifest_is_noticed() -> None:
    broken = {**next(iter(of_kind("Deployment").values())), "spec": {"replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        schema_holds(broken)


def test_no_file_is_left_out() -> None:
    generated = {
        f for made in KUSTOMIZATION["configMapGenerator"] for f in (*made.get("files", ()), *made.get("envs", ()))
    }
    assert {p.name for p in FILES.iterdir()} == {*KUSTOMIZATION["resources"], *generated, "kustomization.yaml"}


def test_names_in_manifests_lead_somewhere() -> None:
    for name, pod in pods().items():
        assert pod["serviceAccountName"] in of_kind("ServiceAccount"), name
        volumes = {v["name"]: v["configMap"]["name"] for v in pod["volumes"]}
        assert set(volumes.values()) <= set(config_maps()), name
        for container in pod["containers"]:
            for mount in container["volumeMounts"]:
                assert mount.get("subPath", "") in {"", *config_maps()[volumes[mount["name"]]]}, mount
            assert {r["name"] for r in all_values(container, "configMapRef")} <= set(config_maps()), name
            assert {r["name"] for r in all_values(container, "secretRef")} <= set(SECRETS), name
    for name, service in of_kind("Service").items():
        (chosen,) = (p for m in of_kind("Deployment").values() if (p := m["spec"]["template"]) and
                     service["spec"]["selector"].items() <= p["metadata"]["labels"].items())  # fmt: skip
        ports = {p["name"] for c in chosen["spec"]["containers"] for p in c.get("ports", ())}
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= ports, name
    for name, policy in of_kind("NetworkPolicy").items():
        wanted = policy["spec"]["podSelector"]["matchLabels"].items()
        labels = [m["spec"]["template"]["metadata"]["labels"] for m in of_kind("Deployment").values()]
        assert any(wanted <= found.items() for found in labels), name
    for name, binding in of_kind("RoleBinding").items():
        assert binding["roleRef"]["name"] in of_kind("Role"), name
        assert {s["name"] for s in binding["subjects"]} <= set(of_kind("ServiceAccount")), name
        assert {s["namespace"] for s in binding["subjects"]} == {KUSTOMIZATION["namespace"]}, name


def test_a_selector_chooses_the_pods_of_its_own_deployment() -> None:
    for name, deployment in of_kind("Deployment").items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels, name
    assert len({str(d["spec"]["selector"]) for d in of_kind("Deployment").values()}) == len(pods())


def test_addresses_in_the_environment_are_those_of_services() -> None:
    code = of_kind("Service")[ENVIRONMENT["SV_PIPELINE_CODE_HOST"]]
    assert [str(p["port"]) for p in code["spec"]["ports"]] == [ENVIRONMENT["SV_PIPELINE_CODE_PORT"]]
    assert ENVIRONMENT["SV_PIPELINE_NAMESPACE"] == KUSTOMIZATION["namespace"]
    assert list(of_kind("Namespace")) == [KUSTOMIZATION["namespace"]]


def test_every_variable_is_one_that_the_project_reads() -> None:
    text = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    read_by_us = set(re.findall(r'"(SV_PIPELINE_[A-Z_]+|ERROR_DUMP)"', text))
    by_instance = [*all_values(read("dagster.yaml"), "env"), *all_values(read("workspace.yaml"), "env")]
    named = {name for name in by_instance if isinstance(name, str)}
    in_pods = {v["name"] for pod in pods().values() for c in pod["containers"] for v in c.get("env", ())}
    assert {*ENVIRONMENT, *in_pods} <= read_by_us | named | OF_OTHERS
    assert named <= {*ENVIRONMENT, *SECRETS["sv-pipeline-postgres"]}


def test_backfills_wait_while_the_code_server_restarts() -> None:
    assert ENVIRONMENT[WAIT_FOR_CODE] == "1"
    (daemon,) = pods()["sv-pipeline-daemon"]["containers"]
    assert {"configMapRef": {"name": "sv-pipeline-environment"}} in daemon["envFrom"]


def test_no_file_holds_a_secret() -> None:
    assert not of_kind("Secret")
    assert not [name for name in ENVIRONMENT if re.search("PASSWORD|TOKEN|SECRET|KEY", name)]


def test_commands_of_containers_have_their_options() -> None:
    for pod in pods().values():
        for container in pod["containers"]:
            probe = container.get("readinessProbe") or container.get("livenessProbe")
            for command in (container["command"], probe.get("exec", {}).get("command")):
                if command:
                    program = str(Path(sys.executable).parent / command[0])
                    subprocess.run([program, *command[1:], "--help"], check=True, capture_output=True)


def test_pods_are_not_root_and_have_a_limit_of_memory() -> None:
    user = int(re.findall(r"^USER (\d+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)[-1])
    for name, pod in pods().items():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] == user, name
        assert all("memory" in c["resources"]["limits"] for c in pod["containers"]), name


# -- the instance of Dagster ------------------------------------------------------------------------------------------


def test_the_instance_differs_from_that_of_one_machine_only_in_where_things_are() -> None:
    here, there = yaml.safe_load((ROOT / "instance" / "dagster.yaml").read_text()), read("dagster.yaml")
    assert there["run_queue"].pop("max_user_code_failure_retries") > 0
    assert there["run_queue"].pop("user_code_failure_retry_delay") > 0
    assert there["run_monitoring"].pop("start_timeout_seconds") >= 900, "a new node takes minutes"
    longest = there["run_monitoring"].pop("max_runtime_seconds")
    assert longest >= 30 * here["run_monitoring"].pop("max_runtime_seconds"), "large layers take days"
    assert {name: there.get(name) for name in here} == here
    assert set(there) - set(here) == {"storage", "run_launcher", "compute_logs"}


def test_the_run_launcher_makes_a_job_that_the_api_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dagster._config import process_config, resolve_to_config_type
    from dagster_k8s.client import DagsterKubernetesClient
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import construct_dagster_k8s_job
    from kubernetes.client import ApiClient

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    config = read("dagster.yaml")["run_launcher"]["config"]
    checked = process_config(resolve_to_config_type(K8sRunLauncher.config_type()), config)
    assert checked.success, checked.errors
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}], "
        "clusters: [{name: a, cluster: {server: 'http://127.0.0.1:9'}}], users: [{name: a, user: {}}]}"
    )
    given = {**checked.value, "load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    launcher = K8sRunLauncher(**given)
    assert isinstance(launcher._api_client, DagsterKubernetesClient)
    context = K8sContainerContext.create_for_run(dg.DagsterRun("a_job"), launcher, include_run_tags=False)
    job = construct_dagster_k8s_job(
        context.get_k8s_job_config(ENVIRONMENT["SV_PIPELINE_IMAGE"], launcher),
        args=["dagster", "api", "execute_run", "{}"],
        job_name="dagster-run-1",
        pod_name="dagster-run-1",
        component="run_worker",
        user_defined_k8s_config=context.run_k8s_config,
    )
    manifest = {"apiVersion": "batch/v1", "kind": "Job", **ApiClient().sanitize_for_serialization(job)}
    schema_holds(manifest)
    pod = manifest["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] in of_kind("ServiceAccount")
    assert {v["configMap"]["name"] for v in pod["volumes"]} <= set(config_maps())
    assert {r["name"] for r in all_values(pod, "configMapRef")} <= set(config_maps())
    assert {r["name"] for r in all_values(pod, "secretRef")} <= set(SECRETS)
    assert pod["containers"][0]["image"] == ENVIRONMENT["SV_PIPELINE_IMAGE"]
    assert launcher.job_namespace == KUSTOMIZATION["namespace"]


# -- the fan-out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("version", VERSIONS)
def test_the_job_of_every_stage_keeps_the_schema(settings: JobSettings, stage: Stage, version: str) -> None:
    plan = WorkPlan("tissue", (f"{stage}_L03_0_64", f"{stage}_L03_64_128"))
    manifest = job_manifest(settings, plan, name="sv-tissue-1", home=ENVIRONMENT["SV_PIPELINE_HOME"])
    schema_holds(manifest, version)
    pod = manifest["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] in of_kind("ServiceAccount")
    assert {r["name"] for r in all_values(pod, "configMapRef")} <= set(config_maps())
    assert manifest["metadata"]["namespace"] == KUSTOMIZATION["namespace"]
    assert pod["containers"][0]["image"] == ENVIRONMENT["SV_PIPELINE_IMAGE"]


# -- the image --------------------------------------------------------------------------------------------------------


def test_the_image_is_built_of_files_that_are_there_and_of_extras_that_exist() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    sources = [s for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for s in line.split()[:-1]]
    assert sources
    assert all((ROOT / source).exists() for source in sources)
    kept = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text()
    assert all(f"!{source}" in kept.splitlines() for source in sources)
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', text)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)


def test_the_image_names_no_registry() -> None:
    images = re.findall(r"^FROM (\S+)", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    images += [c["image"] for pod in pods().values() for c in pod["containers"]] + [ENVIRONMENT["SV_PIPELINE_IMAGE"]]
    assert not [image for image in images if "/" in image and re.search("[.:]", image.split("/")[0])]
