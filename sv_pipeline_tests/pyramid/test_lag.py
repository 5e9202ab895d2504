"""The lag of all graphs: one that hangs or is damaged does not hide the others; and when it is too much."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sv_pipeline.ingest.run import ingest
from sv_pipeline.pyramid.lag import GraphLag, lag_verdict, lags
from sv_pipeline.registry import Dataset, Registry
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.pending import Lag
from sv_pipeline_tests.defs.edited import edit
from sv_pipeline_tests.ingest.builds import raw_config, register


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = register(raw_config(tmp_path / "data"), tmp_path / "home")
    ingest(dataset, workers=1)
    return dataset


def test_the_fingerprint_changes_with_what_is_listed(dataset: Dataset) -> None:
    registry, seen = Registry(dataset.home), []
    for operation_id in (1, 2, 3):
        edit(dataset, operation_id, at=(operation_id, 0, 0))
        (found,) = lags(registry)
        assert found.operations == tuple(range(1, operation_id + 1))
        seen.append(found.fingerprint)
    assert len(set(seen)) == 3
    assert lags(registry)[0].fingerprint == seen[-1]


def test_a_graph_that_hangs_counts_as_unknown_and_does_not_hold_up_the_others(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(raw_config(tmp_path / "data", "hangs"), tmp_path / "home")
    real = Fork.exists

    def slow(fork: Fork) -> bool:
        if fork.graph_id == "hangs":
            time.sleep(3)
        return real(fork)

    monkeypatch.setattr(Fork, "exists", slow)
    started = time.monotonic()
    hanging, fine = lags(Registry(dataset.home), patience=0.8)
    assert time.monotonic() - started < 2
    assert "did not answer within" in (hanging.error or "")
    assert fine.graph_id == "tissue"
    assert fine.lag == Lag(0, 0, 0, None)


def graph(seconds: float | None, error: str | None = None) -> GraphLag:
    return GraphLag("g", None if error else Lag(1, 2, 3, seconds), (1,), "x", error)


def test_the_verdict_is_that_of_the_oldest_edit_of_all_graphs() -> None:
    verdict = lag_verdict([graph(10.0), graph(99.0), graph(None)], 99.0)
    assert verdict.passed
    assert (verdict.worst_seconds, verdict.operations, verdict.boxes) == (99.0, 3, 6)
    late = lag_verdict([graph(10.0), graph(100.0)], 99.0)
    assert not late.passed
    assert "100 s old" in (late.explanation or "")
    unknown = lag_verdict([graph(None, "cannot be read")], 99.0)
    assert not unknown.passed
    assert unknown.explanation == "g: cannot be read"
