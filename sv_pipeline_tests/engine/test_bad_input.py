"""A user does everything wrong: each time one clear error that names the thing and the remedy, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sv_pipeline.config import load_config
from sv_pipeline.engine import stages
from sv_pipeline.engine.run import ingest
from sv_pipeline.errors import ConfigError, ConflictError, SvPipelineError
from sv_pipeline.graph import edge_files
from sv_pipeline.registry import Dataset
from sv_pipeline_tests.engine import builds
from sv_pipeline_tests.engine.builds import CommandLine, Said
from sv_pipeline_tests.servers.gcs_client import GcsControl

SMALL = (20, 20, 10)


def labels(dtype: Any = np.uint32) -> np.ndarray:
    values = np.arange(1, 9, dtype=dtype).reshape(2, 2, 2)
    return values.repeat(10, 0).repeat(10, 1).repeat(5, 2)


def small(folder: Path, array: np.ndarray | None = None, **source: Any) -> dict[str, Any]:
    """A dataset of eight blocks in two chunks."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "labels.npz", segmentation=labels() if array is None else array)
    given = {"segmentation": str(folder / "labels.npz"), "resolution": [8, 8, 40], **source}
    return builds.raw_config(folder, source=given, graph_config={"CHUNK_SIZE": [10, 20, 10]})


def assert_refused(said: Said, *parts: str, code: int = 1) -> None:
    """One clear error: its parts, no traceback."""
    assert said.code == code, (said.out, said.err)
    text = said.err
    assert text.lower().count("error") >= 1
    assert "Traceback" not in text
    for part in parts:
        assert part in text, f"{part!r} is missing in: {text}"
    assert text.strip().endswith((".", ")", ":")) or "\n  " in text, text


def assert_refused_without_a_trace(cli: CommandLine, tmp_path: Path, raw: dict[str, Any], *parts: str) -> None:
    config = builds.config_file(tmp_path / "dataset.yaml", raw)
    assert_refused(cli("ingest", config), *parts)
    builds.assert_nothing_written(cli.home, tmp_path / "watershed")


# -- sources ----------------------------------------------------------------------------------------------------------


def broken_zip(folder: Path) -> str:
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 this is no archive")
    return str(folder / "broken.npz")


def truncated(folder: Path) -> str:
    np.savez_compressed(folder / "whole.npz", segmentation=labels())
    content = (folder / "whole.npz").read_bytes()
    (folder / "truncated.npz").write_bytes(content[: len(content) // 2])
    return str(folder / "truncated.npz")


def empty_file(folder: Path) -> str:
    (folder / "empty.npy").write_bytes(b"")
    return str(folder / "empty.npy")


def pickled(folder: Path) -> str:
    np.save(folder / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return str(folder / "objects.npy")


def array_file(array: np.ndarray) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        np.savez(folder / "array.npz", segmentation=array)
        return str(folder / "array.npz")

    return write


SOURCES: dict[str, tuple[Callable[[Path], str], tuple[str, ...]]] = {
    "missing file": (lambda folder: str(folder / "nowhere.npz"), ("nowhere.npz does not exist", "Check the paths")),
    "missing folder": (lambda folder: str(folder / "nowhere"), ("nowhere", "cannot be opened as a volume")),
    "missing array": (lambda folder: f"{array_file(labels())(folder)}#other", ("no array 'other'", "segmentation")),
    "not an archive": (broken_zip, ("broken.npz cannot be read",)),
    "truncated archive": (truncated, ("truncated.npz", "cannot be read")),
    "empty file": (empty_file, ("empty.npy cannot be read",)),
    "objects": (pickled, ("objects.npy cannot be read",)),
    "empty volume": (array_file(np.zeros((0, 5, 5), np.uint32)), ("is empty",)),
    "two dimensions": (array_file(np.ones((5, 5), np.uint32)), ("3-d volume", "segmentation uint32 (5, 5)")),
    "only background": (array_file(np.zeros(SMALL, np.uint32)), ("background",)),
    "float labels": (array_file(labels(np.float32)), ("float32", "integer")),
    "bool labels": (array_file(np.ones(SMALL, np.bool_)), ("bool", "integer")),
    "negative labels": (array_file(labels(np.int32) - 3), ("negative",)),
    "place without a scheme of ours": (lambda _: "ftp://server/volume", ("ftp://server/volume",)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_cannot_be_used(cli: CommandLine, tmp_path: Path, name: str) -> None:
    write, parts = SOURCES[name]
    source = tmp_path / "source"
    source.mkdir()
    raw = builds.raw_config(tmp_path, source={"segmentation": write(source), "resolution": [8, 8, 40]})
    assert_refused_without_a_trace(cli, tmp_path, raw, *parts)


def test_a_source_that_does_not_say_how_large_its_voxels_are(cli: CommandLine, tmp_path: Path) -> None:
    raw = small(tmp_path / "source")
    raw["data_source"] = {"WATERSHED": str(tmp_path / "watershed")}
    del raw["source"]["resolution"]
    assert_refused_without_a_trace(cli, tmp_path, raw, "labels.npz", "Set source.resolution")


def test_an_agglomeration_that_names_unknown_labels(cli: CommandLine, tmp_path: Path) -> None:
    table = tmp_path / "objects.csv"
    table.write_text("label,object\n1,1\n77,1\n")
    raw = small(tmp_path, agglomeration=str(table))
    assert_refused_without_a_trace(cli, tmp_path, raw, "objects.csv", "77")


@pytest.mark.parametrize("content", ["", "label\n1\n", "label,object\n1,one\n", "\x00\x01\x02", "label,object\n1\n"])
def test_an_agglomeration_table_that_cannot_be_read(cli: CommandLine, tmp_path: Path, content: str) -> None:
    table = tmp_path / "objects.csv"
    table.write_text(content)
    raw = small(tmp_path, agglomeration=str(table))
    assert_refused_without_a_trace(cli, tmp_path, raw, "objects.csv")


def test_an_agglomeration_of_another_shape(cli: CommandLine, tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.ones((3, 3, 3), np.uint32))
    raw = small(tmp_path, agglomeration=str(tmp_path / "objects.npy"))
    assert_refused_without_a_trace(cli, tmp_path, raw, "objects.npy")


# -- shapes -----------------------------------------------------------------------------------------------------------


def test_chunks_that_do_not_fit_the_bits_of_ids(cli: CommandLine, tmp_path: Path) -> None:
    raw = small(tmp_path)
    raw["graph_config"] = {"CHUNK_SIZE": [2, 2, 2], "SPATIAL_BITS": 1}
    assert_refused_without_a_trace(cli, tmp_path, raw, "SPATIAL_BITS is 1", "Raise SPATIAL_BITS or CHUNK_SIZE")


def test_more_supervoxels_than_ids_of_a_chunk(cli: CommandLine, tmp_path: Path) -> None:
    raw = small(tmp_path, np.arange(1, 8001, dtype=np.uint32).reshape(20, 20, 20))
    raw["graph_config"] = {"CHUNK_SIZE": [20, 20, 20], "SPATIAL_BITS": 18}
    assert_refused_without_a_trace(cli, tmp_path, raw, "8000 supervoxels", "room for 3", "Lower CHUNK_SIZE")


def test_mips_that_no_populate_task_can_hold(cli: CommandLine, tmp_path: Path) -> None:
    raw = small(tmp_path)
    raw["ocdbt_config"] = {"populate_layer": 2, "mips": 9}
    config = builds.config_file(tmp_path / "dataset.yaml", raw)
    assert_refused(cli("ingest", config), "mip", "populate_layer")
    builds.assert_nothing_written(cli.home)


# -- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["home", "WATERSHED", "EDGES", "COMPONENTS", "PATH"])
def test_a_place_that_cannot_be_written(cli: CommandLine, tmp_path: Path, place: str) -> None:
    blocked = tmp_path / "a_file" / "below"
    (tmp_path / "a_file").write_text("not a folder")
    raw = small(tmp_path)
    if place == "home":
        cli.home = blocked
    elif place == "PATH":
        raw["backend_client"] = {"TYPE": "sqlite", "CONFIG": {"PATH": str(blocked)}}
    else:
        raw["data_source"][place] = str(blocked)
    config = builds.config_file(tmp_path / "dataset.yaml", raw)
    assert_refused(cli("ingest", config), "a_file is not a folder", "Choose another place")
    builds.assert_nothing_written(tmp_path / "home", tmp_path / "watershed")


def test_a_bucket_that_cannot_be_named(cli: CommandLine, tmp_path: Path) -> None:
    raw = small(tmp_path)
    raw["data_source"] = {"WATERSHED": "gs://"}
    assert_refused_without_a_trace(cli, tmp_path, raw, "names no bucket")


# -- configurations ---------------------------------------------------------------------------------------------------


def test_every_wrong_field_is_named(cli: CommandLine, tmp_path: Path) -> None:
    raw = {
        "graph_id": "a|b",
        "data_sauce": {},
        "graph_config": {"CHUNK_SIZE": [0, 2], "SPATIAL_BITS": 99},
        "backend_client": {"TYPE": "bigtable"},
        "ocdbt_config": {"populate_method": "magic"},
        "ingest": {"workers": 0, "wrokers": 2},
    }
    config = builds.config_file(tmp_path / "dataset.yaml", raw)
    wrong = ["graph_id", "data_sauce", "data_source", "CHUNK_SIZE", "SPATIAL_BITS", "PROJECT and INSTANCE"]
    wrong += ["populate_method", "ingest.workers", "ingest.wrokers", "dataset.yaml"]
    assert_refused(cli("ingest", config), *wrong)
    builds.assert_nothing_written(cli.home)


@pytest.mark.parametrize("graph_id", ["a|b", "base", "", ".hidden", "a/b", "x" * 60, 7])
def test_a_graph_id_that_cannot_be_used(cli: CommandLine, tmp_path: Path, graph_id: object) -> None:
    raw = small(tmp_path) | {"graph_id": graph_id}
    assert_refused_without_a_trace(cli, tmp_path, raw, "graph_id")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"graph_id: [unclosed", "not valid YAML"),
        (b"\xff\xfe\x00binary", "not a text file"),
        (b"", "does not hold a mapping"),
        (b"- a\n- b\n", "does not hold a mapping"),
        (b"graph_id: !!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"1: 2\ngraph_id: x\n", "dataset.yaml"),
    ],
)
@pytest.mark.parametrize("command", ["ingest", "attach"])
def test_a_configuration_file_that_is_none(
    cli: CommandLine, tmp_path: Path, content: bytes, part: str, command: str
) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_bytes(content)
    assert_refused(cli(command, path), part)
    builds.assert_nothing_written(cli.home)


def test_a_configuration_file_that_is_not_there(cli: CommandLine, tmp_path: Path) -> None:
    assert_refused(cli("ingest", tmp_path / "nowhere.yaml"), "nowhere.yaml", "No such file")
    builds.assert_nothing_written(cli.home)


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


def second_graph(known: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**{k: v for k, v in known.items() if k != "source"}, "graph_id": "second", **changes}


@pytest.mark.parametrize(
    ("ocdbt_config", "part"),
    [
        ({"populate_layer": 2}, "populate"),
        ({"populate_layer": 3, "max_inline_value_bytes": 100}, "max_inline_value_bytes is 4096, not 100"),
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
    from sv_pipeline.segmentation.precomputed import create_volume

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


# -- services ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_a_bucket_that_denies_access(cli: CommandLine, tmp_path: Path, gcs_server: GcsControl, status: int) -> None:
    raw = small(tmp_path)
    raw["data_source"] = {"WATERSHED": gcs_server.new_bucket()}
    gcs_server.add_fault(status=status)
    assert_refused_without_a_trace(cli, tmp_path, raw, "access denied", "GOOGLE_APPLICATION_CREDENTIALS", "gs://")


def test_a_bucket_that_does_not_exist(cli: CommandLine, tmp_path: Path, gcs_server: GcsControl) -> None:
    raw = small(tmp_path)
    raw["data_source"] = {"WATERSHED": gcs_server.new_bucket()}
    gcs_server.add_fault(status=404)
    assert_refused_without_a_trace(cli, tmp_path, raw, "cannot write to gs://", "Check data_source.WATERSHED")


def test_bigtable_without_credentials(cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIGTABLE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
    raw = small(tmp_path)
    raw["backend_client"] = {"TYPE": "bigtable", "CONFIG": {"PROJECT": "p", "INSTANCE": "i"}}
    assert_refused_without_a_trace(cli, tmp_path, raw, "no Google credentials for Bigtable", "TYPE: sqlite")


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
