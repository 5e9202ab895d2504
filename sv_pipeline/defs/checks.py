"""Asset checks: each invariant of the architecture and the data model is one check in the UI."""

import contextlib
import warnings
from collections.abc import Collection, Iterator

import dagster as dg

from sv_pipeline.defs.assets import base_ocdbt, layer, reader_contract
from sv_pipeline.defs.metadata import explained_failures
from sv_pipeline.defs.partitions import graph_layers, graphs
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.errors import NotFoundError, SvPipelineError
from sv_pipeline.ingest import progress
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
    key = context.partition_key
    return key.keys_by_dimension["graph"] if isinstance(key, dg.MultiPartitionKey) else key.split("|")[0]


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
                    report = verify_dataset(pipeline.dataset(graph_id), checks=wanted)
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
    """Check that every chunk of every layer that was begun has its done-marker."""
    missing: dict[str, int] = {}
    key = context.op_execution_context.partition_key if context.op_execution_context.has_partition_key else None
    mine = graph_of(context.op_execution_context)
    with explained_failures():
        for graph_id in pipeline.registry.graph_ids() if mine is None else [mine]:
            dataset = pipeline.dataset(graph_id)
            if dataset.config.ingest.mode.value in ("voxels", "setup"):
                continue
            if mine is None and not dataset.table.exists():
                continue  # no layer of this graph was begun
            for number, status in progress.layer_status(dataset.graph).items():
                wanted = key is None or str(key).endswith(f"L{number:02d}")
                if wanted and 0 < status.done < status.chunks:
                    missing[f"{graph_id} layer {number}"] = status.chunks - status.done
    return dg.AssetCheckResult(
        passed=not missing,
        metadata={"partition": str(key or "all"), "missing": dg.MetadataValue.json(missing)},
        description=None if not missing else f"chunks without a done-marker: {missing}",
    )


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
        name="layer_complete",
        description=_layer_complete.__doc__,
        blocking=True,
        partitions_def=graph_layers,
    )(_layer_complete)
