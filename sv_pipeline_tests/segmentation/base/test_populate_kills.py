"""Killed at any moment, a populate is run again and ends as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sv_pipeline.config import PopulateMethod
from sv_pipeline.errors import UnavailableError
from sv_pipeline.segmentation.base import markers
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.key_ranges import key_ranges
from sv_pipeline.segmentation.base.populate import PopulatePlan, finish_populate, populate_task
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.coordinator import ADDRESS_VARIABLE, running_coordinator
from sv_pipeline.storage.generations import current_version
from sv_pipeline.testing.populating import populate_missing
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline_tests.segmentation.volumes import Watershed, assert_base_holds, make_watershed

SPAWN = multiprocessing.get_context("spawn")
METHODS = [PopulateMethod.PARTS, PopulateMethod.DIRECT, PopulateMethod.REFERENCE]
STEPS = {method: ["/d/", "manifest", ".populated/tasks"] for method in METHODS}
STEPS[PopulateMethod.REFERENCE] += ["/tree", "/source.npz"]


def work(url: str, plan: PopulatePlan, started: object, *, finish: bool = True) -> None:
    """A worker's life: all tasks in some order, then the end of the populate."""
    tasks = list(plan.missing)
    random.shuffle(tasks)
    started.set()  # type: ignore[attr-defined]
    for task in tasks:
        populate_task(plan, task)
    if finish:
        finish_populate(plan, keys_per_commit=40)


def kill_after(url: str, plan: PopulatePlan, seconds: float) -> bool:
    """Run a worker for so long; True if it was killed before its end."""
    started = SPAWN.Event()
    worker = SPAWN.Process(target=work, args=(url, plan, started))
    worker.start()
    assert started.wait(60)
    worker.join(seconds)
    killed = worker.is_alive()
    if worker.pid is not None and killed:
        os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    return killed


def assert_clean(watershed: Watershed, plan: PopulatePlan) -> None:
    """Right voxels; nothing stored for populate that does not count."""
    assert_base_holds(watershed, plan)
    tasks = {tuple(int(c) for c in task) for task in plan.grid.coordinates(plan.layer)}
    assert Base(watershed.url).done_tasks() == tasks
    files = kv.list_keys(ocdbt.base_folder(watershed.url), "parts/")
    winners = {markers.task_name(t): (markers.read_marker(watershed.url, t) or {}).get("attempt") for t in tasks}
    for file in files:
        _, task, attempt, rest = file.split("/", 3)
        assert winners[task] == attempt, "a part is left that is not merged"
        assert rest.startswith("d/") or (rest == "source.npz" and plan.method is PopulateMethod.REFERENCE)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_random_moments_a_populate_is_completed_by_running_it_again(
    storage_url: str, method: PopulateMethod
) -> None:
    watershed = make_watershed(storage_url, populate_method=method)
    plan = watershed.plan()
    rng = random.Random(7)
    for _ in range(4):
        if not kill_after(storage_url, plan, rng.uniform(0.01, 0.25)):
            break
        # What is marked must be there, what is not must not be half there: checked by the end state below, and by
        # each next worker starting from whatever this one has left.
        plan = watershed.plan()
    for task in plan.missing:
        populate_task(plan, task)
    finish_populate(plan)
    assert_clean(watershed, plan)


@pytest.mark.parametrize(("method", "step"), [(method, step) for method in METHODS for step in STEPS[method]])
def test_killed_in_a_write_of_each_kind_a_task_is_completed_by_running_it_again(
    gcs_server: GcsControl, method: PopulateMethod, step: str
) -> None:
    """The server holds the first such write back until the worker is dead."""
    watershed = make_watershed(gcs_server.new_bucket(), populate_method=method)
    plan = watershed.plan()
    gcs_server.clear()
    gcs_server.add_fault(method="POST", match=step, phase="after", delay=1.0, times=1, status=503)
    started = SPAWN.Event()
    worker = SPAWN.Process(target=work, args=(watershed.url, plan, started))
    worker.start()
    assert started.wait(60)
    while not any(method == "POST" and step in name for method, name in gcs_server.requests()):
        assert worker.is_alive()
        time.sleep(0.01)
    worker.kill()
    worker.join()
    time.sleep(1.0)  # the held write arrives when its sender is dead already
    gcs_server.clear()
    plan = watershed.plan()
    populate_missing(plan)
    finish_populate(plan)
    assert_clean(watershed, plan)


@pytest.mark.parametrize("method", [PopulateMethod.PARTS, PopulateMethod.REFERENCE])
def test_killed_between_the_commits_of_a_merge_a_finish_goes_on_where_it_was(
    gcs_server: GcsControl, method: PopulateMethod
) -> None:
    watershed = make_watershed(gcs_server.new_bucket(), populate_method=method)
    populate_missing(watershed.plan())
    plan = watershed.plan()
    assert not plan.missing
    folder = ocdbt.base_folder(watershed.url)
    before = current_version(folder).generation
    gcs_server.add_fault(method="POST", match="base/manifest", delay=0.2)
    started = SPAWN.Event()
    worker = SPAWN.Process(target=work, args=(watershed.url, plan, started))
    worker.start()
    while current_version(folder).generation < before + 3:
        assert worker.is_alive()
        time.sleep(0.02)
    worker.kill()
    worker.join()
    gcs_server.clear()
    time.sleep(0.3)
    done = current_version(folder).generation - before
    finish_populate(plan, keys_per_commit=40)
    commits = len(list(key_ranges(plan.base.volume, 40)))
    assert done + 1 < commits
    assert current_version(folder).generation - before == commits
    assert_clean(watershed, plan)


def test_killed_between_merge_and_marker_of_completion_a_finish_is_repeated(
    gcs_server: GcsControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    watershed = make_watershed(gcs_server.new_bucket())
    plan = watershed.plan()
    populate_missing(plan)

    class KilledError(BaseException):
        """Stands for the end of the process."""

    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("sv_pipeline.segmentation.base.parts.remove_stale_parts", die)
        with pytest.raises(KilledError):
            finish_populate(plan)
    merged = current_version(ocdbt.base_folder(watershed.url)).generation
    report = finish_populate(plan)
    assert (report.merged_parts, report.generation) == (0, merged)
    assert_clean(watershed, plan)


@pytest.mark.slow
def test_a_worker_killed_while_it_may_hold_a_lease_of_the_coordinator_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watershed = make_watershed(str(tmp_path), populate_method=PopulateMethod.COORDINATOR)
    plan = watershed.plan()
    with running_coordinator() as address:
        monkeypatch.setenv(ADDRESS_VARIABLE, address)
        for seconds in (0.05, 0.15):
            kill_after(watershed.url, plan, seconds)
            plan = watershed.plan()
        populate_missing(plan, workers=2, coordinator_address=address)
    finish_populate(plan)
    assert_clean(watershed, plan)


def test_a_coordinator_killed_in_the_middle_fails_its_tasks_and_a_new_one_finishes(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path), populate_method=PopulateMethod.COORDINATOR)
    plan = watershed.plan()
    command = [sys.executable, "-m", "sv_pipeline.storage.coordinator", "--bind", "127.0.0.1:0"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    address = child.stdout.readline().split('"address": "')[1].split('"')[0]
    for task in plan.missing[:6]:
        populate_task(plan, task, coordinator_address=address)
    child.kill()
    child.wait()
    child.stdout.close()

    def go_on() -> None:
        for task in plan.missing[6:12]:
            populate_task(plan, task, coordinator_address=address, attempts=2)
        time.sleep(11)  # a lease that the dead one gave may have let writes through, rightly; by now it is over
        populate_task(plan, plan.missing[12], coordinator_address=address, attempts=2)

    with pytest.raises(UnavailableError, match="coordinator"):
        go_on()
    plan = watershed.plan()
    assert 0 < len(plan.missing) <= 12
    with running_coordinator() as again:
        populate_missing(plan, workers=2, coordinator_address=again)
    finish_populate(plan)
    assert_base_holds(watershed, plan)
