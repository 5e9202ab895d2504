"""The planning model of the largest public dataset, and the measurement of the figures that it rests on.

    python benchmarks/scale.py model                                prints the model, and draws docs/images/planning.png
    python benchmarks/scale.py model --measure 64 --tiles 1 1 2     measures its figures

``--measure`` ingests tiles of a real volume with chunks of this size, in one process, and prints for each stage the
processor time that it took beside what `ingest.default_costs` predict for its chunks, voxels and supervoxels.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sv_pipeline.config import DatasetConfig, parse_config
from sv_pipeline.ingest import planning, progress, run, stages
from sv_pipeline.ingest.default_costs import DEFAULT_COSTS
from sv_pipeline.ingest.forecast import Forecast, default_content, forecast
from sv_pipeline.ingest.prices import bigtable_nodes, costs_of
from sv_pipeline.memory import memory_budget
from sv_pipeline.progress import Progress
from sv_pipeline.storage.precomputed import plan_volume
from sv_pipeline.storage.volume_info import info_json

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared/data/fib_250.npz"
PICTURE = ROOT / "docs/images/planning.png"

SIZE, CHUNK, SUPERVOXELS = (192_424, 131_051, 13_008), (256, 256, 512), 112e9
WORKERS = (10, 30, 100, 200, 500, 1000, 3000)
PRICES = {
    "worker-hour": 0.05,
    "bigtable-node-hour": 0.65,
    "table-gb-month": 0.17,
    "storage-gb-month": 0.02,
    "write-operations": 0.05,
}
"""Prices in US dollars, of the order of those that large providers list; replace them by those of your contract."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--measure", type=int, metavar="CHUNK", help="measure the figures with chunks of CHUNK^3 voxels"
    )
    parser.add_argument("--tiles", type=int, nargs=3, default=(1, 1, 2), help="tiles of the real volume per axis")
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, tuple(options.tiles))
        return
    rows = [model(workers, limited=limited) for limited in (True, False) for workers in WORKERS]
    for row in rows:
        say(row)
    draw()


# -- the model --------------------------------------------------------------------------------------------------------


def largest(folder: Path) -> DatasetConfig:
    """Return the configuration of the dataset, of which there is only the info file."""
    info = plan_volume(resolution=(8, 8, 40), voxel_offset=(0, 0, 0), size=SIZE, chunk_size=(128, 128, 64))
    (folder / "info").write_text(json.dumps(info_json(info)))
    return parse_config(
        {
            "graph_id": "largest",
            "data_source": {"WATERSHED": str(folder)},
            "graph_config": {"CHUNK_SIZE": list(CHUNK)},
            "backend_client": {"TYPE": "bigtable", "CONFIG": {"PROJECT": "p", "INSTANCE": "i"}},
        }
    )


def predicted(workers: int, *, limited: bool = True) -> Forecast:
    """Forecast its ingest; without the limit of batches per layer, each chunk is a batch."""
    with tempfile.TemporaryDirectory() as folder:
        config = largest(Path(folder))
        found = planning.plan_ingest(config, folder, workers=workers, supervoxels=SUPERVOXELS)
    if limited:
        return found
    free = tuple(replace(work, batches=work.chunks) for work in found.workload.stages)
    workload = replace(found.workload, stages=free)
    content = default_content(workload, supervoxels=SUPERVOXELS)
    return forecast("largest", workload, content, workers=workers, worker_memory=memory_budget())


def model(workers: int, *, limited: bool) -> dict[str, Any]:
    """Return one row of the model."""
    found = predicted(workers, limited=limited)
    costs = {line.price: round(line.amount.value) for line in costs_of(found, PRICES)}
    return {
        "workers": workers,
        "batches per layer": "at most 200" if limited else "one per chunk",
        "days": [round(v / 86400, 2) for v in (found.wall.value, found.wall.low, found.wall.high)],
        "worker days": round(found.work.value / 86400, 1),
        "Bigtable nodes": bigtable_nodes(found).value,
        "GB of a worker": round(found.worker_memory.value / 1e9, 2),
        "table TB": round(found.quantity("table bytes").value / 1e12, 1),
        "base TB": round(found.quantity("base bytes").value / 1e12, 1),
        "dollars": costs,
    }


def draw() -> None:
    """Draw the days by the number of workers, and the work by stage."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    counts = np.unique(np.geomspace(5, 5000, 25).astype(int))
    for limited, color, name in (
        (True, "tab:blue", "at most 200 batches a layer"),
        (False, "tab:orange", "one batch a chunk"),
    ):
        days = np.array([[v / 86400 for v in (w.low, w.value, w.high)] for w in walls(counts, limited=limited)])
        left.plot(counts, days[:, 1], color=color, label=name)
        left.fill_between(counts, days[:, 0], days[:, 2], color=color, alpha=0.15)
    left.set(
        xscale="log", yscale="log", xlabel="worker processes", ylabel="days", title="time until everything is built"
    )
    left.grid(visible=True, which="both", alpha=0.3)
    left.legend(frameon=False)
    found = predicted(200)
    names = [stage.name for stage in found.stages]
    work = np.array([[v / 86400 for v in (s.work.low, s.work.value, s.work.high)] for s in found.stages])
    right.barh(names, work[:, 1], xerr=[work[:, 1] - work[:, 0], work[:, 2] - work[:, 1]], color="tab:blue", capsize=2)
    right.set(xscale="log", xlabel="days of one worker", title="work by stage")
    right.invert_yaxis()
    figure.suptitle(
        f"{' x '.join(f'{n:,}' for n in SIZE)} voxels, {SUPERVOXELS:.3g} supervoxels; ranges: default figures"
    )
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    say({"picture": str(PICTURE.relative_to(ROOT))})


def walls(counts: Any, *, limited: bool) -> list[Any]:
    """Return the time until everything is built for several numbers of workers."""
    once = predicted(1, limited=limited)
    content = default_content(once.workload, supervoxels=SUPERVOXELS)
    budget = memory_budget()
    return [forecast("largest", once.workload, content, workers=int(n), worker_memory=budget).wall for n in counts]


# -- the figures ------------------------------------------------------------------------------------------------------


class ProcessorTime(Progress):
    """Sums up the processor time of this process, by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def begin(self, name: str, _total: int, _done: int = 0) -> None:
        self._name, self._started = name.removeprefix("watershed: "), time.process_time()

    def end(self) -> None:
        self.seconds[self._name] = time.process_time() - self._started


def tiled(array: Any, tiles: tuple[int, ...]) -> Any:
    """Repeat an array along each axis, every other tile mirrored, so that objects go on across the seams."""
    for axis, count in enumerate(tiles):
        array = np.concatenate([np.flip(array, axis) if i % 2 else array for i in range(count)], axis=axis)
    return np.ascontiguousarray(array)


def measure(chunk: int, tiles: tuple[int, ...]) -> None:
    """Ingest tiles of the real volume, and print measured and predicted figures side by side."""
    data = np.load(DATA)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key in ("supervoxels", "groundtruth"):
            labels = tiled(data[key].astype(np.uint32), tiles)
            np.savez(folder / f"{key}.npz", segmentation=labels, resolution=data["resolution"])
        raw = {
            "graph_id": "tiles",
            "data_source": {"WATERSHED": str(folder / "watershed")},
            "source": {key: f"{folder / file}.npz#segmentation" for key, file in SOURCES.items()},
            "graph_config": {"CHUNK_SIZE": [chunk] * 3},
            "ocdbt_config": {"populate_method": "parts"},
        }
        dataset = stages.register(parse_config(raw), str(folder / "home"))
        clock = ProcessorTime()
        run.ingest(dataset, workers=1, progress=clock)
        layers = progress.layer_status(dataset.graph)
        workload = planning.workload_of_config(dataset.config)
        content = default_content(workload, supervoxels=layers[2].supervoxels)
        expected = forecast("tiles", workload, content, workers=1, worker_memory=memory_budget())
        work = {stage.name: stage.work for stage in expected.stages}
        # The populate runs in the step of its layer.
        populated = next(w.layer for w in workload.stages if w.name == "voxels")
        work[f"layer {populated}"] = work[f"layer {populated}"] + work.pop("voxels")
        for name_, seconds in clock.seconds.items():
            inside = work[name_].covers(seconds)
            say({"step": name_, "cpu s": round(seconds, 3), "predicted": rounded(work[name_]), "inside": inside})
        nodes = [status.nodes for status in layers.values()]
        file = dataset.table.file
        table = 0 if file is None else sum(p.stat().st_size for p in file.parent.glob(file.name + "*"))
        base = sum(
            p.stat().st_size for p in Path(dataset.base.folder.removeprefix("file://")).rglob("*") if p.is_file()
        )
        say({"voxels": math.prod(workload.size), "chunks": workload.chunks, "supervoxels": layers[2].supervoxels})
        say({"edges a supervoxel": ratio(layers[2].edges, layers[2].supervoxels)})
        say({"nodes by layer": nodes, "ratios": [ratio(b, a) for a, b in pairwise(nodes)]})
        say({"table bytes": table, "predicted": rounded(expected.quantity("table bytes"))})
        say(
            {
                "base bytes a voxel": ratio(base, workload.voxels),
                "figure": rounded(DEFAULT_COSTS.volume_bytes_per_voxel),
            }
        )


SOURCES = {"segmentation": "supervoxels", "agglomeration": "groundtruth"}


def ratio(a: float, b: float) -> float:
    """Return a / b, rounded."""
    return round(a / max(b, 1e-12), 3)


def rounded(estimate: Any) -> list[float]:
    """Return value, low and high of an estimate, rounded."""
    return [float(f"{v:.3g}") for v in (estimate.value, estimate.low, estimate.high)]


def say(row: dict[str, Any]) -> None:
    """Print one line of JSON."""
    print(json.dumps(row))


if __name__ == "__main__":
    main()
