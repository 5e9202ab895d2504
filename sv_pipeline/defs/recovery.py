"""Healing: a sensor finds edits whose process died, and a job takes them back and makes them again."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from sv_pipeline.defs.metadata import pictures
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.edits import recovery
from sv_pipeline.edits.recovery.durations import parse_duration
from sv_pipeline.edits.recovery.heal import replay_of
from sv_pipeline.edits.recovery.observing import Backoff, Observations
from sv_pipeline.edits.recovery.proof import prove_ended
from sv_pipeline.engine.every_graph import ask_every_graph
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.registry import Registry
from sv_pipeline.reports.alerts import alerts_from_environment
from sv_pipeline.reports.split_pictures import split_picture

__all__ = ["recover_operation_job", "stuck_operations_sensor"]

GRAPH_TAG, OPERATION_TAG, ATTEMPT_TAG = "sv/graph_id", "sv/op_id", "sv/attempt"
ONE_AT_A_TIME_TAG = "sv/recovery_of"
"""Graph, once more: dagster.yaml lets one recovery of a graph run at a time, but any number of edits."""
AGE_VARIABLE, SWITCH_VARIABLE = "SV_PIPELINE_RECOVERY_MIN_AGE", "SV_PIPELINE_RECOVERY"
BACKOFF = Backoff()
RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
UNFINISHED_RUNS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
FAILED_RUNS = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


class OperationConfig(dg.Config):
    """Which operation to recover."""

    graph_id: str
    operation_id: int = Field(ge=1, description="Its number in the operation log; see 'sv-pipeline stuck list'.")


@contextlib.contextmanager
def _explained(context: dg.OpExecutionContext) -> Iterator[None]:
    """Quiet where there is nothing to do; else a failure with our message, retried unless a person is needed."""
    try:
        yield
    except recovery.NotStuckError as error:
        context.log.info("%s", error)
        context.add_output_metadata({"nothing to do": str(error)})
    except SvPipelineError as error:
        raise dg.Failure(
            description=str(error),
            metadata={"kind": error.kind},
            allow_retries=not isinstance(error, recovery.RecoveryStoppedError),
        ) from error


def _claim(context: dg.OpExecutionContext, pipeline: PipelineResource, config: OperationConfig) -> recovery.Claim:
    """The operation, which belongs to this run: by the first step's claim, or by one of its own after a restart."""
    graph = pipeline.dataset(config.graph_id).graph
    return recovery.claim(graph, config.operation_id, f"run-{context.run_id}")


@dg.op(out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def claim_operation(context: dg.OpExecutionContext, pipeline: PipelineResource, config: OperationConfig) -> None:
    """Watch that its owner is dead, prove that it holds its chunks, and take it over."""
    with _explained(context):
        claim = _claim(context, pipeline, config)
        found, judged = claim.found, claim.assessment
        context.add_output_metadata(
            {
                "found": str(judged.state),
                "operation": found.operation_id,
                "kind": found.kind,
                "user": found.user,
                "status": found.status,
                "recoveries": found.progress.attempts,
                "chunks": len(found.scope.chunks) if found.scope else 0,
                "locked": f"{judged.n_locked} of {judged.n_wanted}",
                "generation": str(found.scope.generation) if found.scope else "none",
                "voxels are in": judged.record is not None,
            }
        )


@dg.op(ins={"claimed": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def clean_up_operation(context: dg.OpExecutionContext, pipeline: PipelineResource, config: OperationConfig) -> None:
    """Put the voxels back that it changed, and take its cells out."""
    with _explained(context):
        claim = _claim(context, pipeline, config)
        with claim.own.beating():
            done = recovery.heal_rows(claim)
        context.add_output_metadata(
            {"boxes put back": done.boxes, "voxels put back": done.voxels, "cells taken out": done.cells}
        )


@dg.op(ins={"cleaned": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def replay_operation(context: dg.OpExecutionContext, pipeline: PipelineResource, config: OperationConfig) -> None:
    """Make the edit again that was asked for, and free its locks."""
    with _explained(context):
        claim = _claim(context, pipeline, config)
        with claim.own.beating():
            replay = replay_of(claim)
        context.log.info("operation %d: %s %s", config.operation_id, replay.outcome, replay.text)
        roots = [] if replay.edit is None else replay.edit.roots.tolist()
        context.add_output_metadata(
            {
                "outcome": replay.outcome,
                "reason": replay.text or "none",
                "new roots": ", ".join(map(str, roots)) or "none",
            }
        )


@dg.op(ins={"replayed": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def verify_operation(context: dg.OpExecutionContext, pipeline: PipelineResource, config: OperationConfig) -> None:
    """Prove that nothing is left of it but the edit."""
    with _explained(context):
        graph = pipeline.dataset(config.graph_id).graph
        checked = prove_ended(graph, config.operation_id)

        def drawn() -> bytes:
            png = split_picture(graph, config.operation_id)
            if png is None:
                raise ValueError("it changed no voxels")
            return png

        context.add_output_metadata({**checked, **pictures(split=drawn)})


@dg.failure_hook
def alert_people(context: dg.HookContext) -> None:
    """Tell people that a recovery has failed: to the log, and to SV_PIPELINE_ALERT_WEBHOOK."""
    run = context.instance.get_run_by_id(context.run_id)
    tags, asked = ({}, {}) if run is None else (run.tags, run.run_config)
    attempt = int(tags.get(ATTEMPT_TAG, 1))
    graph_id, operation_id = asked.get("graph_id"), asked.get("operation_id")
    again = "it will be tried again" if attempt < BACKOFF.max_attempts else "nobody will try again: see 'stuck show'"
    what = f"recovery of operation {operation_id} of graph {graph_id} failed at {context.step_key}"
    alerts_from_environment().send(
        f"{what}: {context.op_exception} (attempt {attempt}; {again})",
        graph=graph_id,
        operation=operation_id,
        attempt=attempt,
        run_id=context.run_id,
        final=attempt >= BACKOFF.max_attempts,
    )


@dg.config_mapping
def for_every_step(config: OperationConfig) -> dict[str, Any]:
    """The operation, for all steps."""
    steps = ("claim_operation", "clean_up_operation", "replay_operation", "verify_operation")
    value = {"graph_id": config.graph_id, "operation_id": config.operation_id}
    return {"ops": {step: {"config": value} for step in steps}}


@dg.job(config=for_every_step, hooks={alert_people})
def recover_operation_job() -> None:
    """Recover one edit whose process died: claim it, take back what it wrote, make it again, prove the result."""
    verify_operation(replay_operation(clean_up_operation(claim_operation())))


@dg.sensor(
    job=recover_operation_job,
    minimum_interval_seconds=30,
    default_status=(
        dg.DefaultSensorStatus.STOPPED if os.environ.get(SWITCH_VARIABLE) == "off" else dg.DefaultSensorStatus.RUNNING
    ),
)
def stuck_operations_sensor(
    context: dg.SensorEvaluationContext, pipeline: PipelineResource
) -> dg.SensorResult | dg.SkipReason:
    """Find edits whose owner has not moved for SV_PIPELINE_RECOVERY_MIN_AGE (10m), and have them recovered."""
    min_age, now = parse_duration(os.environ.get(AGE_VARIABLE, "10m")), time.time()
    notes: dict[str, Any] = json.loads(context.cursor) if context.cursor else {}
    fresh, requests, said = {}, [], []
    for graph_id, found in ask_every_graph(pipeline.registry, _unfinished).items():
        if isinstance(found, str):
            said.append(f"{graph_id}: {found}")
            fresh[graph_id] = notes.get(graph_id, {})
            continue
        seen = Observations.of(notes.get(graph_id)).look(found, now)
        fresh[graph_id] = seen.to_dict()
        for one in found:
            unmoved = seen.unmoved(one.operation_id, now)
            if unmoved < min_age:
                said.append(f"{graph_id}: operation {one.operation_id} has not moved for {unmoved:.0f} s")
                continue
            request = _request(context.instance, graph_id, one, now)
            if isinstance(request, str):
                said.append(f"{graph_id}: operation {one.operation_id} {request}")
            else:
                requests.append(request)
    cursor = json.dumps({graph_id: seen for graph_id, seen in fresh.items() if seen})
    if requests:
        return dg.SensorResult(run_requests=requests, cursor=cursor)
    return dg.SensorResult(skip_reason="; ".join(said) or "nothing is unfinished", cursor=cursor)


def _unfinished(registry: Registry, graph_id: str) -> list[recovery.Unfinished]:
    return recovery.all_unfinished(registry.get(graph_id).graph)


def _request(instance: dg.DagsterInstance, graph_id: str, one: recovery.Unfinished, now: float) -> dg.RunRequest | str:
    """A run that recovers an operation, or why there is none now."""
    tags = {GRAPH_TAG: graph_id, OPERATION_TAG: str(one.operation_id)}
    job = recover_operation_job.name  # runs that edit have these tags, too
    if instance.get_runs_count(dg.RunsFilter(job_name=job, tags=tags, statuses=UNFINISHED_RUNS)):
        return "is being recovered"
    failed = instance.get_run_records(dg.RunsFilter(job_name=job, tags=tags, statuses=FAILED_RUNS))
    ended = max((record.end_time or 0.0 for record in failed), default=None)
    if not BACKOFF.due(len(failed), ended, now):
        if len(failed) >= BACKOFF.max_attempts:
            return f"needs a person: {len(failed)} recoveries failed, the last one with: {one.progress.error}"
        return f"will be tried again: {len(failed)} recoveries failed"
    attempt = instance.get_runs_count(dg.RunsFilter(job_name=job, tags=tags)) + 1
    config = OperationConfig(graph_id=graph_id, operation_id=one.operation_id)
    return dg.RunRequest(
        run_key=f"{graph_id}:{one.operation_id}:{attempt}",
        run_config=config.model_dump(),
        tags={**tags, ATTEMPT_TAG: str(len(failed) + 1), ONE_AT_A_TIME_TAG: graph_id},
    )
