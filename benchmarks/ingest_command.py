"""What ``sv-pipeline ingest`` takes for a small volume, as a whole process, beside another version of the project.

    python benchmarks/ingest_command.py VOLUME.npz [--runs 5] [--beside FOLDER] [--sqlite] [--chunk 64]

The watershed, its edges and components are made once; each run ingests a copy of them, with voxels, under a new graph
id. ``--beside`` names the folder of another version of the project, whose runs alternate with ours. Tables are in the
Bigtable emulator, which must be installed, or in SQLite. Prints the medians of wall time and processor time (with all
worker processes), and the largest memory of a process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from sv_pipeline.testing.servers.bigtable import find_emulator, running_emulator

OURS = Path(__file__).resolve().parents[1]


def main() -> None:
    """Make the watershed, run the command in turn, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", type=Path)
    parser.add_argument("--array", default="supervoxels")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--beside", type=Path, help="folder of another version of the project")
    parser.add_argument("--sqlite", action="store_true")
    parser.add_argument("--chunk", type=int, default=64)
    options = parser.parse_args()
    trees = {"this tree": OURS} | ({"the other tree": options.beside.resolve()} if options.beside else {})
    with tempfile.TemporaryDirectory() as name, server(sqlite=options.sqlite):
        made = Path(name) / "made"
        source = {"segmentation": f"{options.volume.resolve()}#{options.array}"}
        run(OURS, made, options, source=source)
        shutil.rmtree(made / "watershed" / "ocdbt")
        found: dict[str, list[tuple[float, float, float]]] = {tree: [] for tree in trees}
        for number in range(options.runs + 1):
            for tree, place in trees.items():
                folder = Path(name) / "run"
                shutil.copytree(made / "watershed", folder / "watershed")
                took = run(place, folder, options)
                shutil.rmtree(folder)
                if number:  # the first run of each fills caches
                    found[tree].append(took)
    for tree, rows in found.items():
        wall, processor, peak = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{tree:<15} wall {wall:.2f} s, processor {processor:.2f} s, peak {peak:.0f} MiB ({len(rows)} runs)")
    if options.beside:
        for what, column in (("wall", 0), ("processor", 1)):
            ratios = [a[column] / b[column] for a, b in zip(*found.values(), strict=True)]
            print(f"this / other, {what}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


@contextmanager
def server(*, sqlite: bool) -> Iterator[None]:
    """Run the emulator, if it is needed."""
    if sqlite:
        yield
        return
    if (binary := find_emulator()) is None:
        sys.exit("the Bigtable emulator is not installed; use --sqlite")
    with running_emulator(binary):
        yield


def run(tree: Path, folder: Path, options: argparse.Namespace, **more: object) -> tuple[float, float, float]:
    """Ingest into a folder; return seconds, processor seconds, and the peak of a process in MiB."""
    bigtable = {"TYPE": "bigtable", "CONFIG": {"PROJECT": "project", "INSTANCE": "instance"}}
    content = {
        "graph_id": f"g{uuid.uuid4().hex[:8]}",
        "data_source": {"WATERSHED": str(folder / "watershed")},
        "graph_config": {"CHUNK_SIZE": [options.chunk] * 3},
        "backend_client": {"TYPE": "sqlite"} if options.sqlite else bigtable,
        **more,
    }
    folder.mkdir(exist_ok=True)
    (folder / "graph.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "sv_pipeline.cli.main", "--home", str(folder / "home"), "ingest"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, str(folder / "graph.yaml")],
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        sys.exit(said.decode())
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
