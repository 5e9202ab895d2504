"""A verification by parts as a job: one partition per graph, its parts in batches (mapped steps).

Dagster's record of steps does not decide whether the verification is complete: the last step verifies each part that
has no result yet, and a run that is executed again verifies only those.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from sv_pipeline.defs.assets import reader_contract
from sv_pipeline.defs.metadata import explained_failures
from sv_pipeline.defs.partitions import graphs
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import RETRIES, SLOT_TAG
from sv_pipeline.defs.verification import alert_people, conclude, seed_of
from sv_pipeline.verify.steps import VerificationSteps

__all__ = ["verify_by_parts_job"]


class PartsConfig(dg.Config):
    """What to verify."""

    checks: list[str] = Field(default_factory=list, description="Names of checks; empty = all.")
    sample: int = Field(default=0, ge=0, description="Check the voxels of only so many chunks; 0 = all.")


def _steps(context: dg.OpExecutionContext, pipeline: PipelineResource) -> VerificationSteps:
    return VerificationSteps(pipeline.dataset(context.partition_key), context.run.root_run_id or context.run.run_id)


@dg.op(out=dg.DynamicOut(dg.Nothing))
def plan_verification(context: dg.OpExecutionContext, pipeline: PipelineResource, config: PartsConfig) -> Iterator[Any]:
    """Divide the graph into parts that fit the memory budget, and list them in batches."""
    with explained_failures():
        steps = _steps(context, pipeline)
        batches = steps.plan(config.checks or None, sample=config.sample or None, seed=seed_of(context))
    context.log.info("%d batches to verify", len(batches))
    for batch in batches:
        yield dg.DynamicOutput(None, mapping_key=batch)


@dg.op(ins={"start": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def verify_parts(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    """Verify the parts of a batch, each in bounded memory. What they find is kept in the home folder."""
    batch = str(context.get_mapping_key())
    with explained_failures():
        found = _steps(context, pipeline).run(batch)
    context.log.info("verified %d of %d parts in %.1f s", found.verified, found.parts, found.seconds)
    context.log_event(
        dg.AssetObservation(
            asset_key=reader_contract.key,
            partition=context.partition_key,
            description=f"{batch} of a verification by parts",
            metadata={"parts": found.parts, "kinds of errors": found.faults, "seconds": round(found.seconds, 2)},
        )
    )


@dg.op(ins={"batches": dg.In(dg.Nothing)}, out=dg.DynamicOut(dg.Nothing), retry_policy=RETRIES)
def plan_roots(context: dg.OpExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
    """Verify the upper layers, which need the results of all parts below, and list the roots in batches."""
    with explained_failures():
        batches = _steps(context, pipeline).plan_last()
    for batch in batches:
        yield dg.DynamicOutput(None, mapping_key=batch)


@dg.op(ins={"batches": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), retry_policy=RETRIES)
def finish_verification(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    """Add up what all parts found. The run fails if an invariant is violated; results count as asset checks."""
    with explained_failures():
        report = _steps(context, pipeline).finish()
    conclude(context, report)


@dg.job(
    partitions_def=graphs,
    hooks={alert_people},
    # A re-execution from failure can drop mapped steps. All steps are repeated instead, which is cheap, because parts
    # that have a result are not verified again.
    tags={
        SLOT_TAG: "verify",
        "dagster/priority": "-2",
        "dagster/retry_strategy": "ALL_STEPS",
        "dagster/max_retries": "2",
    },
)
def verify_by_parts_job() -> None:
    """Prove all invariants of a graph of any size, part by part, in steps that may run on several machines."""
    regions = plan_verification().map(verify_parts).collect()
    finish_verification(plan_roots(regions).map(verify_parts.alias("verify_roots")).collect())
