"""The sensor that starts `downsample_job`. It is level-triggered: each tick reads the ledgers of all graphs."""

import time
from collections.abc import Sequence
from typing import Any

import dagster as dg
from dagster import DagsterRunStatus

from sv_pipeline.defs.partitions import graphs
from sv_pipeline.defs.pyramid import downsample_job, pyramid, pyramid_keeps_up, verdict_numbers, verdict_severity
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import PYRAMID_BACKOFF, UNFINISHED_RUNS
from sv_pipeline.defs.ticks import ended_tick, read_cursor, told
from sv_pipeline.environment import is_switched_on
from sv_pipeline.pyramid.lag import GraphLag, lag_verdict, lags

__all__ = ["downsample_sensor"]

GRAPH_TAG = "dagster/partition/graph"
"""Tag by which dagster.yaml limits each graph to one run at a time."""
LEDGER_TAG = "sv/ledger"
SWITCH_VARIABLE = "SV_PIPELINE_DOWNSAMPLE"
MOST_RUNS = 50
RUNS_LOOKED_AT = 12


@dg.sensor(
    job_name=downsample_job.name,
    minimum_interval_seconds=15,
    default_status=(
        dg.DefaultSensorStatus.RUNNING if is_switched_on(SWITCH_VARIABLE) else dg.DefaultSensorStatus.STOPPED
    ),
    description="Starts a run that brings the coarser mips of a graph up to date after edits: one for each graph that "
    "is behind, for all its edits. After failed runs it waits, longer each time. It also reports the lag of each "
    "graph, and the result of the check pyramid_keeps_up. The cursor names the graphs that were behind.",
)
def downsample_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
    """Start one run for each graph whose coarser mips are behind, for all its operations, never two for one graph."""
    found = lags(pipeline.registry)
    requests: list[dg.RunRequest] = []
    said: list[str] = []
    for each in found:
        answer = _request(context.instance, each)
        if isinstance(answer, dg.RunRequest) and len(requests) < MOST_RUNS:
            requests.append(answer)
            said.append(f"{each}: a run is asked for")
        elif isinstance(answer, str):
            said.append(answer)
    known = set(context.instance.get_dynamic_partitions(str(graphs.name)))
    fresh = [key for r in requests if (key := str(r.partition_key)) not in known]
    verdict = lag_verdict(found, pipeline.max_lag_seconds)
    return ended_tick(
        context,
        f"looked at {len(found)} graphs: {told(said) or 'their coarser mips are up to date'}",
        cursor={"behind": [each.graph_id for each in found if each.behind], "alert": not verdict.passed},
        run_requests=requests,
        dynamic_partitions_requests=[graphs.build_add_request(fresh)] if fresh else [],
        asset_events=_events(found, pipeline.max_lag_seconds, read_cursor(context)),
    )


def _request(instance: dg.DagsterInstance, found: GraphLag) -> dg.RunRequest | str | None:
    """Return a run for a graph, or the reason why there is none although it is behind; None if it is up to date."""
    if found.error:
        return str(found)
    if not found.behind:
        return None
    tags = {"dagster/partition": found.graph_id}
    mine = dg.RunsFilter(job_name=downsample_job.name, tags=tags)
    records = instance.get_run_records(mine, limit=RUNS_LOOKED_AT)
    running = [r.dagster_run.run_id for r in records if r.dagster_run.status in UNFINISHED_RUNS]
    if running:
        return f"{found}: run {running[0][:8]} is working on it"
    failures = 0
    for record in records:  # newest first
        if record.dagster_run.status is DagsterRunStatus.SUCCESS:
            break
        failures += 1
    if failures:
        ended = records[0].end_time or records[0].update_timestamp.timestamp()
        wait = ended + PYRAMID_BACKOFF.after(failures) - time.time()
        if wait > 0:
            return f"{found}: {failures} runs failed in a row; next attempt in {wait:.0f} s"
    # Dagster starts only one run per run key, so an unchanged ledger needs a new key after a run that did not finish.
    attempt = instance.get_runs_count(dg.RunsFilter(job_name=downsample_job.name, tags=_ledger(found)))
    return dg.RunRequest(
        run_key=f"{found.graph_id}:{found.fingerprint}:{attempt}",
        partition_key=found.graph_id,
        tags={
            GRAPH_TAG: found.graph_id,
            **_ledger(found),
            "sv/operations": ", ".join(map(str, found.operations[:12]))
            + (", ..." if len(found.operations) > 12 else ""),
        },
    )


def _ledger(found: GraphLag) -> dict[str, str]:
    return {"dagster/partition": found.graph_id, LEDGER_TAG: found.fingerprint}


def _events(
    found: Sequence[GraphLag], max_seconds: float, cursor: dict[str, Any]
) -> list[dg.AssetObservation | dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    """Report the lag of graphs that are or were just behind, and the result of the check if it fails or just failed."""
    events: list[dg.AssetObservation | dg.AssetMaterialization | dg.AssetCheckEvaluation] = []
    for each in found:
        if each.lag and (each.behind or each.graph_id in cursor.get("behind", [])):
            numbers = {
                "operations_behind": each.lag.entries,
                "boxes_behind": each.lag.boxes,
                "seconds_behind": round(each.seconds, 1),
            }
            events.append(dg.AssetObservation(pyramid.key, partition=each.graph_id, metadata=numbers))
    verdict = lag_verdict(found, max_seconds)
    if not verdict.passed or cursor.get("alert"):
        events.append(
            dg.AssetCheckEvaluation(
                asset_key=pyramid.key,
                check_name=next(iter(pyramid_keeps_up.check_keys)).name,
                passed=verdict.passed,
                severity=verdict_severity(verdict),
                metadata=verdict_numbers(verdict, max_seconds),
                description=verdict.explanation,
            )
        )
    return events
