"""Regular verification: a job for one graph, a nightly sample of every graph, and checks of what edits have changed.

A verification of a part of a graph may find a fault, but a clean result proves nothing about the rest. It therefore
never turns a check from failed to passed; only a verification of the whole graph does.
"""

import zlib
from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from sv_pipeline.defs.checks import evaluations, red_checks
from sv_pipeline.defs.metadata import explained_failures
from sv_pipeline.defs.nights import VERIFY_AT, for_each_graph
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import SLOT_TAG, UNFINISHED_RUNS
from sv_pipeline.defs.ticks import told
from sv_pipeline.environment import is_switched_on, whole_number_in
from sv_pipeline.registry import Registry, ask_every_graph
from sv_pipeline.reports.alerts import alerts_from_environment
from sv_pipeline.table import counters
from sv_pipeline.verify.dataset import verify_changes, verify_dataset
from sv_pipeline.verify.report import VerifyReport
from sv_pipeline.verify.run import CHECKS

__all__ = ["alert_people", "conclude", "seed_of", "verify_changes_schedule", "verify_job", "verify_nightly_schedule"]

SWITCH_VARIABLE, SAMPLE_VARIABLE = "SV_PIPELINE_VERIFY", "SV_PIPELINE_VERIFY_SAMPLE"
SAMPLE = 64
CHANGES = "*/10 * * * *"
PARTITION_TAG = "dagster/partition"
GRAPH_TAG, UNTIL_TAG = "sv/graph_id", "sv/verified_until"
MOST_OPERATIONS = 1000
"""Maximum number of operations that the first verification of changes covers."""
SAMPLED = ("voxels", "base", "pyramid", "digests", "lineage")
"""Checks that a sample limits; all other checks always cover the whole graph."""


def default_status() -> dg.DefaultScheduleStatus:
    """Return whether the schedules run: they do unless SV_PIPELINE_VERIFY is off."""
    on = is_switched_on(SWITCH_VARIABLE)
    return dg.DefaultScheduleStatus.RUNNING if on else dg.DefaultScheduleStatus.STOPPED


class VerifyConfig(dg.Config):
    """The graph to verify, and to which extent."""

    graph_id: str = Field(description="A registered graph.")
    checks: list[str] = Field(default_factory=list, description="Names of checks; empty = all.")
    sample: int = Field(
        default=0, ge=0, description="Check the voxels of only so many chunks, chosen anew each time; 0 = all."
    )
    after: int = Field(
        default=-1, ge=-1, description="Check only what operations after this one changed; -1 = everything."
    )


@dg.op
def verify_graph(context: dg.OpExecutionContext, pipeline: PipelineResource, config: VerifyConfig) -> None:
    """Prove the invariants. The run fails with the findings if one is violated; results count as asset checks."""
    with explained_failures():
        dataset = pipeline.dataset(config.graph_id)
        if config.after >= 0:
            report = verify_changes(dataset, config.after)
        else:
            sample, seed = config.sample or None, seed_of(context)
            report = verify_dataset(dataset, checks=config.checks or None, sample=sample, seed=seed)
    conclude(context, report, set(CHECKS) if config.after >= 0 else None)


def seed_of(context: dg.OpExecutionContext) -> int:
    """Seed of the random choice of chunks: another one for each run, the same one when a run is executed again."""
    return zlib.crc32((context.run.root_run_id or context.run.run_id).encode())


def conclude(context: dg.OpExecutionContext, report: VerifyReport, limited: set[str] | None = None) -> None:
    """Record the results as asset checks; raises a Failure if an invariant is violated.

    Parameters
    ----------
    limited
        Names of checks that looked at a part of the graph only; None = those that a sample limits.
    """
    limited = limited if limited is not None else set(SAMPLED) if report.sample else set()
    for evaluation in evaluations(report, names=_to_be_recorded(context.instance, limited, report)):
        # log_event accepts evaluations, although its signature does not say so.
        context.log_event(evaluation)  # type: ignore[arg-type]
    context.log.info(report.summary())
    if not report.ok:
        raise dg.Failure(
            description=report.summary(),
            metadata={"report": dg.MetadataValue.json(report.to_dict())},
            allow_retries=False,
        )


def _to_be_recorded(instance: dg.DagsterInstance, limited: set[str], report: VerifyReport) -> set[str]:
    """Names of checks whose result is recorded: a pass of a partial check does not replace a recorded failure."""
    red = red_checks(instance, report.graph_id) & limited if limited else set()
    return {result.name for result in report.results if not result.passed or result.name not in red}


@dg.failure_hook
def alert_people(context: dg.HookContext) -> None:
    """Send an alert that a graph is not sound, or could not be verified."""
    config = context.op_config
    graph_id = config.get("graph_id") if isinstance(config, dict) else None
    if graph_id is None and (run := context.instance.get_run_by_id(context.run_id)) is not None:
        graph_id = run.tags.get(PARTITION_TAG)
    error = context.op_exception
    said = error.description if isinstance(error, dg.Failure) and error.description else str(error)
    alerts_from_environment().send(
        f"verification of graph {graph_id} failed: {said[:2000]}", graph=graph_id, run_id=context.run_id
    )


@dg.job(hooks={alert_people}, tags={SLOT_TAG: "verify"})
def verify_job() -> None:
    """Prove all invariants of a graph, or a part of them."""
    verify_graph()


def _run(graph_id: str, run_key: str, tags: dict[str, str], **config: int) -> dg.RunRequest:
    values = VerifyConfig(graph_id=graph_id, **config)  # type: ignore[arg-type]
    run_config = dg.RunConfig(ops={"verify_graph": values})
    # Edits have priority over verification.
    tags = {GRAPH_TAG: graph_id, "dagster/priority": "-2", **tags}
    return dg.RunRequest(run_key=run_key, run_config=run_config, tags=tags)


@dg.schedule(
    job=verify_job,
    cron_schedule=VERIFY_AT,
    default_status=default_status(),
    description="Verifies all invariants of every complete graph each night, with the voxels of "
    f"{SAMPLE_VARIABLE} ({SAMPLE}) chunks of each, chosen anew each time.",
)
def verify_nightly_schedule(
    context: dg.ScheduleEvaluationContext, pipeline: PipelineResource
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Verify all invariants of every graph, with the voxels of SV_PIPELINE_VERIFY_SAMPLE (64) chunks each."""
    sample = whole_number_in(SAMPLE_VARIABLE, SAMPLE, meaning="chunks")
    yield from for_each_graph(
        context,
        pipeline,
        lambda graph_id, night: _run(graph_id, f"nightly:{graph_id}:{night}", {}, sample=sample),
    )


@dg.schedule(
    job=verify_job,
    cron_schedule=CHANGES,
    default_status=default_status(),
    description="Verifies every ten minutes what edits have changed since the last verification of changes, in each "
    "graph that has been edited since.",
)
def verify_changes_schedule(
    context: dg.ScheduleEvaluationContext, pipeline: PipelineResource
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Verify what operations have changed since the last verification of changes that succeeded, for each graph."""
    said, requests = [], []
    for graph_id, last in ask_every_graph(pipeline.registry, _last_operation).items():
        if isinstance(last, str):
            said.append(f"{graph_id}: {last}")
            continue
        answer = _changes(context.instance, graph_id, last)
        if isinstance(answer, str):
            said.append(answer)
        else:
            requests.append(answer)
            said.append(f"{graph_id}: a run is asked for, of what operations up to {last} changed")
    context.log.info("%s", told(said) or "there are no graphs")
    yield from requests
    if not requests:
        yield dg.SkipReason(told(said) or "there are no graphs")


def _last_operation(registry: Registry, graph_id: str) -> int:
    table = registry.get(graph_id).table
    return counters.last_operation_id(table) if table.exists() else 0


def _changes(instance: dg.DagsterInstance, graph_id: str, last: int) -> dg.RunRequest | str:
    """Return a run that verifies the new operations of a graph, or the reason why there is none."""
    mine = {GRAPH_TAG: graph_id}
    if instance.get_runs_count(dg.RunsFilter(job_name=verify_job.name, tags=mine, statuses=UNFINISHED_RUNS)):
        return f"{graph_id}: a verification is under way"
    done = instance.get_runs(dg.RunsFilter(job_name=verify_job.name, tags=mine, statuses=[dg.DagsterRunStatus.SUCCESS]))
    first = max(0, last - MOST_OPERATIONS)
    known = next((int(run.tags[UNTIL_TAG]) for run in done if UNTIL_TAG in run.tags), first)  # the latest run is first
    if known > last:
        known = first  # the graph was made anew or its table was restored, so its operations are different ones
    if last <= known:
        return f"{graph_id}: nothing is new"
    return _run(graph_id, f"changes:{graph_id}:{known}:{last}", {UNTIL_TAG: str(last)}, after=known)
