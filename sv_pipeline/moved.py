"""Former names of modules that have moved: notebooks and scripts can still import them, with a warning.

``edits.settled`` is the one exception: the package has a function of this name, which the module would hide.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["MOVED", "contents_of_former_module", "find_moved_modules"]

_TABLE = """
    algorithms.multicut_flow algorithms.multicut.flow
    algorithms.multicut_graph algorithms.multicut.graph
    algorithms.multicut_outcomes algorithms.multicut.outcomes
    algorithms.multicut_paths algorithms.multicut.paths
    algorithms.skeletons demo.skeletons
    algorithms.synthetic demo.synthetic
    defs.backoff backoff
    edits.bridges edits.plan.bridges
    edits.commit edits.write.commit
    edits.contact_zone edits.plan.implied_edges
    edits.fates operations.successors
    edits.half_written operations.half_written
    edits.hierarchy_plan edits.plan.hierarchy
    edits.holders edits.write.lock_conflicts
    edits.incarnations operations.undo_chain
    edits.layer2 edits.plan.level2_change
    edits.locking edits.write.locking
    edits.looking_back edits.as_of
    edits.nodes edits.plan.node_cache
    edits.operation_log operations.writing
    edits.ownership operations.ownership
    edits.pair operations.pair
    edits.parting edits.plan.parting
    edits.planned_region edits.plan.planned_region
    edits.ready edits.write.ready
    edits.recovery recovery
    edits.recovery.assessment recovery.assessment
    edits.recovery.at_once recovery.at_once
    edits.recovery.claiming recovery.claiming
    edits.recovery.cleanup recovery.cleanup
    edits.recovery.dry_run recovery.dry_run
    edits.recovery.durations recovery.durations
    edits.recovery.errors operations.errors
    edits.recovery.foreign recovery.foreign
    edits.recovery.foreign_cleanup recovery.foreign_cleanup
    edits.recovery.heal recovery.run
    edits.recovery.missing_locks recovery.missing_locks
    edits.recovery.observing recovery.observing
    edits.recovery.orphans recovery.orphans
    edits.recovery.proof verify.postcheck
    edits.recovery.replay recovery.replay
    edits.recovery.report recovery.report
    edits.recovery.scan recovery.scan
    edits.recovery.unfinished operations.unfinished
    edits.refusal operations.refusal
    edits.region edits.plan.region
    edits.removal edits.plan.removal
    edits.roots edits.plan.roots
    edits.rows_of_plan edits.write.mutations
    edits.settled_table operations.settled_table
    edits.split_box edits.plan.split_box
    edits.standing operations.standing
    edits.supervoxel_change edits.plan.supervoxel_change
    edits.supervoxel_split edits.plan.supervoxel_split
    edits.supervoxel_undo edits.plan.supervoxel_undo
    edits.writing edits.write.cells
    engine ingest
    engine.attempts backoff
    engine.batches ingest.batches
    engine.beside_edits verify.beside_edits
    engine.catch_up pyramid.catch_up
    engine.downsample pyramid.downsample
    engine.every_graph registry
    engine.feedback progress
    engine.mip_rebuild pyramid.rebuild_batches
    engine.missing_chunks ingest.missing_chunks
    engine.once edits.tokens
    engine.pool ingest.pool
    engine.proof verify.dataset
    engine.registration ingest.registration
    engine.run ingest.run
    engine.stages ingest.stages
    reports.logged_edits edits.made
    reports.pyramid_lag pyramid.lag
    segmentation.checked_commit segmentation.fork.transactions
    segmentation.commit segmentation.fork.commit
    segmentation.compressed_files storage.compressed_files
    segmentation.context storage.context
    segmentation.coordinator storage.coordinator
    segmentation.coverage storage.coverage
    segmentation.damage storage.damage
    segmentation.digests segmentation.fork.digests
    segmentation.downsample pyramid.parts
    segmentation.error_dump storage.error_dump
    segmentation.file_guard storage.file_guard
    segmentation.given_mips segmentation.base.given_mips
    segmentation.history storage.generations
    segmentation.kv storage.kv
    segmentation.layout segmentation.base.layout
    segmentation.markers segmentation.base.markers
    segmentation.mip_maker pyramid.mip_maker
    segmentation.operations segmentation.fork.records
    segmentation.own_chunks segmentation.fork.own_chunks
    segmentation.parts segmentation.base.parts
    segmentation.pending segmentation.fork.former
    segmentation.populate segmentation.base.populate
    segmentation.precomputed storage.precomputed
    segmentation.private_files storage.private_files
    segmentation.reachable storage.reachable
    segmentation.fork.reader segmentation.fork.fork
    segmentation.reader segmentation.fork.fork
    segmentation.rebuild pyramid.rebuild
    segmentation.retry storage.retry
    segmentation.specs storage.ocdbt
    segmentation.stored_json storage.stored_json
    segmentation.stored_scale storage.stored_scale
    segmentation.transfer segmentation.base.transfer
    segmentation.volume_info storage.volume_info
    segmentation.wall storage.wall
    segmentation.write_probe segmentation.fork.write_probe
    table.bigtable_rows table.bigtable.rows
    table.bigtable_rpc table.bigtable.rpc
    table.block_locks pyramid.block_locks
    table.sqlite_rows table.sqlite.rows
    verify.subject verify.dataset_under_test
"""
MOVED = {f"sv_pipeline.{old}": f"sv_pipeline.{new}" for old, new in map(str.split, _TABLE.strip().splitlines())}
"""Maps the former name of each module to its new name."""


class _Alias(Loader):
    """A loader that returns the module of the new name."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} has moved to {new}.", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has replaced it by the spec of the former name


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a former name; None for all other names."""
        return ModuleSpec(name, _Alias()) if name in MOVED else None


def find_moved_modules() -> None:
    """Install the finder of moved modules.

    It is the first finder: the submodules of a package that has moved would otherwise be found in its new folder, and
    the same file would be loaded twice.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def contents_of_former_module(package: str, module: str) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a package that has the name of a former module; it offers that module's names.

    Parameters
    ----------
    package
        Full name of the package.
    module
        Name of the module in the package that now has the contents.
    """

    def offered(name: str) -> Any:
        # Python also asks for each submodule before it imports it. Those requests must not load anything.
        if not name.startswith("_") and find_spec(f"{package}.{name}") is None:
            contents = importlib.import_module(f"{package}.{module}")
            if name in contents.__all__:
                warnings.warn(f"{package}.{name} has moved to {package}.{module}.", DeprecationWarning, stacklevel=2)
                return getattr(contents, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return offered
