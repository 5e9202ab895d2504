"""The reference model of edits: arrays of supervoxels and objects, and the changes of each operation.

The model does not predict where an object is cut. It checks what a cut may change, and what an undo must restore.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import networkx
import numpy as np
import numpy.typing as npt

from sv_pipeline.edits import CommittedEdit

__all__ = ["Done", "Pair", "VoxelModel", "canonical", "pair", "touching"]

Labels = npt.NDArray[np.uint64]
Pair = tuple[int, int]


def pair(a: int, b: int) -> Pair:
    """Return a pair of supervoxels, the smaller id first."""
    return (int(min(a, b)), int(max(a, b)))


def canonical(objects: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Number the parts of a partition of voxels by their first voxel, so that equal partitions give equal arrays."""
    _, first, index = np.unique(objects.ravel(), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[index].reshape(objects.shape)


def touching(voxels: Labels) -> set[Pair]:
    """Return the pairs of supervoxels that share a face of a voxel."""
    pairs = []
    for axis in range(3):
        low, high = np.moveaxis(voxels, axis, 0)[:-1].ravel(), np.moveaxis(voxels, axis, 0)[1:].ravel()
        contact = (low != high) & (low != 0) & (high != 0)
        pairs.append(np.sort(np.stack([low[contact], high[contact]], axis=-1), axis=-1))
    return {pair(a, b) for a, b in np.unique(np.concatenate(pairs), axis=0).tolist()}


@dataclass
class Done:
    """A merge or split, together with its undos and redos."""

    kind: str
    edges: set[Pair]
    """Edges that a merge has activated, or that a split has removed."""
    links: list[Pair]
    """Pairs (old, new) of the supervoxels that were replaced when it was last made."""
    sources: list[list[int]] = field(default_factory=list)
    sinks: list[list[int]] = field(default_factory=list)
    in_force: bool = True
    parted_nothing: bool = False
    """Whether a split has separated nothing, which its request allowed."""

    @property
    def fragments(self) -> set[int]:
        """The supervoxels into which others were split."""
        return {new for _, new in self.links}


@dataclass
class VoxelModel:
    """The expected segmentation and its objects."""

    voxels: Labels
    """Supervoxel id of each voxel, shape (x, y, z); 0 = background."""
    objects: npt.NDArray[np.int64]
    """Number of the object of each voxel; 0 = background. The root ids do not matter, only which voxels share one."""
    seen: set[int] = field(default_factory=set)
    """All supervoxels that have ever existed, because no id may be used again."""
    renamed: dict[int, int] = field(default_factory=dict)
    """New ids of supervoxels that an undo has restored."""

    @classmethod
    def of(cls, voxels: Labels, objects: Labels) -> VoxelModel:
        """Make the model of a graph from the supervoxel and the root of each voxel."""
        model = cls(voxels, np.unique(objects, return_inverse=True)[1].reshape(objects.shape))
        if (voxels > 0).all():
            model.objects += 1
        model.seen = model.alive
        return model

    @property
    def alive(self) -> set[int]:
        """Supervoxels that have voxels now."""
        return set(np.unique(self.voxels[self.voxels > 0]).tolist())

    @property
    def object_of(self) -> dict[int, int]:
        """Object of each supervoxel that has voxels now."""
        ids, first = np.unique(self.voxels, return_index=True)
        return dict(zip(ids.tolist(), self.objects.ravel()[first].tolist(), strict=True))

    def now(self, supervoxel: int) -> int:
        """Return the present id of a supervoxel, whether or not it still has voxels."""
        while supervoxel in self.renamed:
            supervoxel = self.renamed[supervoxel]
        return supervoxel

    def living(self, edges: Iterable[Pair]) -> set[Pair]:
        """Return edges with the present ids of their ends, if both ends have voxels."""
        alive = self.alive
        named = {pair(self.now(a), self.now(b)) for a, b in edges}
        return {edge for edge in named if alive.issuperset(edge) and edge[0] != edge[1]}

    # -- objects after an edit ----------------------------------------------------------------------------------------

    def united(self, pairs: Iterable[Pair]) -> npt.NDArray[np.int64]:
        """Return the objects after the objects of each pair of supervoxels are merged."""
        graph, object_of = networkx.Graph(), self.object_of
        graph.add_edges_from((object_of[a], object_of[b]) for a, b in pairs)
        names = np.arange(self.objects.max() + 1)
        for component in networkx.connected_components(graph):
            names[list(component)] = min(component)
        return names[self.objects]

    def parted(self, active: Iterable[Pair], without: set[Pair]) -> npt.NDArray[np.int64]:
        """Return the objects after some of the active edges have become inactive."""
        graph = networkx.Graph()
        graph.add_nodes_from(self.alive)
        graph.add_edges_from(set(active) - without)
        names = {sv: n for n, part in enumerate(networkx.connected_components(graph), 1) for sv in part}
        ids, index = np.unique(self.voxels, return_inverse=True)
        return np.array([names.get(i, 0) for i in ids.tolist()])[index].reshape(self.voxels.shape)

    # -- voxels after an edit -----------------------------------------------------------------------------------------

    def check_voxels(self, after: Labels, edit: CommittedEdit, edited: set[int]) -> None:
        """Assert that no voxel is lost, and that only voxels of supervoxels that were replaced have changed.

        Parameters
        ----------
        after
            Supervoxel id of each voxel after the edit.
        edited
            Numbers of the objects that the edit may change.
        """
        changed = after != self.voxels
        found = np.unique(np.stack([self.voxels[changed], after[changed]], axis=-1), axis=0)
        links = {(old, new) for old, new in edit.supervoxels.tolist()}
        assert {(old, new) for old, new in found.tolist()} == links
        assert (self.voxels[changed] > 0).all()
        assert (after[changed] > 0).all()
        assert set(self.objects[changed].tolist()) <= edited
        olds, news = {old for old, _ in links}, {new for _, new in links}
        assert not olds & set(np.unique(after).tolist()), "a supervoxel that was replaced still has voxels"
        assert not news & self.seen, "an id of a supervoxel is used again"
        self.seen |= news

    def check_split(self, objects: npt.NDArray[np.int64], cut: int) -> None:
        """Assert that the object ``cut`` has become several objects, and that all other objects are unchanged."""
        outside = self.objects != cut
        assert np.array_equal(canonical(np.where(outside, self.objects, 0)), canonical(np.where(outside, objects, 0)))
        assert not set(np.unique(objects[~outside]).tolist()) & set(np.unique(objects[outside]).tolist())
