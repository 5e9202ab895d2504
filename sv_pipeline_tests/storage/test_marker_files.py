"""Which chunks have a marker file: the same on disk and in a bucket, whatever else lies there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sv_pipeline.storage import kv, marker_files
from sv_pipeline.storage.marker_files import MarkerFiles

SHAPE = (12, 3, 4)
chunks = st.tuples(*[st.integers(0, size - 1) for size in SHAPE])
others = st.sampled_from(
    ["12_0_0.json", "0_3_0.json", "x.json", "1_2.json", "0_0_0.npz", "1_2_3_0.json", "-1_0_0.json"]
)


def written(url: str, done: set[tuple[int, ...]], strange: set[str]) -> None:
    names = {f"{x}_{y}_{z}.json" for x, y, z in done} | strange
    kv.write_many(url, {f"markers/{name}": b"{}" for name in names})


def assert_found(url: str, done: set[tuple[int, ...]], strange: set[str]) -> None:
    mask, found = MarkerFiles(f"{kv.as_url(url)}markers/", SHAPE, ".json").look()
    expected = np.zeros(SHAPE, np.bool_)
    for chunk in done:
        expected[chunk] = True
    np.testing.assert_array_equal(mask, expected.ravel())
    assert found == sorted(strange)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(done=st.sets(chunks, max_size=20), strange=st.sets(others), page=st.integers(1, 5))
def test_markers_are_found_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: set[tuple[int, ...]], strange: set[str], page: int
) -> None:
    monkeypatch.setattr(marker_files, "NAMES_AT_ONCE", page)
    kv.delete_prefix(tmp_path, "markers/")
    written(str(tmp_path), done, strange)
    (tmp_path / "markers").mkdir(exist_ok=True)
    (tmp_path / "markers" / "0_0_1.json.__lock").touch()
    assert_found(str(tmp_path), done, strange)


@pytest.mark.parametrize("many", [False, True])
def test_markers_are_found_in_every_storage(storage_url: str, monkeypatch: pytest.MonkeyPatch, *, many: bool) -> None:
    """With very many markers, the listings of several x run at once."""
    if many:
        monkeypatch.setattr(marker_files, "PAGE", 1)
    done = {(0, 0, 0), (1, 2, 3), (10, 1, 1), (11, 2, 3), (2, 0, 0)}
    assert_found(storage_url, set(), set())
    written(storage_url, done, set())
    assert_found(storage_url, done, set())
