"""Owns the encoding of voxels as the bytes of storage chunks, without storing them. Knows no fork and no ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.grid import Box
from sv_pipeline.storage.ocdbt import array_spec

__all__ = ["ChunkEncoder"]

MEMORY = {"driver": "memory"}


class ChunkEncoder:
    """Encodes storage chunks of a volume as TensorStore does when it writes them, in TensorStore's threads.

    A transaction that is given voxels holds them decoded until it is committed, and encodes them only then. One that is
    given encoded chunks holds a few per cent of that, and the chunks are encoded while others are computed.

    Parameters
    ----------
    info
        Content of the volume's ``info`` file.
    """

    def __init__(self, info: bytes) -> None:
        # Without a cache, nothing stays in memory but what `take` has not taken yet.
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
        self._kv: ts.KvStore = ts.KvStore.open(MEMORY, context=self._context).result()
        self._kv.write("info", info).result()
        self._arrays: dict[int, ts.TensorStore] = {}

    def begin(self, mip: int, box: Box, labels: npt.NDArray[Any]) -> ts.WriteFutures:
        """Begin to encode the voxels of whole storage chunks, in absolute coordinates of a mip; they must not change.

        Chunks at the end of the volume end with it.
        """
        if mip not in self._arrays:
            spec = array_spec(MEMORY, mip)
            self._arrays[mip] = ts.open(spec, context=self._context, open=True).result()[..., 0]
        writes = self._arrays[mip][box.slices].write(labels, can_reference_source_data_indefinitely=True)
        writes.commit.force()
        return writes

    def take(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the bytes of chunks whose encoding is complete, by key, and forget them.

        None stands for a chunk of nothing but background, which is not stored.
        """
        reads = [self._kv.read(key) for key in keys]
        found = [read.result() for read in reads]
        for removed in [self._kv.write(key, None) for key in keys]:
            removed.result()
        return [bytes(each.value) if each.state == "value" else None for each in found]
