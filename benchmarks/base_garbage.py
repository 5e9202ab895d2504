"""How much of what a populated base stores is in use: 4 workers at once, through each method.

``python benchmarks/base_garbage.py [--size 512] [--workers 4]``. Reachable bytes of the latest generation over bytes
stored. The run with 64^3-voxel tasks shows contention; a real base has far larger ones.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from volumes import grid_of, make_source

from sv_pipeline.config import OcdbtConfig, PopulateMethod
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.populate import finish_populate, populate_plan
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.generations import current_version
from sv_pipeline.storage.precomputed import read_info
from sv_pipeline.storage.reachable import reachable
from sv_pipeline.testing.populating import populate_missing


def measure(folder: Path, config: OcdbtConfig, chunk: int, workers: int) -> str:
    Base(folder).wipe()
    grid = grid_of(read_info(folder), (chunk, chunk, chunk))
    Base(folder).create(config, grid)
    plan = populate_plan(Base(folder), grid, config)
    started = time.perf_counter()
    populate_missing(plan, workers=workers)
    finish_populate(plan)
    seconds = time.perf_counter() - started
    files = [path for path in (folder / "ocdbt/base").rglob("*") if path.is_file()]
    stored = sum(path.stat().st_size for path in files)
    manifest = (folder / "ocdbt/base/manifest.ocdbt").stat().st_size
    used = reachable(ocdbt.OcdbtStore(Base(folder).info().spec()).base).n_bytes + manifest
    generation = current_version(ocdbt.base_folder(folder)).generation
    return (
        f"{used / stored:6.3f} in use of {stored / 1e6:7.1f} MB in {len(files):5} files, "
        f"{generation:4} generations, {plan.n_tasks:4} tasks, {seconds:5.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="garbage-"))
    try:
        make_source(scratch, (options.size, options.size, options.size), 3)
        for chunk, inline in ((128, 4096), (64, 4096), (64, 100), (64, 65536)):
            print(f"tasks of {2 * chunk}^3, max_inline_value_bytes {inline}, {options.workers} workers")
            for method in (one for one in PopulateMethod if not one.refers):
                config = OcdbtConfig(populate_layer=3, populate_method=method, max_inline_value_bytes=inline)
                print(f"  {method.value:11} {measure(scratch, config, chunk, options.workers)}", flush=True)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
