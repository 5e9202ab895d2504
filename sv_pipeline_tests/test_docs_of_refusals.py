"""The page on editing explains every reason that an edit can be refused for, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from sv_pipeline.algorithms.multicut.cut import Refusal
from sv_pipeline.edits import Reason

PAGE = Path(__file__).parents[1] / "docs" / "editing.md"


def test_every_reason_is_in_the_table() -> None:
    table = PAGE.read_text().split("## Refusals")[1]
    explained = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert len(explained) == len(set(explained))
    assert set(explained) == {*map(str, Reason), *map(str, Refusal)}
