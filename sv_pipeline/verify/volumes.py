"""Opens the voxels of a graph: its fork, or else the base, or else the watershed itself. Compares nothing."""

from __future__ import annotations

from dataclasses import dataclass

import tensorstore as ts

from sv_pipeline.errors import NotFoundError
from sv_pipeline.segmentation.base.base import Base, BaseInfo
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import ocdbt, precomputed
from sv_pipeline.storage.precomputed import VolumeInfo
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.verify.blocks import readable

__all__ = ["StoredVolume", "base_volume", "fork_volume", "graph_volume", "watershed_volume"]


@dataclass(frozen=True)
class StoredVolume:
    """A volume with its mips."""

    name: str
    """``fork``, ``base`` or ``watershed``."""
    watershed_url: str
    info: VolumeInfo
    source_mips: int
    """Number of mips that were copied from the watershed; the coarser ones were computed."""
    store: ocdbt.OcdbtStore | None
    """The OCDBT store; None for the watershed itself."""
    made_elsewhere: bool = False
    """Whether other software made the base, so that it has no done-markers of ours."""
    edited_in_place: bool = False
    """Whether other software edits the base in place, so that it need not be equal to the watershed."""

    def open(self, mip: int) -> ts.TensorStore:
        """Open one mip: axes (x, y, z), absolute coordinates in voxels of that mip."""
        store = self.store
        with readable(f"mip {mip} of the {self.name} cannot be opened"):
            if store is None:
                return precomputed.open_volume(self.watershed_url, mip)
            return retry_transport(lambda: store.array(mip), what=f"opening mip {mip} of the {self.name}")


def watershed_volume(watershed_url: str) -> StoredVolume:
    """The watershed volume that the base is copied from."""
    info = precomputed.read_info(watershed_url)
    return StoredVolume("watershed", watershed_url, info, len(info.scales), None)


def base_volume(base: Base) -> StoredVolume | None:
    """The base; None if there is none."""
    try:
        found = base.info()
    except NotFoundError:
        return None
    return _stored("base", found, ocdbt.OcdbtStore(found.spec()))


def fork_volume(fork: Fork) -> StoredVolume | None:
    """The graph's fork; None if there is none."""
    if not fork.exists():
        return None
    return _stored("fork", fork.base.info(), fork.store())


def _stored(name: str, base: BaseInfo, store: ocdbt.OcdbtStore) -> StoredVolume:
    return StoredVolume(
        name,
        base.watershed_url,
        base.volume,
        base.source_mips,
        store,
        made_elsewhere=base.made_elsewhere,
        edited_in_place=base.edited_in_place,
    )


def graph_volume(fork: Fork) -> StoredVolume:
    """The voxels that readers of the graph see."""
    if found := fork_volume(fork):
        return found
    if fork.base.is_complete() and (found := base_volume(fork.base)):
        return found
    return watershed_volume(fork.watershed_url)
