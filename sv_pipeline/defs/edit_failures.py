"""Sensors for failed runs of edits: they report the state of the operation on the page of the run, for its user."""

import dagster as dg

from sv_pipeline.defs.edits import GRAPH_TAG, OPERATION_TAG, merge_job, redo_job, split_job, undo_job
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.operations.log import OperationStatus, find_operation
from sv_pipeline.operations.standing import read_standing
from sv_pipeline.operations.unfinished import read_unfinished
from sv_pipeline.reports.alerts import alerts_from_environment

__all__ = ["canceled_edits_sensor", "failed_edits_sensor", "standing_after_failure"]

JOBS = [split_job, merge_job, undo_job, redo_job]


def _sensor_of(name: str, status: dg.DagsterRunStatus, ended: str) -> dg.SensorDefinition:
    """Make a sensor that reports the state of the operation on the page of each run that ended with ``status``."""

    @dg.run_status_sensor(
        name=name,
        run_status=status,
        monitored_jobs=JOBS,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Reports on the page of an edit that {ended} whether its operation has ended, or is unfinished "
        "and will be recovered.",
    )
    def sensor(context: dg.RunStatusSensorContext, pipeline: PipelineResource) -> dg.SkipReason | None:
        return _say_how_it_stands(context, pipeline, ended)

    return sensor


def _say_how_it_stands(
    context: dg.RunStatusSensorContext, pipeline: PipelineResource, ended: str
) -> dg.SkipReason | None:
    run = context.dagster_run
    graph_id, operation_id = run.tags.get(GRAPH_TAG), run.tags.get(OPERATION_TAG)
    if not graph_id or not operation_id:
        return dg.SkipReason(f"run {run.run_id} has begun no operation")
    try:
        said = standing_after_failure(pipeline, graph_id, int(operation_id))
    except SvPipelineError as error:
        said = f"The state of operation {operation_id} of graph {graph_id} could not be read: {error}"
    if not said:
        return dg.SkipReason(f"run {run.run_id} was refused, and its page says why")
    context.instance.report_engine_event(said, run)
    alerts_from_environment().send(
        f"run {run.run_id} of {run.job_name} {ended}. {said}", graph=graph_id, operation=int(operation_id)
    )
    return None


def standing_after_failure(pipeline: PipelineResource, graph_id: str, operation_id: int) -> str:
    """Describe the state of an operation whose run failed; empty if the run itself has reported it."""
    graph = pipeline.dataset(graph_id).graph
    if read_unfinished(graph, operation_id) is not None:
        return read_standing(graph, operation_id)
    found = find_operation(graph, operation_id)
    complete = found is not None and found.status is OperationStatus.SUCCESS
    return read_standing(graph, operation_id) if complete else ""


failed_edits_sensor = _sensor_of("failed_edits_sensor", dg.DagsterRunStatus.FAILURE, "failed")
canceled_edits_sensor = _sensor_of("canceled_edits_sensor", dg.DagsterRunStatus.CANCELED, "was canceled")
