"""A real ``dg dev`` of this project in its own process group, driven over GraphQL as the UI does it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import requests

PROJECT = Path(__file__).parents[2]
REPOSITORY = {"repositoryLocationName": "sv_pipeline.definitions", "repositoryName": "__repository__"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """Poll until the condition holds; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.25)
    raise TimeoutError(what)


class DevServer:
    """Talks to one ``dg dev``."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.process = process

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        answer = requests.post(f"{self.url}/graphql", json={"query": text, "variables": variables}, timeout=30).json()
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def loaded(self) -> bool:
        text = "{workspaceOrError{... on Workspace{locationEntries{loadStatus locationOrLoadError{__typename}}}}}"
        with contextlib.suppress(requests.RequestException):
            entries = self.query(text)["workspaceOrError"]["locationEntries"]
            assert all(
                e["locationOrLoadError"]["__typename"] != "PythonError" for e in entries if e["locationOrLoadError"]
            )
            return bool(entries) and all(e["loadStatus"] == "LOADED" for e in entries)
        return False

    def partitions(self, asset: str) -> list[str]:
        text = "query($k:AssetKeyInput!){assetNodeOrError(assetKey:$k){... on AssetNode{partitionKeys}}}"
        return list(self.query(text, k={"path": [asset]})["assetNodeOrError"]["partitionKeys"])

    def materialized(self, asset: str) -> set[str]:
        """The partition keys of an asset that the UI shows as materialized."""
        text = (
            "query($k:AssetKeyInput!){assetNodeOrError(assetKey:$k){... on AssetNode{assetPartitionStatuses{"
            "... on DefaultPartitionStatuses{materializedPartitions}}}}}"
        )
        statuses = self.query(text, k={"path": [asset]})["assetNodeOrError"]["assetPartitionStatuses"]
        return set(statuses["materializedPartitions"])

    def materialize(self, asset: str, graph_id: str, layer: str | None = None) -> str:
        """Materialize one partition, as the button does; the id of the run."""
        tags = {"dagster/partition": f"{graph_id}|{layer}" if layer else graph_id}
        text = (
            "mutation($p:ExecutionParams!){launchPipelineExecution(executionParams:$p)"
            "{__typename ... on LaunchRunSuccess{run{runId}} ... on PythonError{message}}}"
        )
        selector = {**REPOSITORY, "pipelineName": "__ASSET_JOB", "assetSelection": [{"path": [asset]}]}
        metadata = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        parameters = {"selector": selector, "mode": "default", "runConfigData": {}, "executionMetadata": metadata}
        result = self.query(text, p=parameters)["launchPipelineExecution"]
        assert result["__typename"] == "LaunchRunSuccess", result
        return str(result["run"]["runId"])

    def backfill(self, partitions: dict[str, list[str]]) -> str:
        """Launch a backfill of assets by their partition keys; its id."""
        text = (
            "mutation($p:LaunchBackfillParams!){launchPartitionBackfill(backfillParams:$p)"
            "{__typename ... on LaunchBackfillSuccess{backfillId} ... on PythonError{message}}}"
        )
        by_asset = [
            {"assetKey": {"path": [asset]}, "partitions": {"ranges": [{"start": k, "end": k} for k in keys]}}
            for asset, keys in partitions.items()
        ]
        result = self.query(text, p={"partitionsByAssets": by_asset})["launchPartitionBackfill"]
        assert result["__typename"] == "LaunchBackfillSuccess", result
        return str(result["backfillId"])

    def backfill_of_job(self, job: str, partitions: list[str]) -> str:
        """Launch a backfill of a partitioned job; its id."""
        text = (
            "mutation($p:LaunchBackfillParams!){launchPartitionBackfill(backfillParams:$p)"
            "{__typename ... on LaunchBackfillSuccess{backfillId} ... on PythonError{message}}}"
        )
        selector = {"repositorySelector": REPOSITORY, "partitionSetName": f"{job}_partition_set"}
        result = self.query(text, p={"selector": selector, "partitionNames": partitions})["launchPartitionBackfill"]
        assert result["__typename"] == "LaunchBackfillSuccess", result
        return str(result["backfillId"])

    def runs_of(self, job: str) -> list[tuple[str, str]]:
        """Id and status of the runs of a job, newest first."""
        text = "query($j:String!){runsOrError(filter:{pipelineName:$j}){... on Runs{results{runId status}}}}"
        return [(r["runId"], r["status"]) for r in self.query(text, j=job)["runsOrError"]["results"]]

    def runs_with(self, tag: str, value: str) -> list[str]:
        """Ids of the runs with a tag."""
        text = "query($t:[ExecutionTag!]){runsOrError(filter:{tags:$t}){... on Runs{results{runId}}}}"
        return [r["runId"] for r in self.query(text, t=[{"key": tag, "value": value}])["runsOrError"]["results"]]

    def backfill_status(self, backfill_id: str) -> str:
        text = "query($i:String!){partitionBackfillOrError(backfillId:$i){... on PartitionBackfill{status}}}"
        return str(self.query(text, i=backfill_id)["partitionBackfillOrError"]["status"])

    def launch(self, job: str, config: dict[str, Any]) -> str:
        """Launch a job with a run config, as the launchpad does; the id of the run."""
        text = (
            "mutation($p:ExecutionParams!){launchPipelineExecution(executionParams:$p)"
            "{__typename ... on LaunchRunSuccess{run{runId}} ... on PythonError{message}"
            " ... on RunConfigValidationInvalid{errors{message}}}}"
        )
        parameters = {"selector": {**REPOSITORY, "pipelineName": job}, "mode": "default", "runConfigData": config}
        result = self.query(text, p=parameters)["launchPipelineExecution"]
        assert result["__typename"] == "LaunchRunSuccess", result
        return str(result["run"]["runId"])

    def tags(self, run_id: str) -> dict[str, str]:
        """All tags of a run."""
        text = "query($i:ID!){runOrError(runId:$i){... on Run{tags{key value}}}}"
        return {tag["key"]: tag["value"] for tag in self.query(text, i=run_id)["runOrError"]["tags"]}

    def reexecute_from_failure(self, run_id: str) -> str:
        return self.reexecute(run_id, "FROM_FAILURE")

    def reexecute(self, run_id: str, strategy: str) -> str:
        text = (
            "mutation($p:ReexecutionParams!){launchRunReexecution(reexecutionParams:$p)"
            "{__typename ... on LaunchRunSuccess{run{runId}} ... on PythonError{message}}}"
        )
        result = self.query(text, p={"parentRunId": run_id, "strategy": strategy})["launchRunReexecution"]
        assert result["__typename"] == "LaunchRunSuccess", result
        return str(result["run"]["runId"])

    def status(self, run_id: str) -> str:
        """The status of a run, such as QUEUED or STARTED."""
        text = "query($i:ID!){runOrError(runId:$i){... on Run{status}}}"
        return str(self.query(text, i=run_id)["runOrError"]["status"])

    def wait_for_run(self, run_id: str, seconds: float = 120) -> str:
        def status() -> str | None:
            now = self.status(run_id)
            return now if now in ("SUCCESS", "FAILURE", "CANCELED") else None

        return str(wait_for(status, f"run {run_id}", seconds))

    def worker(self, run_id: str) -> psutil.Process:
        """The process that a run's events name as the parent of its steps."""
        text = "query($i:ID!){logsForRun(runId:$i){... on EventConnection{events{... on MessageEvent{message}}}}}"

        def find() -> psutil.Process | None:
            events = self.query(text, i=run_id)["logsForRun"]["events"]
            found = [m for e in events if (m := re.search(r"parent process \(pid: (\d+)\)", e.get("message") or ""))]
            return psutil.Process(int(found[-1][1])) if found else None

        return wait_for(find, f"the worker of run {run_id}")

    def step_processes(self, run_id: str) -> list[psutil.Process]:
        """The processes in which steps of a run work right now: leaves below its worker."""
        below = self.worker(run_id).children(recursive=True)
        return [p for p in below if p.is_running() and is_step(p)]


def is_step(process: psutil.Process) -> bool:
    """Whether a process is a step's: a child of the fork server (which itself, and its tracker, are not)."""
    with contextlib.suppress(psutil.Error):
        parent = process.parent()
        return parent is not None and "forkserver" in " ".join(parent.cmdline())
    return False


@contextlib.contextmanager
def dev_server(home: str, dagster_home: Path) -> Iterator[DevServer]:
    """Start ``dg dev -w workspace.yaml`` as ``make ui`` does, and stop it as Ctrl-C does."""
    dagster_home.mkdir(parents=True, exist_ok=True)
    shutil.copy(PROJECT / "instance" / "dagster.yaml", dagster_home)
    port = free_port()
    environment = {**os.environ, "DAGSTER_HOME": str(dagster_home), "SV_PIPELINE_HOME": home}
    log = (dagster_home / "dev.log").open("wb")
    process = subprocess.Popen(
        [Path(sys.executable).with_name("dg"), "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)],
        cwd=PROJECT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    server = DevServer(port, process)
    try:
        wait_for(server.loaded, f"dg dev: see {log.name}", 240)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()
