"""Asset checks: each invariant of the architecture and the data model is one check in the UI."""

import contextlib
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import dagster as dg

from sv_pipeline.config import IngestMode
from sv_pipeline.defs.assets import base_ocdbt, reader_contract
from sv_pipeline.defs.layers import LAYER_COMPLETE, layer
from sv_pipeline.defs.metadata import explained_failures
from sv_pipeline.defs.partitions import graph_layers, graphs, layer_partition
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.errors import NotFoundError, SvPipelineError
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.built import is_made, what_is_built
from sv_pipeline.segmentation.base.source_record import changes_of_source
from sv_pipeline.storage.wall import wall
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline.verify.report import CheckResult, VerifyReport
from sv_pipeline.verify.run import CHECKS

__all__ = ["evaluations", "graph_of", "invariants", "layer_complete", "red_checks", "watershed_unchanged"]


def graph_of(context: dg.OpExecutionContext) -> str | None:
    """Return the graph of the run's partition; None for a run without a partition."""
    if not context.has_partition_key:
        return None
    return str(context.partition_key).split("|")[0]


@contextlib.contextmanager
def _partitioned() -> Iterator[None]:
    """Allow partitions of checks, a preview feature, so that one graph's results do not replace those of another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        yield


def _specs() -> list[dg.AssetCheckSpec]:
    with _partitioned():
        return [
            dg.AssetCheckSpec(name, asset=reader_contract, description=description, partitions_def=graphs)
            for name, description in CHECKS.items()
        ]


@dg.multi_asset_check(specs=_specs(), can_subset=True)
def invariants(
    context: dg.AssetCheckExecutionContext, pipeline: PipelineResource
) -> Iterator[dg.AssetCheckResult | dg.AssetCheckEvaluation]:
    """Prove the invariants on stored rows and voxels, for the graph of the run's partition or else for all graphs."""
    wanted = [key.name for key in context.op_execution_context.selected_asset_check_keys]
    mine = graph_of(context.op_execution_context)
    by_check: dict[str, dict[str, CheckResult]] = {name: {} for name in wanted}
    unreadable: dict[str, str] = {}
    with explained_failures():
        for graph_id in pipeline.registry.graph_ids() if mine is None else [mine]:
            try:
                with wall():
                    dataset = pipeline.dataset(graph_id)
                    if mine is None and not (is_made(dataset) or dataset.fork.exists()):
                        continue  # the graph is only being made
                    report = verify_dataset(dataset, checks=wanted)
            except SvPipelineError as error:
                if mine is not None:
                    raise
                unreadable[graph_id] = str(error)  # the other graphs are still verified
                continue
            if mine is None:
                yield from evaluations(report)
            for result in report.results:
                by_check[result.name][graph_id] = result
    for name, results in by_check.items():
        yield dg.AssetCheckResult(
            asset_key=reader_contract.key,
            check_name=name,
            passed=not unreadable and all(r.passed for r in results.values()),
            description="; ".join([*unreadable.values(), _explanation(results) or ""]).strip("; ") or None,
            metadata=_metadata(results),
        )


def evaluations(report: VerifyReport, *, names: Collection[str] | None = None) -> Iterator[dg.AssetCheckEvaluation]:
    """Convert the results of a verification, all or those in ``names``, to results of asset checks in its partition."""
    for result in report.results:
        if names is None or result.name in names:
            results = {report.graph_id: result}
            yield dg.AssetCheckEvaluation(
                asset_key=reader_contract.key,
                check_name=result.name,
                passed=result.passed,
                description=_explanation(results),
                metadata=_metadata(results),
                partition=report.graph_id,
            )


def red_checks(instance: dg.DagsterInstance, graph_id: str) -> set[str]:
    """Return the names of the checks whose last result for a graph is a failure."""
    keys = [dg.AssetCheckKey(reader_contract.key, name) for name in CHECKS]
    found = instance.event_log_storage.get_asset_check_partition_info(keys, partition_keys=[graph_id])
    return {info.check_key.name for info in found if info.latest_execution_status.value == "FAILED"}


def _metadata(results: dict[str, CheckResult]) -> dict[str, str | int | float]:
    return {
        "graphs": ", ".join(results) or "none",
        "checked": sum(r.checked for r in results.values()),
        "findings": sum(len(r.findings) for r in results.values()),
        "seconds": round(sum(r.seconds for r in results.values()), 2),
    }


def _explanation(results: dict[str, CheckResult]) -> str | None:
    """The first findings, or the reason why a check did not run; None if there are neither."""
    lines = []
    for graph_id, result in results.items():
        lines += [f"{graph_id}: {f.message} First: {f.place}" for f in result.findings[:3]]
        if result.skipped:
            lines.append(f"{graph_id}: not checked, {result.skipped}")
    return "; ".join(lines) or None


def _layer_complete(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> dg.AssetCheckResult:
    """Check that every chunk of the run's layers, or else of every layer that was begun, has its done-marker."""
    run = context.op_execution_context
    keys = sorted(map(str, run.partition_keys)) if run.has_partition_key or run.has_partition_key_range else []
    missing: dict[str, int] = {}
    unreadable: dict[str, str] = {}
    with explained_failures():
        for graph_id in sorted({key.split("|")[0] for key in keys}) or pipeline.registry.graph_ids():
            try:
                dataset = pipeline.dataset(graph_id)
                built = what_is_built(dataset)
            except SvPipelineError as error:
                if keys:
                    raise
                unreadable[graph_id] = str(error)  # the other graphs are still checked
                continue
            if _mode(run, dataset) in (IngestMode.VOXELS.name, IngestMode.SETUP.name):
                continue
            for number, count in built.missing.items():
                begun = count < dataset.grid.count(number)
                if layer_partition(graph_id, number) in keys or (not keys and begun):
                    missing[f"{graph_id} layer {number}"] = count
    said = [f"chunks without a done-marker: {missing}"] if missing else []
    return dg.AssetCheckResult(
        passed=not missing and not unreadable,
        metadata={"partition": ", ".join(keys) or "all", "missing": dg.MetadataValue.json(missing)},
        description="; ".join([*unreadable.values(), *said]) or None,
    )


def _mode(run: dg.OpExecutionContext, dataset: Dataset) -> str:
    """Return the name of the mode in which a run builds a layer."""
    ops: Any = run.run_config.get("ops", {})
    config = ops.get(layer.key.to_user_string(), {}).get("config") or {}
    return str(config.get("mode", dataset.config.ingest.mode.name))


TASKS_LOOKED_AT = 16


def _watershed_unchanged(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> dg.AssetCheckResult:
    """Check that a sample of the watershed's objects has not changed since the base refers to it.

    The check 'source' of a verification covers all objects.
    """
    mine = graph_of(context.op_execution_context)
    changes: dict[str, str] = {}
    looked_at = 0
    with explained_failures():
        for graph_id in pipeline.registry.graph_ids() if mine is None else [mine]:
            try:
                base = pipeline.dataset(graph_id).base.info()
            except NotFoundError:
                continue  # the graph has no base
            found = changes_of_source(base, at_most=TASKS_LOOKED_AT)
            looked_at += found.looked_at
            if found:
                changes[graph_id] = found.text
    return dg.AssetCheckResult(
        passed=not changes,
        metadata={"objects": looked_at},
        description="; ".join(f"{graph_id}: {text}" for graph_id, text in changes.items()) or None,
    )


with _partitioned():
    watershed_unchanged = dg.asset_check(
        asset=base_ocdbt,
        name="watershed_unchanged",
        description=_watershed_unchanged.__doc__,
        partitions_def=graphs,
    )(_watershed_unchanged)
    layer_complete = dg.asset_check(
        asset=layer,
        name=LAYER_COMPLETE,
        description=_layer_complete.__doc__,
        blocking=True,
        partitions_def=graph_layers,
    )(_layer_complete)
