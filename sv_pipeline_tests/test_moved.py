"""Former names of modules."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from sv_pipeline.moved import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_former_name_is_the_same_module(old: str) -> None:
    with (
        pytest.warns(DeprecationWarning, match="has moved to")
        if old not in sys.modules
        else pytest.MonkeyPatch.context()
    ):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    assert module.__name__ == MOVED[old]
    assert module.__spec__ is not None
    assert module.__spec__.name == MOVED[old]


@pytest.mark.parametrize("package", ["segmentation.base", "segmentation.fork", "table.sqlite", "algorithms.multicut"])
def test_a_package_of_a_former_name_offers_its_contents_and_no_more(package: str) -> None:
    module = importlib.import_module(f"sv_pipeline.{package}")
    # A submodule is found as such, whatever the contents of the former module import.
    names = [path.stem for path in Path(module.__path__[0]).glob("[a-z]*.py")]
    found = [f"from sv_pipeline.{package} import {n} as found; assert found.__name__.endswith('.{n}')" for n in names]
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning", "-c", "\n".join(found)], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'Path'"):
        _ = module.Path


def test_former_imports_work_in_a_script() -> None:
    code = """
from sv_pipeline.segmentation.pending import lag_of
from sv_pipeline.segmentation.fork import Fork
from sv_pipeline.segmentation.base import BaseInfo
from sv_pipeline.segmentation import kv, specs, fork
from sv_pipeline.table.sqlite import SqliteTable
from sv_pipeline.table.bigtable import BigtableTable
from sv_pipeline.algorithms.multicut import preview
from sv_pipeline.edits.recovery import recover
from sv_pipeline.edits.recovery.heal import recover
from sv_pipeline.edits import recovery
from sv_pipeline.engine import stages
from sv_pipeline.engine.run import ingest
import sv_pipeline.engine.pool
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
