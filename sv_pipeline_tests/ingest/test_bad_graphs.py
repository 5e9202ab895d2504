"""Mistakes about graphs that exist, or that seem to: refused with one clear error, and nothing is changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sv_pipeline.config import load_config
from sv_pipeline.errors import ConfigError, ConflictError, SvPipelineError
from sv_pipeline.graph import edge_files
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.run import ingest
from sv_pipeline.registry import Dataset, open_dataset
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.builds import CommandLine
from sv_pipeline_tests.ingest.mistakes import SMALL, assert_refused, assert_refused_without_a_trace, labels, small

# -- graphs that exist ------------------------------------------------------------------------------------------------


@pytest.fixture
def known(cli: CommandLine, tmp_path: Path) -> dict[str, Any]:
    """The configuration of a graph that was built."""
    raw = small(tmp_path)
    said = cli("ingest", builds.config_file(tmp_path / "known.yaml", raw))
    assert said.code == 0, said.err
    return raw


def files_of(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"graph_config": {"CHUNK_SIZE": [10, 10, 10]}}, "graph_config.chunk_size"),
        ({"data_source": {"WATERSHED": "elsewhere"}}, "data_source.watershed"),
        ({"ocdbt_config": {"populate_layer": 2}}, "ocdbt_config.populate_layer"),
        ({"backend_client": {"TYPE": "sqlite", "CONFIG": {"PATH": "elsewhere"}}}, "backend_client.config.path"),
    ],
)
def test_a_graph_id_that_is_taken(
    cli: CommandLine, tmp_path: Path, known: dict[str, Any], change: dict[str, Any], part: str
) -> None:
    before = files_of(cli.home, tmp_path / "watershed")
    config = builds.config_file(tmp_path / "other.yaml", {**known, **change})
    assert_refused(cli("ingest", config), "exists already", part, "Choose another graph_id")
    assert files_of(cli.home, tmp_path / "watershed") == before


def test_a_table_that_is_not_registered(cli: CommandLine, tmp_path: Path, known: dict[str, Any]) -> None:
    shutil.rmtree(cli.home / "graphs")
    before = files_of(cli.home, tmp_path / "watershed")
    assert_refused(cli("ingest", tmp_path / "known.yaml"), "not registered", "sv-pipeline attach")
    assert files_of(cli.home, tmp_path / "watershed") == before
    assert cli("attach", tmp_path / "known.yaml").code == 0
    assert cli("ingest", tmp_path / "known.yaml").code == 0


def test_a_graph_that_was_attached_to_be_read_can_be_opened_for_edits(
    cli: CommandLine, tmp_path: Path, known: dict[str, Any]
) -> None:
    def attach(read_only: bool) -> bool:
        raw = {**known, "backend_client": {"TYPE": "sqlite", "CONFIG": {"READ_ONLY": read_only}}}
        said = cli("attach", builds.config_file(tmp_path / "again.yaml", raw))
        assert said.code == 0, said.err
        return open_dataset(known["graph_id"], cli.home).config.backend_client.config.read_only

    assert [attach(read_only) for read_only in (True, False, True)] == [True, False, True]


def test_a_configuration_without_a_name_is_given_one(cli: CommandLine, tmp_path: Path, known: dict[str, Any]) -> None:
    raw = {key: value for key, value in known.items() if key != "graph_id"}
    config = builds.config_file(tmp_path / "theirs.yaml", raw)
    assert_refused(cli("ingest", config), "graph_id")
    assert cli("attach", config, "--graph-id", "tissue").code == 0
    said = cli("ingest", config, "--graph-id", "named", "--mode", "graph")
    assert said.code == 0, said.err
    assert json.loads(cli("list", "--json").out) == ["named", "tissue"]


def second_graph(known: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**{k: v for k, v in known.items() if k != "source"}, "graph_id": "second", **changes}


@pytest.mark.parametrize(
    ("ocdbt_config", "part"),
    [
        ({"populate_layer": 3, "max_decoded_node_bytes": 8192}, "max_decoded_node_bytes is 262144, not 8192"),
        ({"populate_layer": 3, "manifest_kind": "numbered"}, "manifest_kind is 'single', not 'numbered'"),
        ({"populate_layer": 3, "mips": 7}, "mips"),
    ],
)
def test_a_base_of_another_configuration(
    cli: CommandLine, tmp_path: Path, known: dict[str, Any], ocdbt_config: dict[str, Any], part: str
) -> None:
    before = files_of(cli.home, tmp_path / "watershed")
    raw = second_graph(known, ocdbt_config=ocdbt_config)
    assert_refused(cli("ingest", builds.config_file(tmp_path / "second.yaml", raw)), part)
    assert files_of(cli.home, tmp_path / "watershed") == before


@pytest.mark.parametrize(
    ("ocdbt_config", "part"),
    [
        ({"populate_layer": 2}, "populate_layer 3 (not 2)"),
        ({"populate_layer": 3, "max_inline_value_bytes": 100}, "max_inline_value_bytes 4096 (not 100)"),
        ({"populate_layer": 3, "compression": None}, "compression {'id': 'zstd', 'level': 3} (not None)"),
    ],
)
def test_settings_of_a_base_that_exists_count_and_are_named(
    cli: CommandLine,
    tmp_path: Path,
    known: dict[str, Any],
    ocdbt_config: dict[str, Any],
    part: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw = second_graph(known, ocdbt_config=ocdbt_config)
    said = cli("ingest", builds.config_file(tmp_path / "second.yaml", raw))
    assert said.code == 0, said.err
    assert [line for line in caplog.messages if part in line]
    assert cli("verify", "second").code == 0


def test_another_source_in_a_watershed_that_is_taken(cli: CommandLine, tmp_path: Path, known: dict[str, Any]) -> None:
    before = files_of(cli.home, tmp_path / "watershed")
    np.savez(tmp_path / "other.npz", segmentation=labels()[::-1])
    raw = known | {"graph_id": "second", "source": {**known["source"], "segmentation": str(tmp_path / "other.npz")}}
    config = builds.config_file(tmp_path / "second.yaml", raw)
    assert_refused(cli("ingest", config), "begun from another source", "Choose another data_source.WATERSHED")
    assert files_of(cli.home, tmp_path / "watershed") == before


@pytest.mark.parametrize("command", ["status", "status --watch", "roots 1", "info", "verify", "purge-layer 3 --yes"])
def test_a_graph_that_nobody_knows(cli: CommandLine, known: dict[str, Any], command: str) -> None:
    name, *rest = command.split()
    arguments = [name, *[a for a in rest if a.startswith("--")], "unknown", *[a for a in rest if a[0] != "-"]]
    assert_refused(cli(*arguments), "'unknown' is not known", "known: tissue", "sv-pipeline ingest")
    bad = [name, "a|b", *[a for a in rest if a[0] != "-"]]
    assert_refused(cli(*bad, *(["--yes"] if name == "purge-layer" else [])), "graph id 'a|b' cannot be used")


def test_a_registration_that_was_damaged(cli: CommandLine, known: dict[str, Any]) -> None:
    (cli.home / "graphs" / "tissue.json").write_text("{")
    assert_refused(cli("status", "tissue"), "graphs/tissue.json", "attach")


def test_a_registration_of_an_earlier_version_is_understood(cli: CommandLine, known: dict[str, Any]) -> None:
    path = cli.home / "graphs" / "tissue.json"
    stored = json.loads(path.read_text())
    stored["ingest"]["an_option_of_old"] = 5
    path.write_text(json.dumps(stored))
    assert cli("status", "tissue").code == 0


# -- given datasets ---------------------------------------------------------------------------------------------------


def given(known: dict[str, Any], tmp_path: Path, graph_id: str = "given") -> dict[str, Any]:
    """The finished watershed of ``known``, copied, as a dataset without a source."""
    shutil.copytree(tmp_path / "watershed", tmp_path / "given", ignore=shutil.ignore_patterns("ocdbt", ".watershed"))
    return second_graph(known, graph_id=graph_id, data_source={"WATERSHED": str(tmp_path / "given")})


def test_a_broken_edge_file(cli: CommandLine, tmp_path: Path, known: dict[str, Any]) -> None:
    raw = given(known, tmp_path)
    config = builds.config_file(tmp_path / "given.yaml", raw)
    broken = tmp_path / "given" / "edges" / edge_files.edges_key((1, 0, 0))
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    assert_refused(cli("ingest", config), broken.name)
    status = cli("status", "given", "--json")
    layer = json.loads(status.out)["stages"][0]
    assert (layer["name"], layer["state"]) == ("layer 2", "failed")
    assert broken.name in layer["error"]
    assert "first failure" in cli("status", "given").out
    broken.write_bytes(whole)
    said = cli("ingest", config)
    assert said.code == 0, said.err
    assert json.loads(cli("status", "given", "--json").out)["complete"]
    assert cli("verify", "given").code == 0


def test_a_given_dataset_whose_edge_files_are_elsewhere(
    cli: CommandLine, tmp_path: Path, known: dict[str, Any]
) -> None:
    raw = given(known, tmp_path)
    raw["data_source"]["EDGES"] = str(tmp_path / "egdes")
    before = files_of(cli.home, tmp_path / "given")
    config = builds.config_file(tmp_path / "given.yaml", raw)
    assert_refused(cli("ingest", config), "no edge file", "egdes", "Check data_source.EDGES")
    assert files_of(cli.home, tmp_path / "given") == before


def test_a_given_dataset_that_is_not_there(cli: CommandLine, tmp_path: Path) -> None:
    raw = builds.raw_config(tmp_path, source=None)
    assert_refused_without_a_trace(cli, tmp_path, raw, "watershed", "info")


def test_a_given_watershed_of_small_ids_is_no_watershed(cli: CommandLine, tmp_path: Path) -> None:
    from sv_pipeline.storage.precomputed import create_volume

    create_volume(
        str(tmp_path / "volume"),
        data_type="uint32",
        resolution=(8, 8, 40),
        voxel_offset=(0, 0, 0),
        size=SMALL,
        chunk_size=(10, 10, 10),
    )
    raw = builds.raw_config(tmp_path, source=None, data_source={"WATERSHED": str(tmp_path / "volume")})
    config = builds.config_file(tmp_path / "dataset.yaml", raw)
    assert_refused(cli("ingest", config), "data type uint32, not uint64", "source.segmentation")
    builds.assert_nothing_written(cli.home)


def test_attach_refuses_a_table_of_another_graph(cli: CommandLine, tmp_path: Path, known: dict[str, Any]) -> None:
    shutil.rmtree(cli.home / "graphs")
    raw = known | {"graph_config": {"CHUNK_SIZE": [5, 5, 5]}}
    said = cli("attach", builds.config_file(tmp_path / "other.yaml", raw))
    assert_refused(said, "CHUNK_SIZE", "(10, 20, 10)", "Correct the configuration")
    assert cli("list", "--json").out.strip() == "[]"
    raw = known | {"graph_id": "never_made"}
    assert_refused(cli("attach", builds.config_file(tmp_path / "other.yaml", raw)), "no table", "sv-pipeline ingest")


# -- things that change while they are used ---------------------------------------------------------------------------


def registered(tmp_path: Path, **changes: Any) -> Dataset:
    return builds.register({**small(tmp_path), **changes}, tmp_path / "home")


def test_a_source_that_changes_between_two_runs(tmp_path: Path) -> None:
    dataset = registered(tmp_path)
    np.savez(tmp_path / "labels.npz", segmentation=labels()[::-1])
    with pytest.raises(ConflictError, match="begun from another source"):
        ingest(dataset)


def test_a_coordinator_without_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SV_PIPELINE_COORDINATOR", raising=False)
    dataset = registered(tmp_path, ocdbt_config={"populate_layer": 2, "populate_method": "coordinator"})
    ingest(dataset, mode=stages.IngestMode.SETUP)
    batch = next(b for b in stages.plan_layer(dataset, 2, stages.IngestMode.VOXELS))
    with pytest.raises(ConfigError, match=r"no coordinator address.*SV_PIPELINE_COORDINATOR.*populate_method: parts"):
        stages.run_batch(dataset, batch)


def test_relative_paths_are_those_of_the_working_directory(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = small(tmp_path / "project")
    raw["source"]["segmentation"], raw["data_source"]["WATERSHED"] = "labels.npz", "watershed"
    monkeypatch.chdir(tmp_path / "project")
    assert cli("ingest", builds.config_file(tmp_path / "dataset.yaml", raw)).code == 0
    monkeypatch.chdir(tmp_path)
    assert cli("ingest", tmp_path / "dataset.yaml").code == 1, "another folder means other paths"
    assert cli("verify", "tissue").code == 0
    assert load_config(tmp_path / "dataset.yaml").data_source.watershed == "watershed"


def test_a_base_that_cannot_be_written_any_more(tmp_path: Path) -> None:
    """What a full disk or a removed mount looks like: the ingest fails with a message, and goes on later."""
    dataset = registered(tmp_path)
    ingest(dataset, mode=stages.IngestMode.GRAPH)
    blocked = tmp_path / "watershed" / "ocdbt"
    blocked.write_text("in the way")
    with pytest.raises(SvPipelineError) as caught:
        ingest(dataset)
    assert "ocdbt" in str(caught.value)
    blocked.unlink()
    ingest(dataset)
    builds.assert_nothing_leaked(dataset)
