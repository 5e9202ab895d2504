"""Recovery of edits whose process died: a sensor finds them, and a job rolls them back and makes them again."""

import os
import time
from functools import partial
from typing import Any

import dagster as dg
from pydantic import Field

from sv_pipeline import recovery
from sv_pipeline.defs.metadata import explained_failures, numbers, pictures, viewer_links
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import MOST_RECOVERIES, RECOVERY_BACKOFF, SLOT_TAG, UNFINISHED_RUNS
from sv_pipeline.defs.ticks import ended_tick, read_cursor, told
from sv_pipeline.edits.requests import user_or_default
from sv_pipeline.environment import is_switched_on
from sv_pipeline.errors import CorruptionError, NotFoundError, SvPipelineError
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.recovery.durations import parse_duration
from sv_pipeline.recovery.observing import Observation, Observations
from sv_pipeline.registry import Dataset, Registry, ask_every_graph
from sv_pipeline.reports.alerts import alerts_from_environment
from sv_pipeline.reports.sizes import DIALOG_WIDTH
from sv_pipeline.reports.viewer_links import operation_link
from sv_pipeline.storage.wall import wall
from sv_pipeline.verify.postcheck import prove_ended

__all__ = [
    "abandon_operation_job",
    "dead_recoveries_sensor",
    "mend_job",
    "recover_operation_job",
    "stuck_operations_sensor",
]

GRAPH_TAG, OPERATION_TAG, ATTEMPT_TAG = "sv/graph_id", "sv/op_id", "sv/attempt"
ONE_AT_A_TIME_TAG = "sv/recovery_of"
"""Tag that also holds the graph; by it dagster.yaml limits each graph to one recovery at a time, but not its edits."""
AGE_VARIABLE, SWITCH_VARIABLE = "SV_PIPELINE_RECOVERY_MIN_AGE", "SV_PIPELINE_RECOVERY"
RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
FOR_PEOPLE = (recovery.RecoveryStoppedError, CorruptionError, NotFoundError)
"""Errors that a retry cannot solve, so that a person has to look."""
FAILED_RUNS = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


class OperationConfig(dg.Config):
    """The operation to recover."""

    graph_id: str = Field(description="A registered graph.")
    operation_id: int = Field(ge=1, description="Its number in the operation log; see 'sv-pipeline stuck list'.")
    seen: str = Field(default="", description="The owner's cell, which did not change while the sensor watched it.")
    seen_for: float = Field(
        default=0.0, ge=0, description="Time in seconds for which the sensor has watched that cell."
    )
    own_process: bool = Field(
        default=False,
        description="Work in a child process, which the run starts again if it dies. Starting it takes time.",
    )


@dg.op(out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def recover_operation(context: dg.OpExecutionContext, pipeline: PipelineResource, config: OperationConfig) -> None:
    """Claim an operation whose process died, roll back what it wrote, make it again, and prove the result.

    All stages are one step, so that every repetition (a retry, a re-execution or a new run) begins with the rollback.
    """
    with explained_failures():
        _recover(context, pipeline, config)


def _recover(context: dg.OpExecutionContext, pipeline: PipelineResource, config: OperationConfig) -> None:
    operation_id = config.operation_id
    try:
        with wall():
            dataset = pipeline.dataset(config.graph_id)
            graph = dataset.graph
        try:
            with wall():
                report = recovery.recover(
                    graph,
                    operation_id,
                    token=recovery.process_token(f"run-{context.run_id}"),
                    watched=recovery.Watched(config.seen, config.seen_for) if config.seen else None,
                    tell=partial(_show, context, config.graph_id),
                )
        except recovery.FinishedError as error:
            _show(context, config.graph_id, "prove", proof := prove_ended(graph, operation_id))
            said, metadata = error.message, {"nothing to do": error.message, **proof}
        else:
            said, metadata = str(report), {"outcome": report.replay.outcome, **report.proof}
    except recovery.NotStuckError as error:
        if context.retry_number:  # an earlier process of this run is still alive, so the operation has not ended
            raise dg.Failure(description=str(error), metadata={"kind": error.kind}) from error
        context.log.info("%s", error)
        context.add_output_metadata({"nothing to do": str(error)})
        return
    except SvPipelineError as error:
        allow_retries = not isinstance(error, FOR_PEOPLE)
        raise dg.Failure(description=str(error), metadata={"kind": error.kind}, allow_retries=allow_retries) from error
    context.log.info("%s", said)
    # The picture comes first, since the UI shows only the first few lines without a click.
    context.add_output_metadata(
        {
            **_before_and_after(dataset, operation_id),
            **numbers(metadata),
            **viewer_links(lambda: operation_link(dataset, operation_id)),
        }
    )
    first = not context.retry_number and context.run.tags.get(ATTEMPT_TAG, "1") == "1"
    if "nothing to do" in metadata and first:
        return  # an earlier run has reported it; an attempt that died after its work has not
    alerts_from_environment().send(
        f"graph {config.graph_id}: {said}",
        good=True,
        graph=config.graph_id,
        operation=operation_id,
        run_id=context.run_id,
        healed=True,
    )


def _before_and_after(dataset: Dataset, operation_id: int) -> dict[str, Any]:
    """Draw a recovered operation as its own run would have drawn it; nothing if it was not made."""
    return pictures(before_and_after=lambda: OpenGraph(dataset).picture(operation_id, width=DIALOG_WIDTH))


def _show(context: dg.OpExecutionContext, graph_id: str, stage: str, what: dict[str, Any]) -> None:
    """Report the end of a stage as an observation of the graph's fork, and as a line of the run's log."""
    observed = {"stage": stage, **numbers(what)}
    context.log_event(dg.AssetObservation("fork", f"recovery: {stage}", observed, graph_id))
    context.log.info("%s: %s", stage, ", ".join(f"{name}: {value}" for name, value in what.items()))


@dg.failure_hook
def alert_people(context: dg.HookContext) -> None:
    """Send an alert that a recovery has failed, to the log and to SV_PIPELINE_ALERT_WEBHOOK."""
    run = context.instance.get_run_by_id(context.run_id)
    if run is not None:
        alert_of_failure(run, str(context.op_exception))


def alert_of_failure(run: dg.DagsterRun, why: str) -> None:
    """Send an alert that a run which should have recovered or abandoned an operation has failed."""
    attempt = int(run.tags.get(ATTEMPT_TAG, 1))
    graph_id, operation_id = run.run_config.get("graph_id"), run.run_config.get("operation_id")
    if ATTEMPT_TAG not in run.tags:
        again = "launched by hand"
    else:
        more = attempt < MOST_RECOVERIES
        again = f"attempt {attempt}; " + (
            "it will be tried again" if more else "it will not be tried again: see 'sv-pipeline stuck show'"
        )
    alerts_from_environment().send(
        f"{run.job_name}: operation {operation_id} of graph {graph_id} failed: {why} ({again})",
        graph=graph_id,
        operation=operation_id,
        attempt=attempt,
        run_id=run.run_id,
        final=attempt >= MOST_RECOVERIES,
    )


@dg.config_mapping
def in_one_process(config: OperationConfig) -> dict[str, Any]:
    """Pass the operation to its step, which runs in the process of the run unless ``own_process`` is set."""
    executor: dict[str, Any] = {"multiprocess": {"max_concurrent": 1}} if config.own_process else {"in_process": {}}
    return {"ops": {"recover_operation": {"config": config.model_dump()}}, "execution": {"config": executor}}


@dg.job(
    config=in_one_process,
    executor_def=dg.multi_or_in_process_executor,
    hooks={alert_people},
    tags={SLOT_TAG: "recovery"},
)
def recover_operation_job() -> None:
    """Recover one edit whose process died: claim it, roll back what it wrote, make it again, prove the result."""
    recover_operation()


class AbandonConfig(dg.Config):
    """The operation to give up, and the reason."""

    graph_id: str = Field(description="A registered graph.")
    operation_id: int = Field(ge=1, description="Its number in the operation log; see 'sv-pipeline stuck list'.")
    reason: str = Field(
        min_length=1, description="Reason why the edit is given up, for its user; it is stored in the log."
    )
    user: str = Field(default="", description="User who decides this, for the log. Default: the user of the worker.")
    take_locks: bool = Field(
        default=False, description="Restore locks that were removed, where no edit was made since then."
    )


@dg.op(out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def abandon_operation(context: dg.OpExecutionContext, pipeline: PipelineResource, config: AbandonConfig) -> None:
    """Roll back what an operation wrote, release its locks, log the reason, and prove the result."""
    with explained_failures():
        dataset = pipeline.dataset(config.graph_id)
        graph = dataset.graph
        try:
            report = recovery.abandon(
                graph,
                config.operation_id,
                user=user_or_default(config.user or None),
                reason=config.reason,
                token=recovery.process_token(f"run-{context.run_id}"),
                take_locks=config.take_locks,
                tell=partial(_show, context, config.graph_id),
            )
        except recovery.FinishedError as error:
            context.log.info("%s", error)
            context.add_output_metadata(
                numbers({"nothing to do": error.message, **prove_ended(graph, config.operation_id)})
            )
            return
    context.log.info("%s", report)
    link = viewer_links(lambda: operation_link(dataset, config.operation_id))
    context.add_output_metadata({**numbers({"outcome": report.replay.outcome, **report.proof}), **link})
    alerts_from_environment().send(
        f"graph {config.graph_id}: {report}", good=True, graph=config.graph_id, operation=config.operation_id
    )


@dg.config_mapping
def abandoned_in_one_process(config: AbandonConfig) -> dict[str, Any]:
    """Pass the operation to its step."""
    return {"ops": {"abandon_operation": {"config": config.model_dump()}}}


@dg.job(
    config=abandoned_in_one_process,
    executor_def=dg.in_process_executor,
    hooks={alert_people},
    tags={SLOT_TAG: "recovery"},
)
def abandon_operation_job() -> None:
    """Give up one edit that cannot be made again: roll back what it wrote, release its locks, log the reason."""
    abandon_operation()


class MendConfig(dg.Config):
    """The graph to mend."""

    graph_id: str = Field(description="A registered graph.")
    apply: bool = Field(default=False, description="Make the changes. By default they are only shown.")


@dg.op
def mend_graph(context: dg.OpExecutionContext, pipeline: PipelineResource, config: MendConfig) -> None:
    """Convert what other software has written to our form, or only report it."""
    with explained_failures():
        report = recovery.mend(pipeline.dataset(config.graph_id).graph, apply=config.apply)
    context.log.info("%s", report)
    context.add_output_metadata(numbers(report.to_dict()))


@dg.config_mapping
def mended_in_one_process(config: MendConfig) -> dict[str, Any]:
    """Pass the graph to its step."""
    return {"ops": {"mend_graph": {"config": config.model_dump()}}}


@dg.job(config=mended_in_one_process, executor_def=dg.in_process_executor, tags={SLOT_TAG: "recovery"})
def mend_job() -> None:
    """Convert what other software has written in a graph to the form that sv_pipeline writes; a dry run by default."""
    mend_graph()


@dg.sensor(
    job_name=recover_operation_job.name,
    minimum_interval_seconds=5,
    default_status=(
        dg.DefaultSensorStatus.RUNNING if is_switched_on(SWITCH_VARIABLE) else dg.DefaultSensorStatus.STOPPED
    ),
    description=f"Finds edits whose process died, and starts a run that rolls each back and makes it again. An edit is "
    f"taken for dead if its owner has not renewed its cell for {AGE_VARIABLE} (10m). The cursor says how long "
    "each unfinished edit has been watched.",
)
def stuck_operations_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
    """Find edits whose owner has not renewed its cell for SV_PIPELINE_RECOVERY_MIN_AGE (10m), and start recoveries."""
    min_age, now = parse_duration(os.environ.get(AGE_VARIABLE, "10m")), time.time()
    notes = read_cursor(context)
    fresh, requests, said = {}, [], []
    answers = ask_every_graph(pipeline.registry, _unfinished)
    for graph_id, found in answers.items():
        if isinstance(found, str):
            said.append(f"{graph_id}: {found}")
            fresh[graph_id] = notes.get(graph_id, {})
            continue
        if found is None:
            continue  # the graph is not set up yet, so nothing can be stuck
        seen = Observations.of(notes.get(graph_id)).look(found, now)
        fresh[graph_id] = seen.to_dict()
        for one in found:
            unmoved = seen.unmoved(one.operation_id, now)
            if unmoved < min_age:
                said.append(f"{graph_id}: operation {one.operation_id} has not moved for {unmoved:.0f} s")
                continue
            request = _request(context.instance, graph_id, one, seen.seen[one.operation_id], now)
            if isinstance(request, str):
                said.append(f"{graph_id}: operation {one.operation_id} {request}")
            else:
                requests.append(request)
                said.append(f"{graph_id}: operation {one.operation_id} is stuck, a recovery is asked for")
    return ended_tick(
        context,
        f"looked at {len(answers)} graphs: {told(said) or 'nothing is unfinished'}",
        cursor={graph_id: seen for graph_id, seen in fresh.items() if seen},
        run_requests=requests,
    )


@dg.run_failure_sensor(
    name="dead_recoveries_sensor",
    monitored_jobs=[recover_operation_job, abandon_operation_job],
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends an alert for a recovery whose process died before it could send one itself.",
)
def dead_recoveries_sensor(context: dg.RunFailureSensorContext) -> None:
    """Send an alert for a recovery or abandonment whose process died before it could send one itself."""
    run = context.dagster_run
    if not context.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.HOOK_COMPLETED):
        alert_of_failure(run, context.failure_event.message or "its process died")


def _unfinished(registry: Registry, graph_id: str) -> list[recovery.Unfinished] | None:
    """Read the unfinished operations of a graph; None if it is not set up yet."""
    try:
        graph = registry.get(graph_id).graph
    except NotFoundError:
        return None
    return recovery.all_unfinished(graph)


def _request(
    instance: dg.DagsterInstance, graph_id: str, one: recovery.Unfinished, seen: Observation, now: float
) -> dg.RunRequest | str:
    """Return a run that recovers an operation, or the reason why there is none now."""
    tags = {GRAPH_TAG: graph_id, OPERATION_TAG: str(one.operation_id)}
    job = recover_operation_job.name  # needed in the filter, since runs of edits have the same tags
    if instance.get_runs_count(dg.RunsFilter(job_name=job, tags=tags, statuses=UNFINISHED_RUNS)):
        return "is being recovered"
    failed = instance.get_run_records(dg.RunsFilter(job_name=job, tags=tags, statuses=FAILED_RUNS))
    ended = max((record.end_time or 0.0 for record in failed), default=None)
    if len(failed) >= MOST_RECOVERIES:
        return f"needs a person: {len(failed)} recoveries failed, the last one with: {one.progress.error}"
    if not RECOVERY_BACKOFF.due(len(failed), ended, now):
        return f"will be tried again: {len(failed)} recoveries failed"
    attempt = instance.get_runs_count(dg.RunsFilter(job_name=job, tags=tags)) + 1
    config = OperationConfig(
        graph_id=graph_id, operation_id=one.operation_id, seen=seen.signature, seen_for=seen.watched
    )
    return dg.RunRequest(
        run_key=f"{graph_id}:{one.operation_id}:{attempt}",
        run_config=config.model_dump(),
        tags={**tags, ATTEMPT_TAG: str(len(failed) + 1), ONE_AT_A_TIME_TAG: graph_id},
    )
