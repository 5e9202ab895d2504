"""The history and the garbage of a graph beside edits: recovery, undo and readers find what they need."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from click.testing import CliRunner

from sv_pipeline.cli.main import cli
from sv_pipeline.errors import NotFoundError
from sv_pipeline.operations.watch_list import added
from sv_pipeline.recovery import find_unfinished
from sv_pipeline.registry import Registry
from sv_pipeline.retention import Retention
from sv_pipeline.storage import kv
from sv_pipeline.storage.history import read_history
from sv_pipeline.storage.reachable import reachable
from sv_pipeline.testing.harness.actors import DONE
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline.upkeep.garbage import clean_up, garbage_of
from sv_pipeline_tests.properties import PROFILE
from sv_pipeline_tests.recovery.conftest import Theatre

Make = Callable[..., Theatre]
NONE, ONE = timedelta(0), Retention(generations=1)
STEPS = ("looked", "prune", "prune nodes", "pruned", "collect", "marked", "collecting", "collected")
"""Steps of a clean-up at which it can be killed; ``looked`` comes twice."""
KILLED = -9


def assert_clean(play: Theatre) -> None:
    """All is sound, and every file of the fork is reached."""
    fork = play.scene.world.dataset.fork
    play.scene.prove()
    reached = reachable(fork.store().base, all_versions=True).files
    prefix = f"{fork.graph_id}_d/"
    assert set(kv.list_keys(fork.folder, prefix)) == {file for file in reached if file.startswith(prefix)}


@pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
@pytest.mark.parametrize("step", ["planned", "voxels written"])
def test_an_edit_whose_process_died_is_recovered_after_a_clean_up(theatre: Make, backend: str, step: str) -> None:
    play = theatre(backend)
    assert play.do(**play.request("supervoxel split"), failpoint=f"{step}:kill") == KILLED
    (one,) = find_unfinished(play.scene.graph)
    assert play.do(**play.request("supervoxel split elsewhere")) == DONE
    dataset = play.scene.world.dataset
    report = clean_up(dataset, policy=ONE, grace=NONE)
    assert report.pruned is not None
    assert report.pruned.horizon.held_by == (f"operation {one.id} is unfinished",)
    assert f"operation {one.id} is unfinished" in "\n".join(report.lines())
    assert play.do(do="recover", operation=one.id) == DONE
    if step == "voxels written":
        assert play.scene.objects() == play.twin("supervoxel split", "supervoxel split elsewhere")
    clean_up(dataset, policy=ONE, grace=NONE)
    assert len(read_history(dataset.fork.store().base)) == 1
    assert_clean(play)


def test_every_edit_can_be_undone_after_its_history_is_gone(theatre: Make) -> None:
    play = theatre()
    dataset = play.scene.world.dataset
    code, said = play.said(**play.request("supervoxel split"))
    assert code == DONE
    edit = json.loads(said)
    report = clean_up(dataset, policy=ONE, grace=NONE)
    assert report.lines()[0].endswith("keeps 1 generation")
    assert report.usage.generations == 1
    with pytest.raises(NotFoundError, match="history begins with generation"):
        dataset.fork.open(version=dataset.fork.generation_at(edit["time"] - 1))
    assert play.do(do="undo", operation=edit["operation"]) == DONE
    clean_up(dataset, policy=ONE, grace=NONE)
    assert_clean(play)


def test_nothing_is_pruned_before_operations_of_other_software_were_examined(theatre: Make) -> None:
    play = theatre()
    dataset = play.scene.world.dataset
    code, said = play.said(**play.request("supervoxel split"))
    assert code == DONE
    dataset.table.mutate([added(json.loads(said)["operation"], time.time())])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sv_pipeline.upkeep.work_in_progress.SEARCH_SECONDS", 0.0)
        report = clean_up(dataset, policy=ONE, grace=NONE)
    assert report.pruned is not None
    assert report.pruned.why_not == "1 operations of other software are still to be examined"
    assert report.usage.generations > 1
    assert clean_up(dataset, policy=ONE, grace=NONE).usage.generations == 1


def test_the_command_reports_and_collects(theatre: Make) -> None:
    play = theatre()
    dataset = play.scene.world.dataset
    assert play.do(**play.request("supervoxel split")) == DONE
    before = garbage_of(dataset).usage
    command = ["--home", dataset.home, "garbage", dataset.graph_id]
    said = CliRunner().invoke(cli, command, catch_exceptions=False).output
    assert "keeps forever" in said
    assert "nothing would be pruned" in said
    said = CliRunner().invoke(cli, [*command, "--generations", "1", "--collect", "--json"]).output
    assert json.loads(said)["collected"]["files"] == 0, "all is younger than the grace period of a day"
    assert json.loads(said)["usage"]["reachable_bytes"] == before.reachable_bytes
    assert "is not a period" in CliRunner().invoke(cli, [*command, "--keep", "ever"]).output
    outlook = garbage_of(dataset, policy=ONE, grace=NONE)
    assert any("Every edit could still be undone" in line for line in outlook.lines())
    after = clean_up(dataset, policy=ONE, grace=NONE).usage
    assert after.stored_bytes == pytest.approx(outlook.usage.bytes_after, rel=0.2)
    raw = dataset.config.model_dump(mode="json", by_alias=True)
    changed = type(dataset.config).model_validate({**raw, "retention": {"keep": "90 days"}})
    assert str(Registry(dataset.home).register(changed).config.retention) == "90 days", "the policy may be changed"


# -- kills ------------------------------------------------------------------------------------------------------------


@contextmanager
def busy(play: Theatre, *, editors: int, readers: int = 0, grace: float = 0.0) -> Iterator[None]:
    """Let editors and readers work during the block; each of them has to come to a good end."""
    stop = play.folder / "stop"
    tasks = [{"do": "edit on", "seed": 1000 * number} for number in range(editors)]
    tasks += [{"do": "read pinned", "hold": 1.0, "grace": grace} for _ in range(readers)]
    pids = [play.start(**task, stop=str(stop), beat=0.5) for task in tasks]
    try:
        yield
    finally:
        stop.touch()
        codes = {pid: play.fork_server.wait(pid, 120) for pid in pids}
        stop.unlink()
    for pid, code in codes.items():
        assert code == DONE, play.word_of(pid)


def places() -> list[tuple[str, str, tuple[str, ...], int]]:
    """(backend, place, steps, rounds): a few kills by default, 84 of them in the soak profile."""
    if PROFILE != "soak":
        return [("sqlite", "gs", ("prune nodes", "collecting"), 1), ("bigtable", "file", ("pruned", "collect"), 1)]
    return [(backend, place, STEPS, 3) for backend in ("sqlite", "bigtable") for place in ("gs", "file")]


@pytest.mark.timeout(1800 if PROFILE == "soak" else 300)
@pytest.mark.parametrize(("backend", "place", "steps", "rounds"), places())
def test_a_killed_clean_up_beside_editors_and_readers_loses_nothing(
    theatre: Make, backend: str, place: str, steps: tuple[str, ...], rounds: int, request: pytest.FixtureRequest
) -> None:
    bucket = None
    if place == "gs":
        server: GcsControl = request.getfixturevalue("gcs_server")
        bucket = server.new_bucket()
    play, many = theatre(backend, bucket=bucket), rounds > 1
    grace = 30.0 if many else 6.0  # longer than any read or edit takes, even beside the other processes of a soak
    with busy(play, editors=3 if many else 2, readers=8 if many else 2, grace=grace):
        for turn in range(rounds):
            # The clocks of some collectors are an hour ahead, or behind.
            task = {"do": "clean up", "generations": 4, "grace": grace, "clock": (3600.0, -3600.0, 0.0)[turn % 3]}
            for step in steps:
                code = play.do(**task, failpoint=f"{step}:kill")
                assert code in (KILLED, DONE), step  # nothing may be left to do
                ends = [play.start(**task) for _ in range(2)]
                assert [play.fork_server.wait(pid) for pid in ends] == [DONE, DONE], [*map(play.word_of, ends)]
    play.do(do="heal")
    dataset = play.scene.world.dataset
    for one in read_history(dataset.fork.store().base):
        dataset.fork.open(version=one.number).read().result()
    clean_up(dataset, policy=ONE, grace=NONE)
    assert_clean(play)
