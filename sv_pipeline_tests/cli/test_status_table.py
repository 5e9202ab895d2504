"""The status as a table: every number that is shown is whole at any width, and messages are shown as they are."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sv_pipeline.cli.output import duration, status_table
from sv_pipeline.ingest.pace import WorkersSeen
from sv_pipeline.ingest.progress import FailureKind
from sv_pipeline.reports.status import GraphStatus, StageStatus


def shown(status: GraphStatus, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(status_table(status, console.width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def stages(chunks: int, seconds: float) -> tuple[StageStatus, ...]:
    return tuple(
        StageStatus(
            f"layer {layer}",
            chunks,
            chunks // 2,
            failed=3,
            nodes=40 * chunks,
            throughput=12_345.6,
            throughput_now=9_876.5,
            seconds_left=seconds,
            work_seconds=3 * seconds,
            wall_seconds=seconds,
        )
        for layer in range(2, 5)
    )


@given(chunks=st.sampled_from([8, 1_000, 10_010_624]), seconds=st.floats(0.001, 1e8), width=st.integers(70, 200))
def test_no_number_is_cut_off_at_any_width(chunks: int, seconds: float, width: int) -> None:
    text = shown(GraphStatus("g", stages(chunks, seconds), forked=False), width)
    assert "\u2026" not in text
    assert max(map(len, text.splitlines())) <= width
    for number in (f"{chunks:,}", f"{chunks // 2:,}", "9,876.5", duration(seconds)):
        assert text.count(f" {number} ") >= 3, number


@pytest.mark.parametrize("message", ["cannot read [/data/x]", "not possible [os_error_code='20']", "[bold]", "a[/]b"])
def test_a_message_with_brackets_is_shown_as_it_is(message: str) -> None:
    failure = FailureKind("os", 1, message, (0, 0, 0), worker="host:1", time=0)
    stage = StageStatus("layer 2", 8, 2, failed=1, error=message, failures=(failure,))
    status = GraphStatus("g", (stage,), forked=False, workers=WorkersSeen(silent=(f"{message}:1",)))
    text = " ".join(shown(status, 200).split())
    assert text.count(message) == 3
