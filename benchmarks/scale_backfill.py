"""How long a backfill of a whole graph takes in Dagster, beside the same ingest in a terminal.

    python -m benchmarks.scale_backfill [--volume PATH.npz#array]

Starts ``dg dev`` as ``make ui`` does. The daemon looks for backfills every 30 seconds, which is fixed in Dagster. The
table therefore shows two times: from the request to the end of the last run, and from the creation of the first run to
the end of the last run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sv_pipeline.config import parse_config
from sv_pipeline.ingest import stages
from sv_pipeline_tests.defs.dev_server import DevServer, dev_server, wait_for

ASSETS = ["watershed", "base_ocdbt", "chunked_graph", "fork", "reader_contract"]
RUNS = (
    "query($t:[ExecutionTag!]){runsOrError(filter:{tags:$t}){... on Runs{results{runId status creationTime startTime "
    "endTime stepStats{stepKey startTime endTime}}}}}"
)


@dataclass(frozen=True)
class Timing:
    """Seconds of a backfill."""

    runs: int
    steps: int
    requested_to_end: float
    """From the request to the end of the last run."""
    running: float
    """From the creation of the first run to the end of the last run."""


def config_of(folder: Path, graph_id: str, volume: str) -> dict[str, Any]:
    """Return a configuration for a graph of ``volume`` with chunks of 64 voxels and its own watershed."""
    return {
        "graph_id": graph_id,
        "data_source": {"WATERSHED": str(folder / graph_id)},
        "source": {"segmentation": volume, "resolution": [8, 8, 8]},
        "graph_config": {"CHUNK_SIZE": [64, 64, 64]},
    }


def in_terminal(folder: Path, home: Path, volume: str) -> float:
    """Ingest a graph with the command line, in a process of its own; return the seconds."""
    path = folder / "terminal.yaml"
    path.write_text(yaml.safe_dump(config_of(folder, "terminal", volume)))
    started = time.monotonic()
    command = [sys.executable, "-m", "sv_pipeline.cli.main", "--home", str(home), "ingest", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


def in_dagster(server: DevServer, graph_ids: list[str]) -> tuple[Timing, list[dict[str, Any]]]:
    """Launch a backfill of everything, wait for its end; return its times and its runs."""
    asked = time.time()
    backfill = server.backfill(dict.fromkeys(ASSETS, graph_ids))
    final = {"COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED", "COMPLETED"}
    status = wait_for(lambda: (s := server.backfill_status(backfill)) in final and s, "backfill", 900)
    if status != "COMPLETED_SUCCESS":
        raise RuntimeError(f"the backfill ended with {status}")
    runs = server.query(RUNS, t=[{"key": "dagster/backfill", "value": backfill}])["runsOrError"]["results"]
    first, last = min(run["creationTime"] for run in runs), max(run["endTime"] for run in runs)
    steps = sum(len(run["stepStats"]) for run in runs)
    return Timing(len(runs), steps, last - asked, last - first), runs


def measure(volume: str) -> dict[str, Any]:
    """Return seconds by name: the terminal, and the backfill of a new graph, of a complete one, and of three."""
    with tempfile.TemporaryDirectory(prefix="backfill") as name:
        folder, home = Path(name), Path(name) / "home"
        os.environ["SV_PIPELINE_HOME"] = str(home)
        results: dict[str, Any] = {"terminal": in_terminal(folder, home, volume)}
        print(f"terminal: {results['terminal']:.1f} s", flush=True)
        with dev_server(str(home), folder / "dagster_home") as server:
            for graph_id in ("one", "two", "three"):
                stages.register(parse_config(config_of(folder, graph_id, volume)), str(home))
            wait_for(lambda: {"one", "two", "three"} <= set(server.partitions("watershed")), "partitions")
            results["new graph"], runs = in_dagster(server, ["one"])
            show(runs)
            results["complete graph"], runs = in_dagster(server, ["one"])
            show(runs)
            results["three graphs, one complete"], runs = in_dagster(server, ["one", "two", "three"])
        return results


def show(runs: list[dict[str, Any]]) -> None:
    """Print where the time of each run went, step by step."""
    for run in runs:
        began = run["startTime"]
        print(f"  queued {began - run['creationTime']:.1f} s, ran {run['endTime'] - began:.1f} s", flush=True)
        for step in sorted((s for s in run["stepStats"] if s["startTime"]), key=lambda s: s["startTime"]):
            seconds = step["endTime"] - step["startTime"]
            print(f"    {step['startTime'] - began:6.1f} s: {step['stepKey']}, {seconds:.1f} s", flush=True)


def main() -> None:
    """Print the table."""
    data = Path(__file__).parents[2] / "shared" / "data" / "fib_250.npz"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volume", default=str(data), help="segmentation, as in the source of a configuration")
    results = measure(parser.parse_args().volume)
    terminal = results.pop("terminal")
    for name, timing in results.items():
        print(
            f"{name}: {timing.runs} runs, {timing.steps} steps; {timing.running:.1f} s running "
            f"({timing.running / terminal:.2f} x terminal), {timing.requested_to_end:.1f} s from the request"
        )


if __name__ == "__main__":
    main()
