"""A cut that leaves only a film: everything that previews or makes it says so, in the same words."""

from __future__ import annotations

import logging
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from sv_pipeline.definitions import defs
from sv_pipeline.reports.cut_scenes import scene_of_preview
from sv_pipeline.viewer.session import EditSession
from sv_pipeline_tests.editable import ingested
from sv_pipeline_tests.ingest.builds import CommandLine


def test_every_preview_warns_of_a_film(
    home: str,
    tmp_path: Path,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Both points are in one thick body, which chunk faces divide into pieces."""
    away = np.stack(np.indices((40, 34, 34))) - np.array([20, 17, 17])[:, None, None, None]
    ball = ((away**2).sum(axis=0) <= 14**2).astype(np.uint32)
    graph = ingested(tmp_path, Path(home), "small", ball, ball, (10.0, 10.0, 10.0))
    middle, shallow = (20, 17, 17), (20, 17, 4)
    preview = graph.preview_split([middle], [shallow])
    doubt, numbers = preview.doubt, preview.numbers
    assert preview.legal
    assert doubt is not None
    assert (doubt.name, doubt.voxels) == ("sink", numbers["cut_voxels_sink"])
    assert numbers["doubt"] == str(doubt)
    assert numbers["deciding_voxel"] == list(doubt.place or ())
    assert graph.segmentation[tuple(numbers["deciding_voxel"])].read().result() != 0
    scene = scene_of_preview(graph.dataset, preview, np.array([middle]), np.array([shallow]))
    assert "the sink side is a film" in scene.subtitle
    assert scene.deciding.tolist() == [numbers["deciding_voxel"]]

    session = EditSession(graph, sources=[middle], sinks=[shallow])
    assert f"Warning: {doubt}" in session.preview_split()

    sides = ["--source", "20,17,17", "--sink", "20,17,4"]
    said = CommandLine(Path(home), monkeypatch, capsys)("preview", "small", *sides)
    assert said.code == 0
    assert f"warning: {doubt}" in said.out

    run = (
        defs()
        .resolve_job_def("split_job")
        .execute_in_process(
            run_config={"graph_id": "small", "source": [list(middle)], "sink": [list(shallow)]}, instance=instance
        )
    )
    outputs = [e for e in run.all_node_events if e.is_successful_output and e.step_key == "preview"]
    metadata = outputs[0].step_output_data.metadata
    assert metadata["doubt"].value == str(doubt)
    assert metadata["sure"].value == numbers["sure"]
    logged = [r for r in instance.all_logs(run.run_id) if r.level == logging.WARNING and r.step_key == "preview"]
    assert [r.user_message for r in logged] == [str(doubt)]
    # The split itself says it, too: it may come without a preview.
    assert str(doubt) in [r.getMessage() for r in caplog.records if r.name == "sv_pipeline.edits.splitting"]
