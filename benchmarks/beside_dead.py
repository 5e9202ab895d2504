"""What other software leaves or writes differently, before and after: each kind made, found, and healed or mended.

python -m benchmarks.beside_dead [sqlite|bigtable] ...

Prints the table of docs/beside_pychunkedgraph.md. Workers of PyChunkedGraph are processes that write as it does, and
are killed with SIGKILL; their rows are on a small graph of six layers.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from sv_pipeline.operations import other_software
from sv_pipeline.recovery import all_unfinished, claiming, foreign, mend, recover
from sv_pipeline.testing.harness.forkserver import running_fork_server
from sv_pipeline.testing.servers.bigtable import find_emulator, running_emulator
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.stage import build_stage
from sv_pipeline_tests.recovery.test_mend import raise_partners
from sv_pipeline_tests.recovery.test_their_dead import find_plain_split

LEFT: list[tuple[str, str, dict[str, Any]]] = [
    ("killed while planning", "merge", {"die": "created"}),
    ("killed between two locks", "merge", {"die": "half locked"}),
    ("killed with locks, before a row", "plain split", {"die": "locked"}),
    ("killed at half the rows of a merge", "merge", {"die": "rows:0.5"}),
    ("killed at half the rows of a split", "plain split", {"die": "rows:0.5", "seed": 3}),
    ("killed at half the rows of an undo", "undo of a merge", {"die": "rows:0.5", "seed": 4}),
    ("killed after all rows", "merge", {"die": "rows:1.0"}),
    ("killed after SUCCESS, with locks", "merge", {"die": "succeeded"}),
    ("a write failed; locks given back, half the rows", "merge", {"fail": "rows:0.5"}),
    ("the same, and EXCEPTION in the log", "plain split", {"fail": "rows:0.5", "says": True, "seed": 3}),
    ("supervoxel split: killed after the voxels", "supervoxel split", {"die": "voxels"}),
    ("supervoxel split: half the rows of supervoxels", "supervoxel split", {"die": "supervoxels:0.5"}),
    ("supervoxel split: half of all other rows", "supervoxel split", {"die": "rows:0.5"}),
]


def is_sound(play: Theatre) -> str:
    report = verify(play.scene.graph.table, play.scene.graph.fork)
    kinds = sum(finding.count for result in report.results for finding in result.foreign)
    return "NOT sound" if not report.ok else f"sound, {kinds} foreign" if kinds else "sound"


def leftover(play: Theatre, name: str, kind: str, how: dict[str, Any]) -> list[str]:
    """One row of the table: what a worker left, how it is listed, and what recovery made of it."""
    request = play.request(kind)
    play.do(**{**request, "do": "their edit", "edit": request["do"]}, theirs=how)
    before = is_sound(play)
    began = time.monotonic()
    found = [one for one in all_unfinished(play.scene.graph) if one.foreign]
    look = time.monotonic() - began
    outcome, listed, seconds = "nothing to do", "not listed", 0.0
    if found:
        (one,), listed, began = found, found[0].outlook, time.monotonic()
        outcome = recover(play.scene.graph, one.operation_id).replay.outcome
        seconds = time.monotonic() - began
    return [name, before, f"`{listed}`", outcome, is_sound(play), f"{look:.2f}", f"{seconds:.2f}"]


def raised(play: Theatre) -> list[str]:
    """Cross edges that lead to an ancestor of the partner."""
    raise_partners(play)
    before, began = is_sound(play), time.monotonic()
    report = mend(play.scene.graph, apply=True)
    seconds = time.monotonic() - began
    mended = f"{report.cross_edges} mended"
    return ["cross edges to an ancestor", before, "", mended, is_sound(play), "", f"{seconds:.2f}"]


def main(backends: list[str]) -> None:
    """Print the table."""
    claiming.observation_seconds = lambda: 0.01
    claiming.quiet_seconds = foreign.quiet_seconds = other_software.quiet_seconds = lambda _graph: 0.0
    print("| backend | left or written | verify before | listed as | outcome | verify after | list, s | recover, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with ExitStack() as living:
        folder = Path(living.enter_context(tempfile.TemporaryDirectory()))
        if "bigtable" in backends:
            living.enter_context(running_emulator(find_emulator()))
        stage = build_stage(folder)
        stage.requests["plain split"] = find_plain_split(stage)
        server = living.enter_context(running_fork_server("sv_pipeline_tests.recovery.their_worker"))
        for backend in backends:
            here = replace(stage, backend=backend, twins={})

            def on_a_copy(act: Callable[[Theatre], list[str]], here: Any = here) -> list[str]:
                scene = here.copy()
                try:
                    return act(Theatre(here, scene, server, folder))
                finally:
                    scene.remove()

            for name, kind, how in LEFT:
                row = on_a_copy(lambda play, name=name, kind=kind, how=how: leftover(play, name, kind, how))
                print("| " + " | ".join([backend, *row]) + " |", flush=True)
            print("| " + " | ".join([backend, *on_a_copy(raised)]) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["sqlite", "bigtable"])
