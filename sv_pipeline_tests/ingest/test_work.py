"""Work plans in the home folder, and the command that runs one batch of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sv_pipeline.cli.work import WILL_FAIL_AGAIN
from sv_pipeline.errors import ConfigError, CorruptionError, NotFoundError
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.indexed_jobs import manifest
from sv_pipeline.ingest.work import WorkPlan, read_plan, remove_plan, run_index, write_plan
from sv_pipeline.storage import kv
from sv_pipeline_tests.ingest.builds import CommandLine
from sv_pipeline_tests.ingest.conftest import cli as cli
from sv_pipeline_tests.ingest.indexed_jobs.clusters import SmallGraph

PLAN = WorkPlan("tissue", ("graph_L02_0_1", "graph_L02_1_2"))


def test_a_plan_is_read_as_it_was_written_until_it_is_removed(storage_url: str) -> None:
    name = write_plan(storage_url, PLAN)
    assert write_plan(storage_url, PLAN) == name
    assert read_plan(storage_url, "tissue", name) == PLAN
    remove_plan(storage_url, "tissue", name)
    with pytest.raises(NotFoundError, match=f"no work plan '{name}' of graph 'tissue'"):
        read_plan(storage_url, "tissue", name)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"graph_id": "tissue", "batches": [], "coordinator": null}'])
def test_a_damaged_plan_is_told(tmp_path: Path, content: bytes) -> None:
    name = write_plan(str(tmp_path), PLAN)
    kv.write_bytes(tmp_path / "work" / "tissue", f"{name}.json", content)
    with pytest.raises(CorruptionError, match="is damaged"):
        read_plan(str(tmp_path), "tissue", name)


def test_an_index_outside_of_the_plan_is_refused(tmp_path: Path) -> None:
    name = write_plan(str(tmp_path), PLAN)
    with pytest.raises(ConfigError, match=r"no index 2.*Its indexes are 0 to 1"):
        run_index(str(tmp_path), "tissue", name, 2)


def test_the_command_runs_one_batch_as_often_as_it_is_called(cli: CommandLine, tmp_path: Path) -> None:
    graph = SmallGraph(tmp_path / "graph", cli.home)
    name = write_plan(str(cli.home), WorkPlan.of("tissue", stages.plan_layer(graph.dataset, 2)))
    for index in (1, 1):
        said = cli("work", "tissue", name, "--index", index)
        assert (said.code, said.out[:13]) == (0, "graph_L02_1_2"), said.err
    assert graph.unfinished() == 1
    said = cli("work", "tissue", "0" * 16, "--index", 0)
    assert said.code == WILL_FAIL_AGAIN
    assert "error (not_found)" in said.err
    assert "Traceback" not in said.err


def test_the_job_knows_the_exit_code_of_the_command() -> None:
    assert manifest.WILL_FAIL_AGAIN == WILL_FAIL_AGAIN
