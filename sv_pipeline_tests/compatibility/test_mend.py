"""Supervoxels without an edge, to which the ingest of PyChunkedGraph gives no node: reported as such, and given one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from sv_pipeline_tests.compatibility.conftest import ISOLATED
from sv_pipeline_tests.compatibility.foreign import Foreign
from sv_pipeline_tests.compatibility.test_foreign_tables import CASES
from sv_pipeline_tests.compatibility.test_foreign_tables import uncut as uncut
from sv_pipeline_tests.ingest.builds import CommandLine


def test_a_supervoxel_without_an_edge_is_no_fault_and_gets_a_node(
    uncut: Foreign, cli: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "graph.yaml").write_text(yaml.safe_dump(uncut.raw))
    graph_id = uncut.raw["graph_id"]
    assert cli("attach", tmp_path / "graph.yaml").code == 0
    said = cli("ingest", tmp_path / "graph.yaml", "--mode", "voxels", "--workers", "1")
    assert said.code == 0, said.err
    said = cli("verify", graph_id)
    assert said.code == 0, said.out
    assert "can be normalised" in said.out
    found = json.loads(cli("mend", graph_id, "--json").out)
    assert found["supervoxels_without_node"] > 0
    assert not found["applied"]
    said = cli("mend", graph_id, "--apply")
    assert said.code == 0, said.err
    assert json.loads(cli("mend", graph_id, "--json").out)["supervoxels_without_node"] == 0
    said = cli("verify", graph_id)
    assert said.code == 0, said.out
    assert "can be normalised" not in said.out
    lone = ",".join(map(str, np.asarray(ISOLATED) + CASES["isotropic"].offset))
    other = ",".join(map(str, np.asarray(ISOLATED) - 4 + CASES["isotropic"].offset))
    said = cli("merge", graph_id, "--source", lone, "--sink", other)
    assert said.code == 0, said.err
    assert cli("verify", graph_id).code == 0
