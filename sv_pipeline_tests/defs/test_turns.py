"""Which run a step that is not ready waits for: never one that waits for the step's own run."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from sv_pipeline.defs.turns import BACKFILL_TAG, after_earlier_runs
from sv_pipeline.errors import NotReadyError

RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


@dg.op
def nothing() -> None:
    pass


@dg.job
def some_job() -> None:
    nothing()


def asked_for(instance: dg.DagsterInstance, keys: str, backfill: str | None) -> dg.DagsterRun:
    """A run, not started yet, for one partition, or for a range of partitions ``first..last``."""
    first, dots, last = keys.partition("..")
    tags = dict(zip(RANGE, (first, last), strict=True)) if dots else {"dagster/partition": first}
    tags |= {} if backfill is None else {BACKFILL_TAG: backfill}
    return instance.create_run_for_job(some_job, tags=tags)


def waits(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a step of the run that is not ready waits, instead of failing."""

    context: Any = SimpleNamespace(instance=instance, run_id=run.run_id, log=dg.get_dagster_logger())
    with pytest.raises((dg.RetryRequested, NotReadyError)) as raised, after_earlier_runs(context, ["a"]):
        raise NotReadyError("the layer below is not complete.")
    return raised.type is dg.RetryRequested


@pytest.mark.parametrize("backfills", [(None, None), ("one", "one"), ("one", "other")])
@pytest.mark.parametrize("keys", list(itertools.permutations(["a", "a|L03..a|L03", "a|L05..a|L06"], 2)))
def test_two_runs_of_a_graph_never_wait_for_one_another(keys: tuple[str, str], backfills: tuple[str, str]) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        runs = [asked_for(instance, *both) for both in zip(keys, backfills, strict=True)]
        waiting = [waits(instance, run) for run in runs]
        assert sum(waiting) == 1
        if backfills[0] == "one" == backfills[1]:
            assert waiting.index(True) == keys.index(max(keys)), "the run of the higher layers waits"
        else:
            assert waiting == [False, True], "the run that was asked for later waits"


def test_a_run_does_not_wait_for_other_graphs() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        asked_for(instance, "b|L02..b|L03", "one")
        assert not waits(instance, asked_for(instance, "a|L05..a|L05", "one"))
