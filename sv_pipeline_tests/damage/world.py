"""A small installation with everything in it, one file of which is damaged; and every command that is run on it then.

``python -m sv_pipeline_tests.damage.world FOLDER`` damages each file in each way and prints what came of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from unittest import mock

from sv_pipeline.cli import main as command_line
from sv_pipeline.failpoints import VARIABLE as FAILPOINT
from sv_pipeline.storage.context import reset_context
from sv_pipeline_tests import editable

GRAPH = "small"
WRONG = "OTHER ANSWER, verify is silent"
DAMAGES = ("empty", "half", "flip", "gone", "garbage")
MORE_DAMAGES = ("zeros", "folder")
"""For the sweep of all files."""
_CHANGING = re.compile(r"second|age|throughput|beats|died")
NOT_READ = (".__lock", "writer.json")
"""Locks, and the note of the process that has one: their content means nothing."""


ALSO_KNOWN_AS = {"cells.sqlite": ("table'small'",), "complete.json": ("finishthepopulate",)}
"""What a message may call a file that is missing, blanks left out."""


@dataclass(frozen=True)
class Outcome:
    """What one command did on a damaged installation."""

    file: str
    damage: str
    command: str
    code: int
    said: str
    as_before: bool
    """Whether it printed what it prints on the undamaged installation."""
    names_it: bool
    """Whether it named the file, its folder or its key."""


@dataclass
class World:
    """The installation, its copy, and the answers that it gives when it is whole."""

    root: Path
    original: Path
    reads: dict[str, list[str]]
    writes: dict[str, list[str]]
    answers: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def files(self) -> list[str]:
        """What can be damaged, relative to the root; the source is not ours."""
        found = sorted(str(path.relative_to(self.root)) for path in self.original_files())
        return [name for name in found if not name.endswith(NOT_READ) and name != "data/small.npz"]

    def original_files(self) -> list[Path]:
        return [self.root / path.relative_to(self.original) for path in self.original.rglob("*") if path.is_file()]

    def restore(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.original, self.root)

    def damage(self, file: str, how: str, seed: int = 0) -> None:
        """Damage one file, the same way for the same seed."""
        path, chance = self.root / file, random.Random(f"{seed} {Path(file).parent} {how}")
        data = path.read_bytes()
        if how == "gone":
            path.unlink()
        elif how == "flip" and data:
            at = chance.randrange(len(data))
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :])
        elif how == "garbage":
            path.write_bytes(chance.randbytes(max(64, len(data))))
        elif how == "zeros":
            path.write_bytes(bytes(len(data)))
        elif how == "folder":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(data[: len(data) // 2] if how == "half" else b"")

    def run(self, arguments: Sequence[str]) -> tuple[int, str, str]:
        """A command in this process: exit code, standard output, standard error."""
        reset_context()
        out, err, before = io.StringIO(), io.StringIO(), sys.argv
        sys.argv = ["sv-pipeline", "--home", str(self.home), *arguments]
        code = 0
        try:
            with mock.patch.dict(os.environ), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                command_line.main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.argv = before
        return code, out.getvalue(), err.getvalue()

    def look(self, file: str, how: str, commands: dict[str, list[str]], seed: int = 0) -> Iterator[Outcome]:
        """Damage one file, run commands, restore."""
        self.damage(file, how, seed)
        names = {Path(file).name, file, f"{Path(file).parent.parent}'", *ALSO_KNOWN_AS.get(Path(file).name, ())}
        try:
            for name, arguments in commands.items():
                code, out, err = self.run(arguments)
                said = f"{out}\n{err}"
                one_line = "".join(said.split())
                yield Outcome(
                    file,
                    how,
                    name,
                    code,
                    said,
                    _plain(out) == self.answers.get(name),
                    any(word in one_line for word in names),
                )
        finally:
            self.restore()


def build(root: Path) -> World:
    """Ingest, merge, split through voxels, split, and let a process die in the middle of another split."""
    graph = editable.editable_graph(root / "data", root / "home", GRAPH)
    one, other = editable.neighbours_of_two_objects(graph)
    graph.merge([one], [other])
    cut = editable.two_parts_of_an_object(graph, of_a_supervoxel=True)
    graph.split([cut[0]], [cut[1]])
    plain = editable.two_parts_of_an_object(graph)
    graph.split([plain[0]], [plain[1]])
    last = editable.two_parts_of_an_object(graph, of_a_supervoxel=True)
    sides = [f"--source={_text(last[0])}", f"--sink={_text(last[1])}"]
    died = subprocess.run(
        [sys.executable, "-m", "sv_pipeline.cli.main", "--home", str(root / "home"), "split", GRAPH, *sides],
        env={**os.environ, FAILPOINT: "write started:kill"},
        check=False,
        capture_output=True,
    )
    assert died.returncode == -9, died.stderr
    graph.dataset.table.close()
    move_log_into_database(root / "home" / "tables" / GRAPH / "cells.sqlite")
    shutil.copytree(root, root.with_name(root.name + ".original"))
    voxels = [(x, y, z) for x in (3, 20, 40, 60) for y in (10, 30, 50) for z in (8, 24)]
    labels = graph.segmentation.read().result()
    points = [f"--at={_text(voxel)}" for voxel in voxels if labels[voxel]]
    somewhere = [f"--source={_text(cut)}" for cut in last[:1]] + [f"--sink={_text(last[1])}"]
    reads = {
        "list": ["list"],
        "status": ["status", GRAPH, "--json"],
        "roots": ["roots", GRAPH, *points, "--json"],
        "roots of then": ["roots", GRAPH, *points, "--op=1", "--json"],
        "info": ["info", GRAPH, "--json"],
        "ops": ["ops", GRAPH, "--json"],
        "preview": ["preview", GRAPH, *somewhere, "--json"],
        "stuck list": ["stuck", "list", GRAPH, "--min-age=0s", "--deep"],
        "stuck show": ["stuck", "show", GRAPH, "4", "--json"],
        "dry run": ["stuck", "recover", GRAPH, "4", "--dry-run", "--json"],
        "lag": ["lag", GRAPH, "--json"],
        "picture": ["picture", GRAPH, "2", str(root.with_name("picture.png"))],
        "verify": ["verify", GRAPH],
    }
    writes = {
        "merge": ["merge", GRAPH, f"--source={_text(one)}", "--sink=60,50,24", "--json"],
        "split": ["split", GRAPH, *somewhere, "--json"],
        "undo": ["undo", GRAPH, "3"],
        "downsample": ["downsample", GRAPH],
    }
    world = World(root, root.with_name(root.name + ".original"), reads, writes)
    for name, arguments in reads.items():
        world.answers[name] = _plain(world.run(arguments)[1])
    return world


def move_log_into_database(database: Path) -> None:
    """While all pages lie in the write-ahead log, SQLite reads none of the database file: damage to it does no harm."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert not busy


def _text(point: Sequence[int]) -> str:
    return ",".join(map(str, point))


def _plain(out: str) -> str:
    """Without ages and durations, which differ each time."""
    lines = re.sub(r"\d+\.?\d* (s|m|h)\b", "", out).splitlines()
    return "\n".join(" ".join(line.split()) for line in lines if not _CHANGING.search(line))


def verdicts(outcomes: Sequence[Outcome]) -> Counter[str]:
    """How often each kind of end came."""
    verified = {(o.file, o.damage): o.code != 0 for o in outcomes if o.command == "verify"}
    kinds: Counter[str] = Counter()
    for o in outcomes:
        if o.code == command_line.DEFECT_EXIT_CODE or "Traceback" in o.said:
            kinds["traceback or defect"] += 1
        elif o.command == "verify":
            kinds["verify names it" if o.code and o.names_it else "verify fails" if o.code else "verify is silent"] += 1
        elif o.code:
            kinds["refused, names the file" if o.names_it else "refused"] += 1
        elif o.as_before:
            kinds["as before"] += 1
        else:
            kinds[
                "other answer, verify fails" if verified.get((o.file, o.damage)) else "OTHER ANSWER, verify is silent"
            ] += 1
    return kinds


if __name__ == "__main__":
    os.environ.setdefault("SV_PIPELINE_PATIENCE", "2")
    place = Path(sys.argv[1])
    shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(place.with_name(place.name + ".original"), ignore_errors=True)
    whole = build(place)
    wanted = [name for name in whole.files if len(sys.argv) < 4 or sys.argv[3] in name]
    every: list[Outcome] = []
    began = time.monotonic()
    with Path(sys.argv[2]).open("w") as log:
        for number, name in enumerate(wanted):
            for how in (*DAMAGES, *MORE_DAMAGES):
                for outcome in whole.look(name, how, whole.reads):
                    every.append(outcome)
                    log.write(json.dumps(asdict(outcome)) + "\n")
            sys.stderr.write(f"{number + 1}/{len(wanted)} {name} {time.monotonic() - began:.0f} s\n")
    sys.stdout.write(f"{len(wanted)} files, {verdicts(every)}\n")
