"""Numbers agree with their nouns."""

from __future__ import annotations

import ast
import re

from sv_pipeline.wording import counted
from sv_pipeline_tests.test_house import SOURCES, tree_of

EITHER_WAY = re.compile(r"[a-z]\(s\)(?! ?URL)")


def test_numbers_agree_with_their_nouns() -> None:
    assert counted(1, "edit") == "1 edit"
    assert counted(0, "edit") == "0 edits"
    assert counted(12_000, "batch", "batches") == "12,000 batches"


def test_no_message_leaves_the_number_of_a_noun_open() -> None:
    """``edit(s)``; URLs that may be http or https are meant so."""
    found = [
        f"{path.name}: {node.value[:60]}"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and EITHER_WAY.search(node.value)
    ]
    assert not found
