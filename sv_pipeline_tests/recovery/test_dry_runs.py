"""What only reports changes nothing: no row, not even of our own bookkeeping, and no file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from sv_pipeline.cli.main import cli
from sv_pipeline.recovery import all_unfinished
from sv_pipeline.storage.file_guard import local_path
from sv_pipeline.testing.tables import EVERYTHING
from sv_pipeline_tests.recovery.conftest import Theatre

KILLED = -9


def state(play: Theatre, home: Path) -> tuple[dict[bytes, Any], dict[str, str]]:
    """All rows, and the content of all files but those of the table."""
    folder = local_path(play.scene.world.dataset.watershed_url)
    assert folder is not None
    files = [path for place in (home, folder) for path in place.rglob("*") if path.is_file()]
    content = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if "tables" not in p.parts}
    return dict(play.scene.table.scan([EVERYTHING])), content


def test_a_dry_run_changes_nothing_at_all(theatre: Callable[..., Theatre], tmp_path: Path) -> None:
    home = tmp_path / "home"
    play = theatre("sqlite", home)
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    elsewhere = play.request("elsewhere")
    code, said = play.said(**{**elsewhere, "do": "their edit", "edit": elsewhere["do"]}, theirs={"die": "rows:0.5"})
    assert code == KILLED, said
    before, changed, said_by = state(play, home), [], {}
    ours, theirs = (one.operation_id for one in all_unfinished(play.scene.graph, note=False))
    points = [f"--{side}={','.join(map(str, elsewhere[side][0]))}" for side in ("source", "sink")]
    commands = {
        "recover all": ["stuck", "recover", "stage", "--all", "--dry-run", "--min-age", "0s"],
        "recover ours": ["stuck", "recover", "stage", str(ours), "--dry-run"],
        "recover theirs": ["stuck", "recover", "stage", str(theirs), "--dry-run"],
        "show": ["stuck", "show", "stage", str(theirs)],
        "abandon": ["stuck", "abandon", "stage", str(ours), "--reason", "none", "--dry-run"],
        "mend": ["mend", "stage"],
        "reconcile": ["reconcile", "stage"],
        "retire": ["retire", "stage"],
        "garbage": ["garbage", "stage"],
        "rollback": ["rollback", "stage", "--user", "stage", "--since", "2000-01-01"],
        "preview": ["preview", "stage", *points],
    }
    for name, words in commands.items():
        result = CliRunner().invoke(cli, ["--home", str(home), *words])
        said_by[name] = result.output + str(result.exception or "")
        if state(play, home) != before:
            changed.append(name)
            before = state(play, home)
    assert not changed, said_by
    for operation in (ours, theirs):
        assert f"{operation}" in said_by["recover all"]
        assert f"{operation}" in said_by["retire"], "it refuses because of both"
    assert "nothing can be removed now" not in said_by["garbage"], "their operation is examined, although not noted"
