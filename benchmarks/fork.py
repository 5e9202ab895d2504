"""The time that a fork takes, for a small and for a large base, side by side.

``python benchmarks/fork.py [--size 640] [--repeat 30]``: bases of about 10 MB and of 1 GB and more of voxels.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from volumes import grid_of, make_source

from sv_pipeline.config import OcdbtConfig, PopulateMethod
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.populate import finish_populate, populate_plan
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.testing.populating import populate_missing


def base_of(folder: Path, size: int, method: PopulateMethod) -> str:
    info = make_source(folder, (size, size, size), 3)
    config = OcdbtConfig(populate_layer=3, populate_method=method)
    grid = grid_of(info, (128, 128, 128))
    Base(folder).create(config, grid)
    plan = populate_plan(Base(folder), grid, config)
    populate_missing(plan)
    finish_populate(plan)
    stored = sum(path.stat().st_size for path in (folder / "ocdbt/base").rglob("*") if path.is_file())
    return f"{size}^3, {size**3 * 8 / 1e6:.0f} MB of voxels, {stored / 1e6:.0f} MB stored"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--repeat", type=int, default=30)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="fork-"))
    try:
        folders = {scratch / "small": 108, scratch / "large": options.size}
        for folder, size in folders.items():
            print(f"{folder.name}: {base_of(folder, size, PopulateMethod.DIRECT)}")
        times: dict[Path, list[float]] = {folder: [] for folder in folders}
        for number in range(options.repeat):
            for folder in folders:
                started = time.perf_counter()
                Fork(folder, f"graph{number}").create()
                times[folder].append(time.perf_counter() - started)
        medians = [statistics.median(values) for values in times.values()]
        for folder, median in zip(folders, medians, strict=True):
            print(f"fork of {folder.name}: median {1000 * median:.2f} ms of {options.repeat}")
        print(f"large / small: {medians[1] / medians[0]:.2f}")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
