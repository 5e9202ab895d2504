"""A sample that is killed or interrupted: what it leaves harms nobody, is named, and can be removed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from sv_pipeline.errors import ConflictError, NotFoundError
from sv_pipeline.failpoints import VARIABLE
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.scratch import leftovers, remove_leftover, scratch_dataset
from sv_pipeline.registry import Dataset
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.builds import CommandLine


def files_in(folder: Path) -> set[str]:
    """All files of a folder but the sources."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "source" not in p.parts}


def config_of(folder: Path) -> str:
    return builds.config_file(folder / "tissue.yaml", builds.raw_config(folder))


@pytest.mark.parametrize("step", ["sample_recorded", "sample_chunk_done", "sample_table_removed"])
def test_a_killed_sample_is_named_and_removed(tmp_path: Path, cli: CommandLine, twin: Dataset, step: str) -> None:
    config = config_of(tmp_path)
    before = files_in(tmp_path)
    process = builds.start_cli(cli.home, "plan", config, "--sample", 3, **{VARIABLE: f"{step}:kill"})
    assert builds.end_of(process).code == -signal.SIGKILL
    (left,) = leftovers(str(cli.home))
    assert not left.is_running
    assert files_in(tmp_path) > before

    # It harms neither an ingest nor another sample, and both leave it alone.
    said = cli("plan", config, "--sample", 2)
    assert said.code == 0, said.err
    assert f"sample {left.name} of graph tissue was not removed" in said.err
    assert f"plan --clean {left.name}" in said.err
    dataset = builds.register(builds.raw_config(tmp_path), cli.home)
    builds.ingest(dataset)
    builds.assert_same(dataset, twin)
    assert [one.name for one in leftovers(str(cli.home))] == [left.name]

    said = cli("plan", "--clean", "all")
    assert said.code == 0, said.err
    assert not leftovers(str(cli.home))
    assert not [name for name in files_in(tmp_path) if "plan-" in name]
    builds.assert_sound(dataset)


def test_an_interrupted_sample_removes_everything(tmp_path: Path, cli: CommandLine) -> None:
    config = config_of(tmp_path)
    before = files_in(tmp_path)
    process = builds.start_cli(cli.home, "plan", config, "--sample", 12, **{VARIABLE: "sample_chunk_done:pause:3"})
    builds.wait_until(lambda: list(tmp_path.rglob("cells.sqlite")) or process.poll() is not None, "a scratch table")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said = builds.end_of(process)
    assert said.code == 130
    assert "is removed; no part of it stays" in said.err
    assert files_in(tmp_path) == before
    assert not (tmp_path / "watershed").exists()


def test_a_running_sample_is_not_removed(tmp_path: Path) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    home = str(tmp_path / "home")
    with scratch_dataset(dataset.config, home, makes_watershed=True):
        (running,) = leftovers(home)
        assert running.is_running
        with pytest.raises(ConflictError, match="is being taken by process"):
            remove_leftover(home, running.name)
    assert not leftovers(home)
    with pytest.raises(NotFoundError, match="there is no sample 'plan-7'"):
        remove_leftover(home, "plan-7")
    stages.plan_watershed(dataset, stages.Stage.LABELS)  # the place of the watershed can be used


def test_a_failing_sample_removes_everything(tmp_path: Path, cli: CommandLine) -> None:
    raw = builds.raw_config(tmp_path)
    (tmp_path / "source" / "objects.csv").write_text("label,object\n1,notanumber\n")
    before = files_in(tmp_path)
    said = cli("plan", builds.config_file(tmp_path / "tissue.yaml", raw), "--sample", 3)
    assert said.code == 1
    assert files_in(tmp_path) == before | {"tissue.yaml"}
