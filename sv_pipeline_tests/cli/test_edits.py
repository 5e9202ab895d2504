"""Editing from a terminal: what is printed, what is written, and which exit code comes with what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.registry import Registry
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.editable import (
    BACKGROUND,
    RING_POINTS,
    editable_graph,
    neighbours_of_two_objects,
    ring_graph,
    two_parts_of_an_object,
)
from sv_pipeline_tests.ingest.builds import CommandLine

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def graph(cli: CommandLine, tmp_path: Path) -> OpenGraph:
    return editable_graph(tmp_path / "graph", cli.home)


def sides_of(points: tuple[tuple[int, int, int], tuple[int, int, int]]) -> tuple[str, ...]:
    source, sink = (",".join(map(str, p)) for p in points)
    return "--source", source, "--sink", sink


def test_a_split_is_previewed_made_undone_and_made_again(cli: CommandLine, graph: OpenGraph, tmp_path: Path) -> None:
    sides = sides_of(two_parts_of_an_object(graph))
    previewed = json.loads(cli("preview", "small", *sides, "--json").out)
    assert previewed["legal"]
    cut = json.loads(cli("split", "small", *sides, "--user", "me", "--json").out)
    assert (cut["operation"], cut["kind"], cut["user"]) == (1, "split", "me")
    assert cut["edges"] == previewed["removed_edges"]
    assert len(cut["new_roots"]) == 2
    assert cli("merge", "small", *sides).code == 0
    assert cli("undo", "small", 2).code == 0
    assert cli("redo", "small", 2).code == 0
    log = json.loads(cli("ops", "small", "--json").out)
    assert [row["kind"] for row in log] == ["split", "merge", "undo", "redo"]
    assert [row["about"] for row in log] == [0, 0, 2, 2]
    assert len(log[0]["source"]) == len(log[0]["source_ids"]) == 1
    assert len(json.loads(cli("ops", "small", "--json", "--last", 1).out)) == 1
    assert verify_dataset(graph.dataset).ok


def test_people_get_sentences_and_a_table(cli: CommandLine, graph: OpenGraph) -> None:
    assert "no operations yet" in cli("ops", "small").out
    points = two_parts_of_an_object(graph, of_a_supervoxel=True)
    sides = sides_of(points)
    said = cli("preview", "small", *sides).out
    assert "would be removed" in said
    assert "[]" not in said
    assert "voxels to the source" in said
    said = cli("split", "small", *sides, "--user", "me").out
    assert "operation 1 (split" in said
    assert "supervoxels were replaced by" in said
    said = cli("ops", "small").out
    assert all(word in said for word in ("split", "SUCCESS", "me", sides[1], sides[3]))
    assert "several_roots" not in said
    cli("split", "small", *sides)
    assert "several_roots" in cli("ops", "small").out


def test_a_split_that_would_leave_one_object(cli: CommandLine, tmp_path: Path) -> None:
    """Refused without memory for more of the object; made, and said, with --partial; made whole by itself."""
    graph = ring_graph(tmp_path / "ring", cli.home)
    sides = sides_of(RING_POINTS)
    for command in ("preview", "split"):
        refused = cli(command, "ring", *sides, "--region-memory", 0)
        assert refused.code == 1
        assert "still_connected" in refused.out + refused.err or "still one object" in refused.err
    assert "still one object" in cli("preview", "ring", *sides, "--partial").out
    assert "still one object" in cli("split", "ring", *sides, "--partial").out
    assert "still one object" in cli("ops", "ring").out
    assert len(set(graph.roots(RING_POINTS).tolist())) == 1
    assert "still one object" not in cli("undo", "ring", 2).out
    assert "objects afterwards: 2" in cli("preview", "ring", *sides).out
    made = json.loads(cli("split", "ring", *sides, "--json").out)
    assert (len(made["new_roots"]), made["still_one_object"]) == (2, False)
    assert len(set(graph.roots(RING_POINTS).tolist())) == 2
    assert verify_dataset(graph.dataset).ok


def test_every_edit_can_come_with_a_picture(cli: CommandLine, graph: OpenGraph, tmp_path: Path) -> None:
    sides = sides_of(two_parts_of_an_object(graph))
    calls = {
        "preview": ("preview", "small", *sides),
        "split": ("split", "small", *sides),
        "undo": ("undo", "small", 1),
        "redo": ("redo", "small", 1),
        "merge": ("merge", "small", *sides),
    }
    for name, arguments in calls.items():
        file = tmp_path / "pictures" / f"{name}.png"
        said = cli(*arguments, "--picture", file, "--json")
        assert said.code == 0, said.err
        json.loads(said.out)
        assert file.read_bytes().startswith(PNG)
    later = tmp_path / "later.png"
    assert cli("picture", "small", 1, later).code == 0
    assert later.read_bytes() == (tmp_path / "pictures" / "split.png").read_bytes()


def test_a_picture_that_cannot_be_written_does_not_hide_that_the_edit_was_made(
    cli: CommandLine, graph: OpenGraph, tmp_path: Path
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    said = cli("merge", "small", *sides_of(neighbours_of_two_objects(graph)), "--picture", blocked / "x.png")
    assert said.code == 0
    assert "operation 1" in said.out
    assert "there is no picture" in said.err


def test_a_preview_that_would_be_refused_ends_with_code_1(cli: CommandLine, graph: OpenGraph) -> None:
    said = cli("preview", "small", *sides_of(neighbours_of_two_objects(graph)))
    assert said.code == 1
    one, other = (points.replace(",", ", ") for points in sides_of(neighbours_of_two_objects(graph))[1::2])
    assert f"the points are on 2 objects: source ({one}) on root " in said.err, "which point is on which object"
    assert f"; sink ({other}) on root " in said.err


BAD = {
    "outside": (("--source", "30,30,16", "--sink", "640,0,0"), 1, "outside the volume"),
    "background": (("--source", "30,30,16", "--sink", ",".join(map(str, BACKGROUND))), 1, "background"),
    "the same": (("--source", "30,30,16", "--sink", "30,30,16"), 1, "sink"),
    "huge": (("--source", "30,30,16", "--sink", f"{10**30},0,0"), 1, "cannot use"),
    "thousands": (
        ("--source", "30,30,16", *(a for i in range(1500) for a in ("--sink", f"{i % 60},9,9"))),
        1,
        "1,000 are possible",
    ),
    "words": (("--source", "30,30,16", "--sink", "a,b,c"), 2, "--sink"),
    "two numbers": (("--source", "1,2", "--sink", "1,2,3"), 2, "--source"),
    "fractions": (("--source", "1.5,2,3", "--sink", "1,2,3"), 2, "--source"),
    "empty": (("--source", "", "--sink", "1,2,3"), 2, "--source"),
    "one side only": (("--source", "30,30,16"), 2, "--sink"),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> OpenGraph:
    folder = tmp_path_factory.mktemp("built")
    return editable_graph(folder, folder / "home")


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("command", ["split", "merge", "preview"])
def test_bad_input_is_one_message_and_no_traceback(cli: CommandLine, built: OpenGraph, command: str, name: str) -> None:
    cli.home = Path(built.dataset.home)
    arguments, code, message = BAD[name]
    said = cli(command, "small", *arguments)
    assert said.code == code
    assert message in said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    if code == 1:
        assert len(said.err.strip().splitlines()) == 1
    assert set(built.operations()["status"]) <= {"EXCEPTION"}


def test_an_unknown_graph_or_operation_is_named(cli: CommandLine, built: OpenGraph, tmp_path: Path) -> None:
    cli.home = Path(built.dataset.home)
    said = cli("split", "nowhere", "--source", "1,2,3", "--sink", "4,5,6")
    assert said.code == 1
    assert "'nowhere' is not known" in said.err
    said = cli("undo", "small", 10**6)
    assert said.code == 1
    assert "no operation 1000000" in said.err
    said = cli("picture", "small", 10**6, tmp_path / "x.png")
    assert said.code == 1
    assert "no operation 1000000" in said.err
    assert cli("undo", "small", "first").code == 2
    assert cli("undo", "small", 0).code == 2


def test_a_read_only_graph_is_refused(cli: CommandLine, graph: OpenGraph) -> None:
    path = Path(cli.home) / "graphs" / "small.json"
    stored = json.loads(path.read_text())
    stored["backend_client"]["CONFIG"]["READ_ONLY"] = True
    path.write_text(json.dumps(stored))
    assert Registry(str(cli.home)).get("small").table.read_only
    said = cli("merge", "small", *sides_of(neighbours_of_two_objects(graph)))
    assert said.code == 1
    assert "read-only" in said.err
    assert len(graph.operations()) == 0
