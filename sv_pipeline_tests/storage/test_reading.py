"""Boxes that are read into NumPy's memory hold what TensorStore reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.storage.precomputed import create_volume, open_volume
from sv_pipeline.storage.reading import read_box


@pytest.mark.parametrize("box", [((3, 5, 7), (70, 33, 40)), ((3, 5, 7), (4, 6, 8)), ((60, 6, 8), (70, 33, 9))])
def test_a_box_is_read_as_tensorstore_reads_it(
    tmp_path: Path, box: tuple[tuple[int, int, int], tuple[int, int, int]]
) -> None:
    """A volume with an offset, in boxes that cross storage chunks, in Fortran order."""
    start, stop = box
    create_volume(
        tmp_path, resolution=(8.0, 8.0, 40.0), voxel_offset=(3, 5, 7), size=(67, 28, 33), chunk_size=(16, 16, 16)
    )
    labels = np.random.default_rng(0).integers(0, 1 << 60, (67, 28, 33), np.uint64)
    volume = open_volume(tmp_path, writable=True)
    volume.write(labels).result()
    part = volume[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    found = read_box(part)
    assert found.flags.f_contiguous
    assert found.dtype == np.uint64
    assert np.array_equal(found, part.read(order="F").result())
