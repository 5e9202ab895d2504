"""Processor time of each part of a rebuild, for all of the first coarser mip, in memory and in one run.

``benchmarks/pyramid.py`` calls this. The parts do not add up to a rebuild, which also reads, compares and commits.
"""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable
from typing import Any

import google_crc32c
import numpy as np

from sv_pipeline.algorithms.encoded_labels import downsample_encoded
from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline.grid import Box
from sv_pipeline.pyramid.mip_maker import ForkPyramid, boxes_within
from sv_pipeline.segmentation.fork.digests import digest_of
from sv_pipeline.storage.ocdbt import OcdbtStore

ROUNDS = 5


def print_parts(pyramid: ForkPyramid) -> None:
    """Print a table. Every part is done for one piece after the other; the parts take turns."""
    geometry = pyramid.geometry
    base, first = geometry.levels[:2]
    pieces = boxes_within(Box.of((0, 0, 0), first.size), first.chunk_size, int(np.prod(first.chunk_size)))
    below = [geometry.footprint(1, piece) for piece in pieces]
    store = OcdbtStore(pyramid.store.spec, context=pyramid.store.context)
    encoded = [[bytes(store.kv.read(key).result().value) for key in pyramid.chunk_keys(0, box)] for box in below]
    grids = [tuple(np.floor_divide(box.shape, base.chunk_size).tolist()) for box in below]
    fine: list[Any] = [None] * len(pieces)
    coarse = [
        downsample_encoded(chunks, grid, base.chunk_size, first.step)  # type: ignore[arg-type]
        for chunks, grid in zip(encoded, grids, strict=True)
    ]

    def decode(n: int) -> None:
        fine[n] = store.array(0)[pyramid.absolute(0, below[n]).slices].read(order="F").result()

    def encode(n: int) -> None:
        pyramid.encoder.begin(1, pyramid.absolute(1, pieces[n]), coarse[n]).result()  # type: ignore[arg-type]
        pyramid.encoder.take(pyramid.chunk_keys(1, pieces[n]))

    def crc32c(n: int) -> None:
        google_crc32c.value(coarse[n].T.tobytes())  # type: ignore[union-attr]

    def of(step: tuple[int, int, int]) -> Callable[[int], object]:
        return lambda n: downsample_encoded(encoded[n], grids[n], base.chunk_size, step)  # type: ignore[arg-type]

    parts: dict[str, Callable[[int], object]] = {
        "decoding mip 0": decode,
        f"tinybrain on its voxels, {first.step}": lambda n: downsample(fine[n], first.step),
        "`downsample_encoded`, (2, 2, 1)": of((2, 2, 1)),
        "`downsample_encoded`, (2, 2, 2)": of((2, 2, 2)),
        "encoding mip 1": encode,
        "digests of mip 1 (SHA-256)": lambda n: digest_of(coarse[n]),  # type: ignore[arg-type]
        "CRC-32 of the same": lambda n: zlib.crc32(coarse[n].T.data),  # type: ignore[union-attr]
        "CRC-32C of the same, with a copy": crc32c,
    }
    seconds: dict[str, list[float]] = {name: [0.0] * ROUNDS for name in parts}
    for round_ in range(ROUNDS):
        for n in range(len(pieces)):
            for name, part in parts.items():
                started = time.process_time()
                part(n)
                seconds[name][round_] += time.process_time() - started
            fine[n] = None
    print(f"processor time of parts of a rebuild, medians of {ROUNDS} rounds:\n| | seconds |\n| --- | --- |")
    for name, each in seconds.items():
        print(f"| {name} | {statistics.median(each):.3f} |")
