"""The OCDBT coordinator of a run, for graphs with ``populate_method: coordinator``: found, or started for the run.

The first step that needs a coordinator and finds none starts one in a process of its own, and announces its address in
the run's tag ``sv/coordinator``. The process ends with the run, also if the run fails, is canceled or killed. A step
that finds the announced coordinator dead starts another one. Two at once are harmless: commits only take longer.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dagster as dg

from sv_pipeline.config import PopulateMethod
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import UNFINISHED_RUNS
from sv_pipeline.errors import ConfigError
from sv_pipeline.ingest.batches import Batch, Stage
from sv_pipeline.ingest.runner import fans_out_to_kubernetes
from sv_pipeline.processes import interrupts_held
from sv_pipeline.registry import Dataset
from sv_pipeline.storage.coordinator import ADDRESS_VARIABLE, announced_address, running_coordinator, serve

__all__ = ["HOST_VARIABLE", "TAG", "coordinator_for", "main", "prepare_coordinator"]

HOST_VARIABLE = "SV_PIPELINE_COORDINATOR_HOST"
"""Environment variable of a worker: its address, under which workers on other machines reach it."""
TAG = "sv/coordinator"
LOOK_SECONDS = 2.0
PATIENCE_SECONDS = 600.0
"""Time without an answer from the Dagster instance after which a coordinator ends."""

_started: list[subprocess.Popen[str]] = []
"""Coordinators that this process has started; they may outlive it."""


@contextmanager
def coordinator_for(
    context: dg.OpExecutionContext, pipeline: PipelineResource, dataset: Dataset, batch: Batch
) -> Iterator[str | None]:
    """Yield the address of the coordinator that a batch commits through; None if it needs none.

    Raises
    ------
    ConfigError
        If none is configured, and workers may be on machines that cannot reach one that is started here.
    UnavailableError
        If it does not start.
    """
    configured = pipeline.coordinator_address(dataset)
    if configured is not None or not _is_needed(dataset, [batch]):
        yield configured
    elif context.instance.is_ephemeral:
        with running_coordinator() as address:  # all steps run in this process, one after the other
            yield address
    else:
        yield _coordinator_of_run(context, dataset)


def prepare_coordinator(
    context: dg.OpExecutionContext, pipeline: PipelineResource, dataset: Dataset, batches: Sequence[Batch]
) -> str | None:
    """Start the coordinator of a run before its batches begin, if they need one and none is configured.

    Returns
    -------
    Its address, host:port; None if none is needed, or each batch starts its own.

    Raises
    ------
    ConfigError
        See `coordinator_for`.
    """
    configured = pipeline.coordinator_address(dataset)
    if configured is not None or not _is_needed(dataset, batches):
        return configured
    if context.instance.is_ephemeral:
        _host(context, dataset)
        return None
    return _coordinator_of_run(context, dataset)


def _is_needed(dataset: Dataset, batches: Sequence[Batch]) -> bool:
    by_coordinator = dataset.config.ocdbt_config.populate_method is PopulateMethod.COORDINATOR
    return by_coordinator and any(batch.stage is Stage.VOXELS for batch in batches)


def _coordinator_of_run(context: dg.OpExecutionContext, dataset: Dataset) -> str:
    run = context.instance.get_run_by_id(context.run_id)
    announced = run.tags.get(TAG) if run is not None else None
    if announced is not None and _answers(announced):
        return announced
    address = _start(context, _host(context, dataset))
    context.instance.add_run_tags(context.run_id, {TAG: address})
    context.log.info("started an OCDBT coordinator at %s for this run", address)
    return address


def _host(context: dg.OpExecutionContext, dataset: Dataset) -> str:
    """Return the address that a coordinator listens on: this machine's own, unless workers are on other machines."""
    if own := os.environ.get(HOST_VARIABLE):
        return own
    elsewhere = {"celery", "k8s"}
    named = {context.job_def.executor_def.name, os.environ.get("SV_PIPELINE_EXECUTOR")}
    if named & elsewhere or fans_out_to_kubernetes():
        raise ConfigError(
            f"graph {dataset.graph_id} has populate_method: coordinator, and its steps may run on several machines, "
            "but no address of a coordinator is known that all of them reach.",
            remedy=f"Set {ADDRESS_VARIABLE} of the workers to host:port of a running coordinator "
            f"(python -m sv_pipeline.storage.coordinator --bind 0.0.0.0:3344), or {HOST_VARIABLE} of each worker to "
            "its own address in the workers' network, so that a run can start one; or choose populate_method: parts.",
        )
    return "127.0.0.1"


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _start(context: dg.OpExecutionContext, host: str) -> str:
    from dagster._serdes import serialize_value

    command = [sys.executable, "-m", "sv_pipeline.defs.coordinator", "--run", context.run_id, "--bind", f"{host}:0"]
    with interrupts_held():
        child = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # it outlives the step
        )
    assert child.stdin is not None
    child.stdin.write(serialize_value(context.instance.get_ref()))
    child.stdin.close()
    address = announced_address(child)
    for stream in (child.stdout, child.stderr):
        assert stream is not None
        stream.close()
    _started.append(child)
    return address


# -- inside the process of a coordinator ------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a run has ended. The Dagster instance of the run is read from standard input."""
    from dagster._core.instance.ref import InstanceRef
    from dagster._serdes import deserialize_value

    parser = argparse.ArgumentParser(prog="python -m sv_pipeline.defs.coordinator", description=__doc__)
    parser.add_argument("--run", required=True, help="id of the run")
    parser.add_argument("--bind", required=True, help="host:port to listen on; port 0 chooses a free port")
    options = parser.parse_args(arguments)
    server, address = serve(options.bind)
    sys.stdout.write(json.dumps({"address": address, "process": os.getpid()}) + "\n")
    sys.stdout.flush()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with dg.DagsterInstance.from_ref(deserialize_value(sys.stdin.read(), InstanceRef)) as instance:
        seen = time.monotonic()
        while not stop.wait(LOOK_SECONDS) and time.monotonic() - seen < PATIENCE_SECONDS:
            try:
                run = instance.get_run_by_id(options.run)
            except Exception:  # noqa: BLE001, S112 - each storage has errors of its own; PATIENCE_SECONDS bounds them
                continue
            seen = time.monotonic()
            if run is None or run.status not in UNFINISHED_RUNS:
                break
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main())
