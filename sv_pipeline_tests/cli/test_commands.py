"""What a person at a terminal, or a script, gets from each command."""

from __future__ import annotations

import importlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from sv_pipeline.cli.main import COMMANDS
from sv_pipeline.ingest.pool import ALONE_VARIABLE
from sv_pipeline.registry import Dataset, Registry
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.builds import CommandLine


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one graph, complete. Tests only read it."""
    folder = tmp_path_factory.mktemp("built")
    builds.ingest(builds.register(builds.raw_config(folder), folder / "home"))
    return folder / "home"


@pytest.fixture
def built(cli: CommandLine, home: Path) -> Dataset:
    """The complete graph, in the home that the command line uses."""
    cli.home = home
    return Registry(str(home)).get("tissue")


def started(cli: CommandLine, tmp_path: Path) -> Path:
    """A graph that is registered, of which nothing is built but its first layer; its configuration."""
    path = Path(builds.config_file(tmp_path / "tissue.yaml", builds.raw_config(tmp_path)))
    assert cli("ingest", path, "--layers", 2).code == 0
    return path


# -- help -------------------------------------------------------------------------------------------------------------


def test_help_comes_without_loading_what_the_commands_need() -> None:
    program = (
        "import sys\nsys.argv = ['sv-pipeline', '--help']\n"
        "from sv_pipeline.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'tensorstore', 'pandas', 'pydantic', 'dagster', 'matplotlib', 'scipy', 'grpc'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "loaded: []" in said
    for name, (_, line) in COMMANDS.items():
        assert name in said
        assert line in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_described(cli: CommandLine, name: str) -> None:
    module, attribute = COMMANDS[name][0].split(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    assert command.name == name
    said = cli(name, "--help")
    assert said.code == 0
    summary = (command.help or "").split("\n\n")[0]
    assert summary.endswith((".", "…"))
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"
            assert parameter.help.endswith("."), f"{name} {parameter.name}"
        elif isinstance(parameter, click.Argument):
            assert str(parameter.make_metavar(click.Context(command))).strip("[]. ").rstrip("…") in (command.help or "")


def test_commands_are_run_by_the_name_in_the_list_only(cli: CommandLine) -> None:
    said = cli("statsu", "tissue")
    assert said.code == 2
    assert "no command 'statsu'" in said.err
    assert "status" in said.err


def test_wrong_options_are_named(cli: CommandLine) -> None:
    for arguments in (["status"], ["ingest", "x.yaml", "--mode", "fast"], ["ingest", "x", "--layers", "2.5"]):
        said = cli(*arguments)
        assert said.code in (1, 2)
        assert "rror" in said.err


# -- what scripts read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "many"])
@pytest.mark.parametrize(
    "command",
    [["status", "tissue", "--interval"], ["split", "tissue", "--source=1,1,1", "--sink=2,2,2", "--region-memory"]],
)
def test_what_is_no_number_is_refused(cli: CommandLine, number: str, command: list[str]) -> None:
    said = cli(*command, number)
    assert said.code == 2
    assert command[-1] in said.err


def test_json_is_one_document_for_every_command_that_offers_it(cli: CommandLine, built: Dataset) -> None:
    assert json.loads(cli("list", "--json").out) == ["tissue"]
    status = json.loads(cli("status", "tissue", "--json").out)
    assert status["complete"] is True
    assert {row["state"] for row in status["stages"]} == {"done"}
    verified = json.loads(cli("verify", "tissue", "--json").out)
    assert verified["ok"] is True
    assert json.loads(cli("info", "tissue", "--json").out)["graph_id"] == "tissue"


def test_ingest_prints_json_alone(cli: CommandLine, tmp_path: Path) -> None:
    config = builds.config_file(tmp_path / "tissue.yaml", builds.raw_config(tmp_path))
    said = cli("ingest", config, "--json")
    assert json.loads(said.out)["complete"] is True
    assert said.err == ""


def test_people_get_tables_and_sentences(cli: CommandLine, built: Dataset) -> None:
    assert "layer 4" in cli("status", "tissue").out
    assert "is sound" in cli("verify", "tissue").out
    assert "chunks of (32, 32, 16) voxels" in cli("info", "tissue").out
    assert cli("list").out.strip() == "tissue"


def test_a_reader_that_has_seen_enough_is_no_error(home: Path) -> None:
    command = f"{sys.executable} -m sv_pipeline.cli.main --home {home} info tissue --json | head -n 1"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "{"
    assert ended.stderr == ""


def test_an_empty_home_says_how_to_begin(cli: CommandLine) -> None:
    cli.home.mkdir()
    assert "sv-pipeline ingest" in cli("list").out
    assert json.loads(cli("list", "--json").out) == []


# -- status -----------------------------------------------------------------------------------------------------------


def test_status_watched_ends_when_all_is_complete(cli: CommandLine, built: Dataset) -> None:
    said = cli("status", "tissue", "--watch", "--interval", "0.1")
    assert said.code == 0
    assert "done" in said.out


def test_status_watched_follows_an_ingest_to_its_end(cli: CommandLine, tmp_path: Path) -> None:
    config = started(cli, tmp_path)
    watching = builds.start_cli(cli.home, "status", "tissue", "--watch", "--interval", 0.1)
    assert cli("ingest", config).code == 0
    said = builds.end_of(watching)
    assert said.code == 0, said.err
    assert "Traceback" not in said.err


def test_status_watched_until_ctrl_c_says_that_nothing_else_was_stopped(cli: CommandLine, tmp_path: Path) -> None:
    started(cli, tmp_path)
    ours, screen = os.openpty()
    command = [sys.executable, "-m", "sv_pipeline.cli.main", "--home", str(cli.home), "status", "tissue", "--watch"]
    with subprocess.Popen(command, stdout=screen, stderr=subprocess.PIPE, text=True) as watching:
        os.close(screen)
        shown = b""
        while b"layer 2" not in shown:
            shown += os.read(ours, 4096)
        watching.send_signal(signal.SIGINT)
        err = watching.communicate(timeout=60)[1]
    os.close(ours)
    assert watching.returncode == 130
    assert err.split("\n")[-3:] == ["stopped.", "Nothing else was stopped: an ingest that runs elsewhere goes on.", ""]


def test_a_graph_without_voxels_is_complete_without_a_fork(cli: CommandLine, tmp_path: Path) -> None:
    raw = builds.raw_config(tmp_path, ingest={"mode": "graph"})
    assert cli("ingest", builds.config_file(tmp_path / "tissue.yaml", raw)).code == 0
    assert "fork" not in cli("status", "tissue", "--watch", "--interval", "0.1").out


def test_when_all_is_made_of_a_source_it_may_go(
    cli: CommandLine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = started(cli, tmp_path)
    shutil.rmtree(tmp_path / "source")
    assert cli("status", "tissue").code == 0
    said = cli("ingest", config)
    assert said.code == 0, said.err
    assert "the source cannot be read any more" in caplog.text
    assert json.loads(cli("status", "tissue", "--json").out)["complete"]
    shutil.rmtree(tmp_path / "watershed" / ".watershed" / "edges")
    assert "segmentation.npz does not exist" in cli("ingest", config).err


def test_a_watershed_that_vanished_is_missed(cli: CommandLine, tmp_path: Path) -> None:
    started(cli, tmp_path)
    shutil.rmtree(tmp_path / "watershed")
    status = cli("status", "tissue", "--json")
    assert json.loads(status.out)["complete"] is False
    for command in ("info", "verify", "roots"):
        said = cli(command, "tissue", *(["1"] if command == "roots" else []))
        assert said.code == 1
        assert "watershed" in said.err


def test_status_of_what_is_half_built_says_so(cli: CommandLine, tmp_path: Path) -> None:
    started(cli, tmp_path)
    status = json.loads(cli("status", "tissue", "--json").out)
    states = {row["name"]: row["state"] for row in status["stages"]}
    assert states["layer 2"] == "done"
    assert states["layer 3"] == states["layer 4"] == "waiting"
    assert status["complete"] is False


def test_looking_changes_nothing(cli: CommandLine, tmp_path: Path) -> None:
    started(cli, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "watershed").rglob("*") if p.is_file()}
    for command in (["status", "tissue"], ["info", "tissue"], ["list"]):
        cli(*command)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "watershed").rglob("*") if p.is_file()} == before


# -- roots ------------------------------------------------------------------------------------------------------------


def test_roots_of_points_are_those_of_the_supervoxels_there(cli: CommandLine, built: Dataset) -> None:
    volume = Fork(built.watershed_url, "tissue").open()
    points = [built.grid.bounds.start, tuple(int(v) - 1 for v in built.grid.bounds.stop)]
    ids = [int(volume[point].read().result()) for point in points]
    options = [f"--at={','.join(map(str, point))}" for point in points]
    at = json.loads(cli("roots", "tissue", *options, "--json").out)
    assert at == json.loads(cli("roots", "tissue", *ids, "--json").out)
    assert [row["supervoxel"] for row in at] == ids
    assert all(row["root"] >> 56 == built.grid.n_layers for row in at)
    assert str(at[0]["root"]) in cli("roots", "tissue", ids[0]).out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "--at X,Y,Z"),
        (["--at", "1,2"], "x,y,z"),
        (["--at", "100000,0,0"], "100000"),
        ([str(1 << 56 | 999)], str(1 << 56 | 999)),
        (["abc"], "abc"),
        (["-1"], "-1"),
        (["--time", "yesterday", "1"], "yesterday"),
        (["--time", "1990-01-01", "72057594037927937"], "not as old as 1990-01-01"),
    ],
)
def test_roots_of_nothing_are_refused(cli: CommandLine, built: Dataset, arguments: list[str], part: str) -> None:
    said = cli("roots", "tissue", *arguments)
    assert said.code in (1, 2), said.out
    assert part in said.err
    assert "Traceback" not in said.err


# -- info -------------------------------------------------------------------------------------------------------------


def test_every_published_spec_opens_with_tensorstore_alone(cli: CommandLine, built: Dataset, tmp_path: Path) -> None:
    info = json.loads(cli("info", "tissue", "--json").out)
    (tmp_path / "info.json").write_text(json.dumps(info))
    program = (
        "import json, sys, tensorstore as ts\n"
        "for mip in json.load(open(sys.argv[1]))['mips']:\n"
        "    for kind in ('latest', 'pinned'):\n"
        "        store = ts.open(mip[kind]).result()\n"
        "        start, shape = list(store.domain.inclusive_min), list(store.shape)\n"
        "        print(mip['mip'], kind, start, shape, store.read().result().sum())\n"
        "assert not any(name.startswith('sv_pipeline') for name in sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path / "info.json")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 2 * len(info["mips"]) >= 4
    for mip in info["mips"]:
        total = Fork(built.watershed_url, "tissue").open(mip["mip"]).read().result().sum()
        for kind in ("latest", "pinned"):
            line = next(text for text in lines if text.startswith(f"{mip['mip']} {kind} "))
            assert line.endswith(str(total))
            assert str(mip["voxel_offset"])[:-1] in line
            assert str(mip["size"])[:-1] in line


def test_what_a_person_copies_from_info_is_the_latest_spec(cli: CommandLine, built: Dataset) -> None:
    out = cli("info", "tissue").out
    text = out[out.index("{") : out.rindex("}") + 1]
    as_json = json.loads(cli("info", "tissue", "--json").out)
    assert json.loads(text) == as_json["mips"][0]["latest"]
    command = out.splitlines()[-1]
    assert command == as_json["viewer"]
    assert shlex.split(command)[1:] == ["--home", str(cli.home), "view", "tissue"]
    assert as_json["neuroglancer"] is None


def test_info_before_there_is_a_fork_says_what_to_do(cli: CommandLine, tmp_path: Path) -> None:
    started(cli, tmp_path)
    said = cli("info", "tissue")
    assert said.code == 1
    assert "no fork" in said.err
    assert "sv-pipeline ingest" in said.err


# -- verify, purge, attach --------------------------------------------------------------------------------------------


def test_verify_ends_with_1_when_something_is_wrong(cli: CommandLine, tmp_path: Path) -> None:
    config = started(cli, tmp_path)
    assert cli("ingest", config).code == 0
    dataset = Registry(str(cli.home)).get("tissue")
    store = Fork(dataset.watershed_url, "tissue").store().array(0)
    store[tuple(dataset.grid.bounds.start)].write(np.uint64(1 << 56 | 12345)).result()
    said = cli("verify", "tissue")
    assert said.code == 1
    assert "72057594037940281" in said.out
    assert json.loads(cli("verify", "tissue", "--json").out)["ok"] is False
    assert cli("verify", "tissue", "--check", "hierarchy").code == 0
    unknown = cli("verify", "tissue", "--check", "hierachy")
    assert unknown.code in (1, 2)
    assert "hierarchy" in unknown.err


def test_verify_of_what_is_half_built_is_not_sound(cli: CommandLine, tmp_path: Path) -> None:
    started(cli, tmp_path)
    said = cli("verify", "tissue")
    assert said.code == 1
    assert "Traceback" not in said.err


def test_a_purged_layer_is_to_be_built_again(cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = started(cli, tmp_path)
    assert cli("ingest", config).code == 0
    before = builds.stored_shape(Registry(str(cli.home)).get("tissue").graph)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody answers
    assert "nothing was changed" in cli("purge-layer", "tissue", 3).err, "nobody said yes"
    assert json.loads(cli("status", "tissue", "--json").out)["complete"]
    for wrong in (1, 9):
        assert cli("purge-layer", "tissue", wrong, "--yes").code in (1, 2)
    said = cli("purge-layer", "tissue", 3, "--yes")
    assert said.code == 0
    assert "sv-pipeline ingest" in said.out
    states = {r["name"]: r["state"] for r in json.loads(cli("status", "tissue", "--json").out)["stages"]}
    assert (states["layer 2"], states["layer 3"], states["layer 4"]) == ("done", "waiting", "waiting")
    assert cli("ingest", config).code == 0
    assert cli("verify", "tissue").code == 0
    assert builds.stored_shape(Registry(str(cli.home)).get("tissue").graph) == before


def test_a_table_made_elsewhere_is_attached_and_can_be_used(cli: CommandLine, tmp_path: Path) -> None:
    raw = builds.raw_config(tmp_path, backend_client={"TYPE": "sqlite", "CONFIG": {"PATH": str(tmp_path / "tables")}})
    builds.ingest(builds.register(raw, tmp_path / "another_home"))
    given = {key: value for key, value in raw.items() if key != "source"}
    config = builds.config_file(tmp_path / "attached.yaml", given)
    assert "is not registered here" in cli("ingest", config).err
    said = cli("attach", config)
    assert said.code == 0, said.err
    assert "4 layers, 12 chunks" in said.out
    assert cli("attach", config).code == 0, "twice is once"
    assert json.loads(cli("status", "tissue", "--json").out)["complete"]
    assert cli("verify", "tissue").code == 0
    assert cli("ingest", config).code == 0


# -- interrupts -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sent_to", ["group", "main process"])
def test_an_interrupted_ingest_says_how_to_go_on(cli: CommandLine, tmp_path: Path, sent_to: str) -> None:
    raw = builds.raw_config(tmp_path, ingest={"chunks_per_batch": 1})
    config = builds.config_file(tmp_path / "tissue.yaml", raw)
    process = builds.start_cli(cli.home, "ingest", config, "--workers", 2, **{ALONE_VARIABLE: "0"})
    builds.wait_until(lambda: list((tmp_path / "watershed").rglob("labels/*.npz")), "a first chunk")
    if sent_to == "group":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    said = builds.end_of(process)
    assert said.code == 130, said.err
    assert "Run the same command again to continue" in said.err
    assert "Traceback" not in said.err
    builds.wait_until(lambda: not builds.group_is_alive(process), "its workers to end")
    assert cli("ingest", config).code == 0
    assert cli("verify", "tissue").code == 0


# -- demo -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_ends_with_a_proof_and_pictures(tmp_path: Path) -> None:
    source = builds.write_source(tmp_path / "source")
    environment: dict[str, Any] = {"DAGSTER_HOME": str(tmp_path / "dagster"), "DAGSTER_DISABLE_TELEMETRY": "1"}
    (tmp_path / "dagster").mkdir()
    options = ["--folder", tmp_path / "demo", "--chunk-size", "32,32,16"]
    said = builds.end_of(builds.start_cli(tmp_path / "home", "demo", source["segmentation"], *options, **environment))
    assert said.code == 0, said.err
    assert "is sound" in said.out
    pictures = sorted((tmp_path / "demo").rglob("*.png"))
    assert [path.name for path in pictures] == ["mips.png", "roots.png", "supervoxels.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    for path in pictures:
        assert str(path) in said.out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere.npz"], "nowhere.npz"),
        (["--chunk-size", "64"], "three whole numbers"),
        (["--chunk-size", "0,1,1"], "CHUNK_SIZE"),
        (["--folder", "a_file/demo"], "a_file"),
    ],
)
def test_a_demo_that_cannot_be_made_says_why(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("not a folder")
    if "nowhere.npz" not in arguments:
        builds.write_source(tmp_path / "source")
        arguments = [*arguments, str(tmp_path / "source" / "segmentation.npz")]
    said = cli("demo", *arguments)
    assert said.code in (1, 2)
    assert part in said.err
    assert "Traceback" not in said.err
    builds.assert_nothing_written(cli.home, tmp_path / "demo")
