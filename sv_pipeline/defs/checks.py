"""Asset checks: the invariants of architecture and data model, each one row in the UI."""

from collections.abc import Iterator

import dagster as dg

from sv_pipeline.defs.assets import layer, reader_contract
from sv_pipeline.defs.metadata import explained_failures
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.engine.proof import verify_dataset
from sv_pipeline.ingest import progress
from sv_pipeline.verify.report import CheckResult
from sv_pipeline.verify.run import CHECKS

__all__ = ["invariants", "layer_complete"]


def _graphs_of(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> list[str]:
    """The graph of the run's partition; all graphs when a check is launched by itself."""
    if context.op_execution_context.has_partition_key:
        key = context.op_execution_context.partition_key
        return [key.keys_by_dimension["graph"] if isinstance(key, dg.MultiPartitionKey) else key.split("|")[0]]
    return pipeline.registry.graph_ids()


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(name, asset=reader_contract, description=description) for name, description in CHECKS.items()
    ],
    can_subset=True,
)
def invariants(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> Iterator[dg.AssetCheckResult]:
    """Prove the invariants on the stored rows and voxels."""
    wanted = [key.name for key in context.op_execution_context.selected_asset_check_keys]
    by_check: dict[str, dict[str, CheckResult]] = {name: {} for name in wanted}
    with explained_failures():
        for graph_id in _graphs_of(context, pipeline):
            for result in verify_dataset(pipeline.dataset(graph_id), checks=wanted).results:
                by_check[result.name][graph_id] = result
    for name, results in by_check.items():
        yield dg.AssetCheckResult(
            asset_key=reader_contract.key,
            check_name=name,
            passed=all(r.passed for r in results.values()),
            description=_explanation(results),
            metadata={
                "graphs": ", ".join(results) or "none",
                "checked": sum(r.checked for r in results.values()),
                "findings": sum(len(r.findings) for r in results.values()),
                "seconds": round(sum(r.seconds for r in results.values()), 2),
            },
        )


def _explanation(results: dict[str, CheckResult]) -> str | None:
    """The first findings, or why a check could not be made; None where there is nothing to say."""
    lines = []
    for graph_id, result in results.items():
        lines += [f"{graph_id}: {f.message} First: {f.place}" for f in result.findings[:3]]
        if result.skipped:
            lines.append(f"{graph_id}: not checked, {result.skipped}")
    return "; ".join(lines) or None


@dg.asset_check(asset=layer, blocking=True)
def layer_complete(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> dg.AssetCheckResult:
    """Every chunk of every layer that was begun has its done-marker."""
    missing: dict[str, int] = {}
    key = context.op_execution_context.partition_key if context.op_execution_context.has_partition_key else None
    with explained_failures():
        for graph_id in _graphs_of(context, pipeline):
            dataset = pipeline.dataset(graph_id)
            if dataset.config.ingest.mode.value in ("voxels", "setup"):
                continue
            for number, status in progress.layer_status(dataset.graph).items():
                mine = key is None or str(key).endswith(f"L{number:02d}")
                if mine and 0 < status.done < status.chunks:
                    missing[f"{graph_id} layer {number}"] = status.chunks - status.done
    return dg.AssetCheckResult(
        passed=not missing,
        metadata={"partition": str(key or "all"), "missing": dg.MetadataValue.json(missing)},
        description=None if not missing else f"chunks without a done-marker: {missing}",
    )
