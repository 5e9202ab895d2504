"""Jobs that edit a graph: merge, split, preview, undo, redo. Their stages are ops, and each op reads what it needs.

::

    split_job    look_up ─► preview ─► commit ─► report
    merge_job    look_up ────────────► commit ─► report
    undo_job                           commit ─► report

Only ``commit`` writes. A run and all runs that re-execute it make one edit together: their token is the id of the first
run. No value is passed from op to op: ``report`` finds the operation by that token. Pictures come first in the
metadata, since the UI shows only its first few lines without a click.
"""

import time
from collections.abc import Callable
from typing import Any

import dagster as dg
from pydantic import Field

from sv_pipeline.arguments import parse_gigabytes
from sv_pipeline.defs.metadata import explained_failures, numbers, pictures, viewer_links
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import SLOT_TAG
from sv_pipeline.edits import CommittedEdit, announced
from sv_pipeline.edits.requests import DEFAULT_REGION_MEMORY
from sv_pipeline.edits.tokens import is_begun
from sv_pipeline.errors import NotFoundError
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.reports.edit_numbers import edit_numbers
from sv_pipeline.reports.sizes import DIALOG_WIDTH
from sv_pipeline.reports.viewer_links import viewer_link

__all__ = ["merge_job", "preview_split_job", "redo_job", "split_job", "undo_job"]

GRAPH_TAG, OPERATION_TAG = "sv/graph_id", "sv/op_id"
# Runs are not retried: a user should learn of a refusal at once, and look at the log before running an edit again.
TAGS = {"dagster/max_retries": "0", SLOT_TAG: "edit"}


class GraphChoice(dg.Config):
    """The graph to edit."""

    graph_id: str = Field(description="A registered graph.")


class PointsConfig(GraphChoice):
    """The two sides of an edit."""

    source: list[list[int]] = Field(
        description="Voxels [x, y, z] of mip 0 on one side, e.g. [[1200, 3400, 56]]; one or a few. "
        "[id, x, y, z] also names the root or the supervoxel there."
    )
    sink: list[list[int]] = Field(description="Voxels [x, y, z] of mip 0 on the other side.")


class SplitPreviewConfig(PointsConfig):
    """The preview of a split between points."""

    allow_partial: bool = Field(
        default=False,
        description="Cut only around the points, even if both sides stay connected elsewhere: one bridge at a time. "
        "By default more and more of the object is searched, until the cut separates the points.",
    )
    region_memory_gb: float = Field(
        default=DEFAULT_REGION_MEMORY / 1e9,
        ge=0,
        description="Memory in GB for the part of the object that is searched for a cut between the points.",
    )

    allow_isolating_cut: bool | None = Field(
        default=None,
        description="Whether a cut may separate only the supervoxels at the points of one side. By default it may if "
        "there is one such supervoxel, and is refused if there are several.",
    )

    @property
    def options(self) -> dict[str, Any]:
        """The options as keyword arguments of a split."""
        memory = parse_gigabytes(self.region_memory_gb, "amount of memory")
        return {
            "allow_partial": self.allow_partial,
            "region_memory": memory,
            "allow_isolating_cut": self.allow_isolating_cut,
        }


class SplitConfig(SplitPreviewConfig):
    """A split between points."""

    user: str = Field(default="", description="User of the edit, for the log. Default: the user of the worker.")


class EditConfig(PointsConfig):
    """An edit between points."""

    user: str = Field(default="", description="User of the edit, for the log. Default: the user of the worker.")


class RevertConfig(GraphChoice):
    """An operation to undo or redo."""

    operation: int = Field(description="Id of the operation, as the log and the run's tags show it.")
    allow_partial: bool = Field(
        default=False,
        description="Make edges inactive even if that separates nothing, since other edits join the same objects.",
    )
    user: str = Field(default="", description="User of the edit, for the log. Default: the user of the worker.")


# -- stages -----------------------------------------------------------------------------------------------------------


@dg.op(out=dg.Out(dg.Nothing))
def look_up(context: dg.OpExecutionContext, pipeline: PipelineResource, config: PointsConfig) -> None:
    """Look up the supervoxels and roots at the points, and draw them."""
    context.instance.add_run_tags(context.run_id, {GRAPH_TAG: config.graph_id})
    with explained_failures():
        graph = pipeline.open(config.graph_id)
        found = graph.look_up(config.source, config.sink)
    records = [dg.TableRecord({str(name): str(v) for name, v in row.items()}) for row in found.to_dict("records")]
    context.add_output_metadata(
        {
            **pictures(objects=lambda: graph.picture_of_points(config.source, config.sink, width=DIALOG_WIDTH)),
            "points": dg.MetadataValue.table(records, dg.TableSchema([dg.TableColumn(c) for c in found.columns])),
            "roots": dg.MetadataValue.text(", ".join(map(str, sorted(set(found["root"].tolist()))))),
        }
    )


@dg.op(ins={"looked_up": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing))
def preview(context: dg.OpExecutionContext, pipeline: PipelineResource, config: SplitPreviewConfig) -> None:
    """Show the cut as it would be made now, in numbers and a picture. Fails with the reason if it would be refused."""
    with explained_failures():
        graph = pipeline.open(config.graph_id)
        if is_begun(graph.graph, _token(context)):
            context.log.info("an earlier run of this request has begun its commit, so there is nothing to preview")
            return
        found = graph.preview_split(config.source, config.sink, **config.options)
        metadata = {**pictures(cut=lambda: found.picture(width=DIALOG_WIDTH)), **numbers(found.numbers)}
    if (doubt := found.doubt) is not None:
        context.log.warning("%s", doubt)
        if doubt.place is not None:
            place = doubt.place
            metadata |= viewer_links(lambda: viewer_link(graph.dataset, position=place), "view the doubtful place")
    if not found.legal:
        raise dg.Failure(
            description=f"the split would be refused: {found.numbers['message']}",
            metadata=metadata,
            allow_retries=False,
        )
    context.add_output_metadata(metadata)


@dg.op(ins={"previewed": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing))
def commit_split(context: dg.OpExecutionContext, pipeline: PipelineResource, config: SplitConfig) -> None:
    """Make the split exactly once."""
    _commit(
        context,
        pipeline,
        config.graph_id,
        lambda graph, token: graph.split(
            config.source, config.sink, user=config.user or None, token=token, **config.options
        ),
    )


@dg.op(ins={"looked_up": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing))
def commit_merge(context: dg.OpExecutionContext, pipeline: PipelineResource, config: EditConfig) -> None:
    """Make the merge exactly once."""
    _commit(
        context,
        pipeline,
        config.graph_id,
        lambda graph, token: graph.merge(config.source, config.sink, user=config.user or None, token=token),
    )


@dg.op(out=dg.Out(dg.Nothing))
def commit_undo(context: dg.OpExecutionContext, pipeline: PipelineResource, config: RevertConfig) -> None:
    """Undo an operation exactly once."""
    _commit(
        context,
        pipeline,
        config.graph_id,
        lambda graph, token: graph.undo(
            config.operation, user=config.user or None, token=token, allow_partial=config.allow_partial
        ),
    )


@dg.op(out=dg.Out(dg.Nothing))
def commit_redo(context: dg.OpExecutionContext, pipeline: PipelineResource, config: RevertConfig) -> None:
    """Redo an operation that was undone, exactly once."""
    _commit(
        context,
        pipeline,
        config.graph_id,
        lambda graph, token: graph.redo(
            config.operation, user=config.user or None, token=token, allow_partial=config.allow_partial
        ),
    )


@dg.op(ins={"committed": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing))
def report(context: dg.OpExecutionContext, pipeline: PipelineResource, config: GraphChoice) -> None:
    """Report what the edit did, with numbers and pictures before and after it."""
    with explained_failures():
        graph = pipeline.open(config.graph_id)
        edit = graph.find_edit(token=_token(context))
        if edit is None:
            raise NotFoundError(f"run {_token(context)} has made no edit.", remedy="Re-execute its commit op.")
    drawn = pictures(before_and_after=lambda: graph.picture(edit.id, width=DIALOG_WIDTH))
    link = viewer_links(lambda: viewer_link(graph.dataset, operation=edit.id))
    context.add_output_metadata({**drawn, **link, **numbers(edit_numbers(edit))})


def _commit(
    context: dg.OpExecutionContext,
    pipeline: PipelineResource,
    graph_id: str,
    make: Callable[[OpenGraph, str], CommittedEdit],
) -> None:
    started = time.monotonic()
    context.instance.add_run_tags(context.run_id, {GRAPH_TAG: graph_id})

    def began(operation_id: int) -> None:
        """Record the operation in the instance at once, since the process may be killed at any moment."""
        context.instance.add_run_tags(context.run_id, {OPERATION_TAG: str(operation_id)})
        context.instance.report_engine_event(f"operation {operation_id} of graph {graph_id} has begun", context.run)

    with explained_failures(), announced(began):
        edit = make(pipeline.open(graph_id), _token(context))
    seconds = round(time.monotonic() - started, 2)
    context.instance.add_run_tags(context.run_id, {OPERATION_TAG: str(edit.id)})
    context.add_output_metadata({**numbers(edit_numbers(edit)), "seconds": seconds})
    context.log.info("operation %d of %s: %s", edit.id, graph_id, edit.kind)
    if edit.still_one_object:
        context.log.warning("still one object: both sides of the cut are connected elsewhere")


def _token(context: dg.OpExecutionContext) -> str:
    """Token of the edit, which is the same for a run and for all runs that re-execute it."""
    return context.run.root_run_id or context.run_id


# -- jobs -------------------------------------------------------------------------------------------------------------


def _each(config: dg.Config, **ops: type[dg.Config]) -> dict[str, Any]:
    """Make a run config in which each op gets its part of the job's configuration."""
    values = config.model_dump()
    return {"ops": {op: {"config": {k: values[k] for k in schema.model_fields}} for op, schema in ops.items()}}


@dg.config_mapping
def split_config(request: SplitConfig) -> dict[str, Any]:
    """Pass one configuration to all stages of a split."""
    return _each(
        request, look_up=PointsConfig, preview=SplitPreviewConfig, commit_split=SplitConfig, report=GraphChoice
    )


@dg.config_mapping
def preview_config(request: SplitPreviewConfig) -> dict[str, Any]:
    """Pass one configuration to both stages of a preview."""
    return _each(request, look_up=PointsConfig, preview=SplitPreviewConfig)


@dg.config_mapping
def merge_config(request: EditConfig) -> dict[str, Any]:
    """Pass one configuration to all stages of a merge."""
    return _each(request, look_up=PointsConfig, commit_merge=EditConfig, report=GraphChoice)


@dg.config_mapping
def undo_config(request: RevertConfig) -> dict[str, Any]:
    """Pass one configuration to both stages of an undo."""
    return _each(request, commit_undo=RevertConfig, report=GraphChoice)


@dg.config_mapping
def redo_config(request: RevertConfig) -> dict[str, Any]:
    """Pass one configuration to both stages of a redo."""
    return _each(request, commit_redo=RevertConfig, report=GraphChoice)


# One process runs all stages, which follow one another, since a person waits for the result.


@dg.job(config=split_config, tags=TAGS, executor_def=dg.in_process_executor)
def split_job() -> None:
    """Split an object between two sets of points by the cheapest cut, through supervoxels if necessary."""
    report(commit_split(preview(look_up())))


@dg.job(config=preview_config, tags=TAGS, executor_def=dg.in_process_executor)
def preview_split_job() -> None:
    """Show what a split would do. Nothing is written."""
    preview(look_up())


@dg.job(config=merge_config, tags=TAGS, executor_def=dg.in_process_executor)
def merge_job() -> None:
    """Merge two objects into one."""
    report(commit_merge(look_up()))


@dg.job(config=undo_config, tags=TAGS, executor_def=dg.in_process_executor)
def undo_job() -> None:
    """Undo an operation."""
    report(commit_undo())


@dg.job(config=redo_config, tags=TAGS, executor_def=dg.in_process_executor)
def redo_job() -> None:
    """Redo an operation that was undone."""
    report(commit_redo())
