"""What a database refers to, and so what may not be deleted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.config import PopulateMethod
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.context import reset_context
from sv_pipeline.storage.generations import current_version
from sv_pipeline.storage.reachable import reachable
from sv_pipeline_tests.segmentation.fork.test_fork import paint
from sv_pipeline_tests.segmentation.volumes import assert_base_holds, make_watershed


@pytest.mark.parametrize("method", [PopulateMethod.PARTS, PopulateMethod.DIRECT, PopulateMethod.REFERENCE])
def test_all_that_is_unreachable_can_go_and_all_that_is_reachable_must_stay(
    tmp_path: Path, method: PopulateMethod
) -> None:
    watershed = make_watershed(
        str(tmp_path),
        populate_method=method,
        max_inline_value_bytes=0,
        max_decoded_node_bytes=4096,
        version_tree_arity_log2=1,
    )
    plan = watershed.populate()
    folder = ocdbt.base_folder(watershed.url)
    (tmp_path / "ocdbt/base/d/orphan").write_bytes(b"of a killed writer")
    live = reachable(ocdbt.OcdbtStore(Base(watershed.url).info().spec()).base)
    files = {key for key in kv.list_keys(folder) if "d/" in key}
    assert live.files < files
    kv.delete_keys(folder, files - live.files)
    reset_context()  # or the test would read what this process remembers
    assert_base_holds(watershed, plan)
    victim = sorted(extent.file for extent in live.values)[0]
    kv.delete_key(folder, victim)
    reset_context()
    with pytest.raises((AssertionError, ValueError)):
        assert_base_holds(watershed, plan)


def test_every_generation_of_a_fork_is_readable_from_what_all_versions_refer_to(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path), version_tree_arity_log2=1)
    watershed.populate()
    Fork(watershed.url, "g").create()
    first = current_version(Fork(watershed.url, "g").store().base).generation
    for n in range(9):
        paint(watershed.url, "g", 70 + n)
    base = Fork(watershed.url, "g").store().base
    everything, latest = reachable(base, all_versions=True), reachable(base)
    assert latest.files < everything.files
    assert latest.n_bytes < everything.n_bytes
    own = set(kv.list_keys(ocdbt.fork_folder(watershed.url, "g"), "g_d/"))
    assert own
    assert own <= everything.files
    for n in range(9):
        pinned = Fork(watershed.url, "g").open(version=first + 1 + n)
        assert pinned[10, 0, 5].read().result() == np.uint64(70 + n)
