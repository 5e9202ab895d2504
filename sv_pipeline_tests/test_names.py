"""Names in texts: every module, definition or file that a page or a docstring names is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from sv_pipeline.config import DatasetConfig
from sv_pipeline_tests.test_house import PACKAGE, ROOT, SOURCES, tracked_files, tree_of

WRITTEN_BY_THE_PROGRAM = {"demo/pictures/"}
ROOTS = (ROOT, PACKAGE, ROOT / "sv_pipeline_tests")
TOP = {path.stem for path in PACKAGE.iterdir()} | {"sv_pipeline", "sv_pipeline_tests", "benchmarks", "docs", ".ci"}
"""First parts of names that this repository has to know."""


def test_what_texts_name_is_there() -> None:
    missing = {f"{place}: {name}" for place, text in texts() for name in named_in(text) if not is_there(name)}
    assert not missing


def test_a_name_that_is_not_there_is_found() -> None:
    said = "see `edits.write.commits`, `graph/no.py`, ``table.locks.lock_alll``, `no_such.md` and :func:`ids.IdLayout`"
    wrong = [name for name in named_in(said) if not is_there(name)]
    assert wrong == ["edits.write.commits", "graph/no.py", "table.locks.lock_alll", "no_such.md"]


def texts() -> Iterator[tuple[str, str]]:
    """Pages, and docstrings of the product; the log of changes may name what was there once."""
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        if path.name != "CHANGELOG.md":
            yield str(path.relative_to(ROOT)), path.read_text()
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield str(path.relative_to(ROOT)), text


def named_in(text: str) -> list[str]:
    """Paths and dotted names between backticks that begin as something of this repository does."""
    quoted = re.findall(r"`~?([A-Za-z_.][\w./-]*)`", text)
    files = [name for name in quoted if name.endswith((".py", ".md"))]
    return [
        name
        for name in dict.fromkeys(quoted)
        if name in files
        or (name.endswith("/") and name.split("/")[0] in TOP)
        or ("." in name and "/" not in name and name.split(".")[0] in TOP)
    ]


def is_there(name: str) -> bool:
    if name in WRITTEN_BY_THE_PROGRAM:
        return True
    if "/" in name:
        return any((root / name).exists() for root in ROOTS)
    if name.endswith((".py", ".md")):
        return any(path.name == name for path in tracked_files())
    return any(leads_somewhere(root, name.split(".")) for root in ROOTS) or is_setting(name)


def leads_somewhere(place: Path, parts: list[str]) -> bool:
    """Whether a dotted name leads to a package, a module, or a definition in one."""
    if not parts:
        return True
    first, rest = parts[0], parts[1:]
    if (place / first).is_dir():
        return leads_somewhere(place / first, rest)
    if (place / f"{first}.py").is_file():
        return not rest or rest[0] in definitions_of(place / f"{first}.py")
    return (place / "__init__.py").is_file() and first in definitions_of(place / "__init__.py")


@cache
def definitions_of(path: Path) -> set[str]:
    """Names that a module defines or imports at its top."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def is_setting(name: str) -> bool:
    """Whether a dotted name is a field of the configuration, such as ``ingest.workers``."""
    section, _, field = name.partition(".")
    model = DatasetConfig.model_fields.get(section)
    return model is not None and field in getattr(model.annotation, "model_fields", {})
