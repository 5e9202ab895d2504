"""Owns `PinnedVolume`: the voxels of a fork at the generation that was the latest when it was opened."""

from __future__ import annotations

from dataclasses import dataclass

import tensorstore as ts

from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.generations import current_version
from sv_pipeline.storage.retry import retry_transport

__all__ = ["PinnedVolume"]


@dataclass(frozen=True, eq=False)
class PinnedVolume:
    """The voxels of the base mip at one generation; commits that are made later do not change them."""

    generation: int
    voxels: ts.TensorStore
    """Axes (x, y, z), in absolute coordinates; read-only."""
    _store: ocdbt.OcdbtStore

    @classmethod
    def open(cls, fork: Fork, context: ts.Context | None = None) -> PinnedVolume:
        """Open the latest generation.

        Parameters
        ----------
        context
            TensorStore context for the voxels instead of that of this process.

        Raises
        ------
        NotFoundError
            If there is no such fork.
        """
        store = fork.store()
        generation = current_version(store.base).generation
        spec = ocdbt.array_spec({**store.spec, "version": generation}, 0)

        def open_it() -> ts.TensorStore:
            return ts.open(spec, context=context or store.context, open=True).result()

        what = f"opening generation {generation} of graph {fork.graph_id}"
        return cls(generation, retry_transport(open_it, what=what)[..., 0], store)

    def is_latest(self) -> bool:
        """Return whether nothing was committed since; one small read."""
        return current_version(self._store.base).generation == self.generation
