"""A doubtful cut: everything that previews or makes it says so, in the same words."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from sv_pipeline.algorithms.voxel_cut.doubt import Doubt, DoubtKind
from sv_pipeline.definitions import defs
from sv_pipeline.reports.cut_scenes import scene_of_preview
from sv_pipeline.viewer.window import ViewerWindow
from sv_pipeline_tests.algorithms.test_voxel_cut import ball, tube
from sv_pipeline_tests.editable import ingested
from sv_pipeline_tests.ingest.builds import CommandLine
from sv_pipeline_tests.viewer.test_window import act, text_of, wait_for

pytestmark = pytest.mark.xdist_group("viewer")

BALL = ball((90, 120, 34), (16, 16, 17), 14)
"""Two points in this body leave a film."""
ARMS = [tube(BALL.shape, [(50, 72, 17), end], 6) for end in [(50, 112, 17), (16, 52, 17), (84, 52, 17)]]
"""Points in the second and third arm leave a doubt about the first."""
POINTS = {DoubtKind.FILM: ((16, 16, 17), (16, 16, 4)), DoubtKind.PART: ((22, 56, 17), (78, 56, 17))}


def expect_in_window(window: ViewerWindow, one: tuple[int, ...], other: tuple[int, ...], doubt: Doubt) -> None:
    """The viewer says the doubt, and marks its place until the preview is gone."""

    def layers() -> dict[str, Any]:
        return {layer["name"]: layer for layer in window.viewer.shared_state.raw_state["layers"]}

    for action, voxel in (("source-point", one), ("sink-point", other), ("preview-split", None)):
        act(window, action, voxel)
    wait_for(lambda: f"Warning: {doubt}" in text_of(window))
    marked = [note["point"] for note in layers()["doubtful place"]["annotations"]]
    assert marked == [[axis + 0.5 for axis in doubt.place or ()]]
    act(window, "clear-points")
    wait_for(lambda: "doubtful place" not in layers())


def test_every_preview_warns_of_doubt(
    home: str,
    tmp_path: Path,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two bodies, which chunk faces divide into pieces."""
    bodies = BALL + 2 * np.logical_or.reduce(ARMS).astype(np.uint32)
    graph = ingested(tmp_path, Path(home), "small", bodies, bodies, (10.0, 10.0, 10.0))
    for kind, (one, other) in POINTS.items():
        preview = graph.preview_split([one], [other])
        doubt, numbers = preview.doubt, preview.numbers
        assert preview.legal
        assert doubt is not None
        assert doubt.kind is kind
        assert numbers["doubt_kind"] == str(kind)
        assert numbers["doubt"] == str(doubt)
        whole = numbers[f"cut_voxels_{doubt.name}"]
        assert (doubt.voxels == whole) if kind is DoubtKind.FILM else (doubt.voxels < whole)
        assert numbers["deciding_voxel"] == list(doubt.place or ())
        assert graph.segmentation[tuple(numbers["deciding_voxel"])].read().result() != 0
        scene = scene_of_preview(graph.dataset, preview, np.array([one]), np.array([other]))
        assert doubt.summary in scene.subtitle
        assert scene.deciding.tolist() == [numbers["deciding_voxel"]]

        window = ViewerWindow(graph, edit=True)
        try:
            expect_in_window(window, one, other, doubt)
        finally:
            window.close()

        sides = ["--source", ",".join(map(str, one)), "--sink", ",".join(map(str, other))]
        shell = CommandLine(Path(home), monkeypatch, capsys)
        said = shell("preview", "small", *sides)
        assert said.code == 0
        assert f"warning: {doubt}" in said.out
        assert json.loads(shell("preview", "small", *sides, "--json").out) == json.loads(json.dumps(numbers))

        run = (
            defs()
            .resolve_job_def("split_job")
            .execute_in_process(
                run_config={"graph_id": "small", "source": [list(one)], "sink": [list(other)]}, instance=instance
            )
        )
        outputs = [e for e in run.all_node_events if e.is_successful_output and e.step_key == "preview"]
        metadata = outputs[0].step_output_data.metadata
        assert metadata["doubt"].value == str(doubt)
        assert metadata["sure"].value == numbers["sure"]
        place = ",".join(map(str, doubt.place or ()))
        assert str(metadata["view the doubtful place"].value).endswith(f"view small --position {place}")
        logged = [r for r in instance.all_logs(run.run_id) if r.level == logging.WARNING and r.step_key == "preview"]
        assert [r.user_message for r in logged] == [str(doubt)]
        # The split itself says it, too: it may come without a preview.
        assert str(doubt) in [r.getMessage() for r in caplog.records if r.name == "sv_pipeline.edits.splitting"]
