"""A plain model of edits of voxels: arrays of supervoxels and objects, and what each operation has changed.

It does not know how an object is cut; it knows what may change then, and what must come back when it is undone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import networkx
import numpy as np
import numpy.typing as npt

from sv_pipeline.edits import CommittedEdit

Labels = npt.NDArray[np.uint64]
Pair = tuple[int, int]


def pair(a: int, b: int) -> Pair:
    return (int(min(a, b)), int(max(a, b)))


def canonical(objects: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """A partition of voxels, independent of what its parts are called."""
    _, first, index = np.unique(objects.ravel(), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[index].reshape(objects.shape)


@dataclass
class Done:
    """A merge or a split, whatever operations have made, undone and made it again."""

    kind: str
    edges: set[Pair]
    """What a merge has activated, what a split has removed."""
    links: list[Pair]
    """(old, new) of the supervoxels that it replaced the last time."""
    sources: list[list[int]] = field(default_factory=list)
    sinks: list[list[int]] = field(default_factory=list)
    in_force: bool = True
    parted_nothing: bool = False
    """Whether a split has left one object, which was allowed."""

    @property
    def fragments(self) -> set[int]:
        return {new for _, new in self.links}


@dataclass
class VoxelModel:
    """What the segmentation and its objects must be."""

    voxels: Labels
    objects: npt.NDArray[np.int64]
    """A number for the object of each voxel; 0 = background."""
    seen: set[int] = field(default_factory=set)
    """Every supervoxel that there ever was."""
    renamed: dict[int, int] = field(default_factory=dict)
    """What has come back under another id."""

    @classmethod
    def of(cls, voxels: Labels, objects: Labels) -> VoxelModel:
        model = cls(voxels, np.unique(objects, return_inverse=True)[1].reshape(objects.shape))
        if (voxels > 0).all():
            model.objects += 1
        model.seen = model.alive
        return model

    @property
    def alive(self) -> set[int]:
        return set(np.unique(self.voxels[self.voxels > 0]).tolist())

    @property
    def object_of(self) -> dict[int, int]:
        """Object of each supervoxel."""
        ids, first = np.unique(self.voxels, return_index=True)
        return dict(zip(ids.tolist(), self.objects.ravel()[first].tolist(), strict=True))

    def now(self, supervoxel: int) -> int:
        """What a supervoxel is called now; it may be gone all the same."""
        while supervoxel in self.renamed:
            supervoxel = self.renamed[supervoxel]
        return supervoxel

    def living(self, edges: Iterable[Pair]) -> set[Pair]:
        """Edges, under their names of today, between what is there."""
        alive = self.alive
        named = {pair(self.now(a), self.now(b)) for a, b in edges}
        return {edge for edge in named if alive.issuperset(edge) and edge[0] != edge[1]}

    # -- what becomes of objects ----------------------------------------------------------------------------------

    def united(self, pairs: Iterable[Pair]) -> npt.NDArray[np.int64]:
        """Objects, once those of some pairs of supervoxels are one."""
        graph, object_of = networkx.Graph(), self.object_of
        graph.add_edges_from((object_of[a], object_of[b]) for a, b in pairs)
        names = np.arange(self.objects.max() + 1)
        for component in networkx.connected_components(graph):
            names[list(component)] = min(component)
        return names[self.objects]

    def parted(self, active: Iterable[Pair], without: set[Pair]) -> npt.NDArray[np.int64]:
        """Objects, once some of the active edges are not active any more."""
        graph = networkx.Graph()
        graph.add_nodes_from(self.alive)
        graph.add_edges_from(set(active) - without)
        names = {sv: n for n, part in enumerate(networkx.connected_components(graph), 1) for sv in part}
        ids, index = np.unique(self.voxels, return_inverse=True)
        return np.array([names.get(i, 0) for i in ids.tolist()])[index].reshape(self.voxels.shape)

    # -- what may become of voxels --------------------------------------------------------------------------------

    def check_voxels(self, after: Labels, edit: CommittedEdit, edited: set[int]) -> None:
        """No voxel is lost, and none changes but those of the supervoxels that were replaced."""
        changed = after != self.voxels
        found = np.unique(np.stack([self.voxels[changed], after[changed]], axis=-1), axis=0)
        links = {(old, new) for old, new in edit.supervoxels.tolist()}
        assert {(old, new) for old, new in found.tolist()} == links
        assert (self.voxels[changed] > 0).all()
        assert (after[changed] > 0).all()
        assert set(self.objects[changed].tolist()) <= edited
        olds, news = {old for old, _ in links}, {new for _, new in links}
        assert not olds & set(np.unique(after).tolist()), "what was replaced has voxels"
        assert not news & self.seen, "an id is used again"
        self.seen |= news

    def check_split(self, objects: npt.NDArray[np.int64], cut: int) -> None:
        """Only one object has changed, into parts of its own."""
        outside = self.objects != cut
        assert np.array_equal(canonical(np.where(outside, self.objects, 0)), canonical(np.where(outside, objects, 0)))
        assert not set(np.unique(objects[~outside]).tolist()) & set(np.unique(objects[outside]).tolist())
