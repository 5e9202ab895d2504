"""What a shell offers when the user presses TAB, in a real bash."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.testing.fixtures import need
from sv_pipeline_tests.editable import editable_graph, neighbours_of_two_objects
from sv_pipeline_tests.ingest.builds import CommandLine

SCRIPT = """
PATH={bin}:$PATH
eval "$(_SV_PIPELINE_COMPLETE=bash_source sv-pipeline)"
complete -p sv-pipeline >&2
tab() {{
  COMP_WORDS=("$@" ""); COMP_CWORD=$#; COMPREPLY=()
  _sv_pipeline_completion sv-pipeline 2>/dev/null
  echo "${{COMPREPLY[*]}}"
}}
{lines}
"""


def offered(folder: Path, *commands: str) -> list[list[str]]:
    """Return what bash offers for the next word of each command line."""
    bash = shutil.which("bash")
    need(bash, "bash")
    command = folder / "sv-pipeline"
    command.write_text(f"#!{sys.executable}\nfrom sv_pipeline.cli.main import main\nmain()\n")  # as pip installs it
    command.chmod(0o755)
    script = SCRIPT.format(bin=folder, lines="\n".join(f"tab {line}" for line in commands))
    ended = subprocess.run([str(bash), "-c", script], capture_output=True, text=True, check=True)
    assert "Traceback" not in ended.stderr
    assert "_sv_pipeline_completion" in ended.stderr, "bash did not accept the function"
    return [line.split() for line in ended.stdout.splitlines()]


@pytest.fixture
def graph(cli: CommandLine, tmp_path: Path) -> OpenGraph:
    return editable_graph(tmp_path / "graph", cli.home)


@pytest.fixture
def graph_with_edits(graph: OpenGraph) -> OpenGraph:
    """Operation 1 is made, 2 undoes it, and 3 is refused."""
    one, other = neighbours_of_two_objects(graph)
    graph.undo(graph.merge([one], [other]).id)
    with pytest.raises(Exception, match="both on supervoxel"):
        graph.merge([one], [one])
    return graph


def test_bash_offers_graphs_operations_and_checks(
    cli: CommandLine, graph_with_edits: OpenGraph, tmp_path: Path
) -> None:
    graph_id = graph_with_edits.graph.graph_id
    commands, graphs, undo, since, stuck, elsewhere = offered(
        tmp_path,
        "sv-pipeline",
        f"sv-pipeline --home {cli.home} status",
        f"sv-pipeline undo {graph_id}",
        f"sv-pipeline change-log {graph_id} --since",
        f"sv-pipeline stuck recover {graph_id}",
        "sv-pipeline --home /nonexistent status",
    )
    assert {"ingest", "status", "undo"} <= set(commands)
    assert graphs == [graph_id]
    assert undo == ["2", "1"], "operations that were made, newest first"
    assert since == ["3", "2", "1"]
    assert stuck == elsewhere == []
