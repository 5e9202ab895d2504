"""A table and a fork of different days fit again after the newer one was rolled back; what is lost was listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sv_pipeline.errors import ConflictError
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.testing.harness.actors import DONE
from sv_pipeline.upkeep.backup import back_up
from sv_pipeline.upkeep.garbage import clean_up
from sv_pipeline.upkeep.reconciling import reconcile
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.test_restored_apart import backup, restore
from sv_pipeline_tests.upkeep.test_garbage import NONE, ONE

Make = Callable[..., Theatre]
KILLED = -9


def edited(play: Theatre, *kinds: str) -> list[int]:
    numbers = []
    for kind in kinds:
        code, said = play.said(**play.request(kind))
        assert code == DONE, said
        numbers.append(int(json.loads(said)["operation"]))
    return numbers


@pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
@pytest.mark.parametrize("older", ["table", "fork"])
def test_the_newer_one_is_rolled_back_and_editing_goes_on(
    theatre: Make, backend: str, older: str, tmp_path: Path
) -> None:
    play = theatre(backend)
    scene, dataset = play.scene, play.scene.world.dataset
    (cut,) = edited(play, "supervoxel split")
    before, day = scene.objects(), backup(scene)
    lost = edited(play, "supervoxel split elsewhere", "merge")
    code, said = play.said(do="undo", operation=cut)
    assert code == DONE, said
    lost.append(int(json.loads(said)["operation"]))
    restore(scene, table=day if older == "table" else None, fork=day if older == "fork" else None)
    dataset.forget()
    dry = reconcile(dataset)
    # A merge changes no voxels, so the fork knows nothing of it.
    assert dry.lost == tuple(lost[::2] if older == "table" else lost)
    assert dry.newer == ("fork" if older == "table" else "table")
    assert not dry.applied
    assert reconcile(dataset) == dry, "nothing was changed"
    with pytest.raises(ConflictError, match="is not backed up"):
        back_up(dataset, tmp_path)
    # Nothing is pruned that is needed to make them fit.
    untouched = clean_up(dataset, policy=ONE, grace=NONE)
    assert untouched.pruned is not None
    assert f"is older than its {dry.newer}" in untouched.pruned.why_not
    assert untouched.pruned.removed == 0
    steps = ("reconcile fork",) if older == "table" else ("reconciling rows", "reconcile rows", "reconciling log")
    for step in steps:
        assert play.do(do="reconcile", failpoint=f"{step}:kill") == KILLED, step
    assert play.do(do="reconcile") == DONE
    assert reconcile(dataset).newer == "neither"
    scene.prove()
    assert scene.objects() == before
    log = {one.operation_id: one for one in read_operations(scene.graph)}
    assert all(number not in log or log[number].status is OperationStatus.EXCEPTION for number in lost)
    fresh = edited(play, "supervoxel split elsewhere", "merge")
    assert min(fresh) > lost[0], "no number is used again"
    scene.prove()
    assert scene.objects() == play.twin("supervoxel split", "supervoxel split elsewhere", "merge")


def test_a_pair_that_fits_is_left_alone(theatre: Make) -> None:
    play = theatre()
    edited(play, "supervoxel split")
    rows = play.scene.world.rows()
    found = reconcile(play.scene.world.dataset, apply=True)
    assert (found.newer, found.lost, found.applied) == ("neither", (), False)
    assert play.scene.world.rows() == rows
