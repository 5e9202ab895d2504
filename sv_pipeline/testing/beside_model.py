"""Compares a world with the reference model: checks after an edit, after a refusal, and after each step."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sv_pipeline.edits import CommittedEdit, EditRefused, Reason
from sv_pipeline.graph.queries import leaves, roots
from sv_pipeline.testing.invariants import edges_of, locks_and_scopes
from sv_pipeline.testing.models import Done, Pair, VoxelModel, canonical, pair, touching
from sv_pipeline.testing.tables import Backend, but_operations
from sv_pipeline.testing.worlds import Labels, World

__all__ = ["BesideModel", "Voxel", "as_pairs", "links_of"]

Voxel = list[int]
"""Index of a voxel in the arrays of a world."""
Edit = Callable[[], CommittedEdit]


class BesideModel(RuleBasedStateMachine):
    """A copy of a world, its model, and the invariants that are checked after each step."""

    world: World
    """The world that is copied; it must never have been edited."""
    backend: Backend

    def __init__(self) -> None:
        super().__init__()
        self.open = ExitStack()
        self.copy = self.open.enter_context(self.world.copied(self.backend))
        voxels = self.copy.voxels()
        self.model = VoxelModel.of(voxels, self.copy.objects(voxels))
        self.generation = self.copy.generation
        self.storage = np.asarray(self.copy.graph.fork.base_info().volume.scales[0].chunk_size)
        self.targets: dict[int, tuple[Done, bool]] = {}
        """For each operation, its merge or split, and whether the operation has put that in force."""
        self.moments: list[tuple[int, Labels, npt.NDArray[np.int64]]] = []
        """Logical time, voxels and objects after each edit."""
        self.rows = self.copy.rows()

    def active_edges(self) -> set[Pair]:
        """Return the atomic edges that are active in the graph."""
        return {ends for ends, edge in edges_of(self.copy.graph).items() if edge.active}

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def try_it(self, edit: Edit, allowed: Collection[Reason]) -> CommittedEdit | None:
        """Make an edit; return None if it was refused for an allowed reason, after checking that nothing changed."""
        try:
            return edit()
        except EditRefused as error:
            refusal = error
        assert refusal.reason in allowed, refusal
        event(f"refused: {refusal.reason}")
        self.nothing_changed()
        return None

    def refused(self, edit: Edit, reasons: Collection[Reason]) -> None:
        """Assert that an edit is refused for one of these reasons, and changes nothing."""
        assert self.try_it(edit, reasons) is None, f"should be refused: {reasons}"

    def nothing_changed(self) -> None:
        """Assert that rows and voxels are the same as before the edit, except for the operation log."""
        rows = self.copy.rows()
        assert but_operations(rows) == but_operations(self.rows)
        assert self.copy.generation == self.generation
        self.rows = rows

    def settle(self, edit: CommittedEdit, voxels: Labels, objects: npt.NDArray[np.int64]) -> None:
        """Update the model after an edit, and check what the edit has written."""
        changed = voxels != self.model.voxels
        self.model.voxels, self.model.objects = voxels, objects
        self.generation += 1 if len(edit.supervoxels) else 0
        self.moments.append((edit.logical_time, voxels, canonical(objects)))
        assert changed.any() == bool(len(edit.supervoxels))
        graph = self.copy.graph
        record = graph.fork.record(edit.operation_id)
        written = np.zeros_like(changed)
        for box in () if record is None else record.boxes:
            at = box.shifted(-self.copy.offset).slices
            assert changed[at].any(), "a storage chunk was written in which nothing changed"
            assert all(n <= size for n, size in zip(box.shape, self.storage.tolist(), strict=True))
            written[at] = True
        assert not (changed & ~written).any()
        if len(edit.supervoxels):
            assert touching(voxels) <= set(edges_of(self.copy.graph)), "what touches has an edge"
        event(f"{edit.kind}{' of supervoxels' if len(edit.supervoxels) else ''}")
        self.rows = self.copy.rows()

    def follow_split(
        self, edit: CommittedEdit, cut: int, sources: list[Voxel], sinks: list[Voxel], *, partial: bool
    ) -> None:
        """Update the model after a split: only the object ``cut`` may change, into parts that separate the sides."""
        voxels = self.copy.voxels()
        self.model.check_voxels(voxels, edit, {cut})
        objects = self.copy.objects(voxels)
        _, numbers = np.unique(objects, return_inverse=True)
        parts = numbers.reshape(objects.shape) + (1 if (voxels > 0).all() else 0)
        self.model.check_split(parts, cut)
        assert set(np.unique(objects[self.model.objects == cut]).tolist()) == set(edit.roots.tolist())
        sides = [set(parts[tuple(np.transpose(points))].tolist()) for points in (sources, sinks)]
        assert bool(sides[0] & sides[1]) is edit.still_one_object
        assert partial or not edit.still_one_object
        event("parted" if not edit.still_one_object else "still one object, as is allowed")
        self.settle(edit, voxels, parts)

    # -- what always holds --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.moments)
    @rule(data=st.data())
    def look_back(self, data: st.DataObject) -> None:
        """Check that the leaves of the objects at an earlier moment are the ids that the fork shows at that moment."""
        time, voxels, objects = self.moments[data.draw(st.integers(0, len(self.moments) - 1), "moment")]
        pinned = self.copy.voxels_at(time)
        assert np.array_equal(pinned, voxels)
        assert np.array_equal(canonical(self.copy.objects(pinned, time)), objects)
        ids = np.unique(pinned[pinned > 0])
        found = leaves(self.copy.graph, np.unique(roots(self.copy.graph, ids, at=time)))
        assert np.array_equal(np.sort(found.values), ids)

    @invariant()
    def all_is_sound(self) -> None:
        """Check that every check of ``verify`` passes."""
        self.copy.verify()

    @invariant()
    def segmentation_and_objects_are_those_of_the_model(self) -> None:
        """Check that each voxel has the supervoxel of the model, and shares its object with the same voxels."""
        voxels = self.copy.voxels()
        assert np.array_equal(voxels, self.model.voxels)
        assert np.array_equal(canonical(self.copy.objects(voxels)), canonical(self.model.objects))

    @invariant()
    def every_edit_of_voxels_is_one_generation(self) -> None:
        """Check that each edit of voxels is one commit of the fork, and that other edits make none."""
        assert self.copy.generation == self.generation

    @invariant()
    def nothing_is_locked(self) -> None:
        """Check that no lock and no reservation is left."""
        assert not locks_and_scopes(self.rows)

    def teardown(self) -> None:
        """Remove the copy."""
        self.open.close()


def as_pairs(edges: npt.NDArray[np.uint64]) -> set[Pair]:
    """Return edges, shape (n, 2), as a set of pairs."""
    return {pair(a, b) for a, b in edges.tolist()}


def links_of(edit: CommittedEdit) -> list[Pair]:
    """Return pairs (old, new) of the supervoxels that an edit has replaced."""
    return [(old, new) for old, new in edit.supervoxels.tolist()]
