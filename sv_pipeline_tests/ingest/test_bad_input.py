"""A user does everything wrong: each time one clear error that names the thing and the remedy, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.builds import CommandLine
from sv_pipeline_tests.ingest.mistakes import SMALL, assert_refused, assert_refused_without_a_trace, labels, small

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
    assert_refused_without_a_trace(cli, tmp_path, raw, "8000 supervoxels", "only 3 ids", "Lower CHUNK_SIZE")


def test_mips_that_no_populate_task_can_hold(cli: CommandLine, tmp_path: Path) -> None:
    raw = small(tmp_path)
    raw["ocdbt_config"] = {"populate_layer": 2, "mips": 9}
    config = builds.config_file(tmp_path / "dataset.yaml", raw)
    assert_refused(cli("ingest", config), "mip", "populate_layer")
    builds.assert_nothing_written(cli.home)
    assert not list(tmp_path.rglob("info"))


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


@pytest.mark.parametrize(
    ("place", "is_folder"),
    [
        ("home/graphs", False),
        ("home/tables", False),
        ("home/graphs/tissue.json", True),
        ("watershed/ocdbt", False),
        ("watershed/ocdbt/tissue", False),
        ("watershed/.watershed", False),
        ("watershed/info", True),
    ],
)
def test_what_is_in_the_way_below_a_place_is_named_before_anything_is_written(
    cli: CommandLine, tmp_path: Path, place: str, is_folder: bool
) -> None:
    raw = small(tmp_path)
    raw["data_source"] = {"WATERSHED": str(tmp_path / "watershed")}
    in_the_way = cli.home.parent / place
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    if is_folder:
        in_the_way.mkdir()
    else:
        in_the_way.write_text("mine")
    config = builds.config_file(tmp_path / "dataset.yaml", raw)
    before = set(tmp_path.rglob("*"))
    assert_refused(cli("ingest", config), str(in_the_way), "is a folder" if is_folder else "is not a folder")
    assert set(tmp_path.rglob("*")) == before


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
        (b"", "is empty"),
        (b"- a\n- b\n", "holds a list"),
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
