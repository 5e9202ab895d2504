"""Done-markers that are files of one folder, one for each chunk of a grid: which chunks have one. Reads names only.

The names are read a page at a time, so that memory does not grow with their number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sv_pipeline.storage import kv
from sv_pipeline.storage.file_guard import LOCK_SUFFIX, local_path
from sv_pipeline.storage.object_listing import PAGE, REQUESTS_AT_ONCE, object_names

__all__ = ["MarkerFiles"]

NAMES_AT_ONCE = 10_000

BoolArray: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MarkerFiles:
    """The marker files ``x_y_z<suffix>`` of the chunks of a grid."""

    folder_url: str
    """URL of the folder that holds nothing else."""
    shape: tuple[int, int, int]
    """Number of chunks along x, y and z."""
    suffix: str = ""

    def look(self) -> tuple[BoolArray, list[str]]:
        """Return whether each chunk has a marker, shape (chunks,) in the order of indices, and the other names.

        In a bucket with very many markers, other names are not looked for.
        """
        done, strange = np.zeros(self.shape, np.bool_), []
        for names in self._pages():
            chunks, others = self._parse(names)
            done[tuple(chunks.T)] = True
            strange += others
        return done.ravel(), sorted(strange)

    def _parse(self, names: list[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Return the coordinates in the names of markers, shape (n, 3), and the other names."""
        stems = [name.removesuffix(self.suffix) for name in names if name.endswith(self.suffix)]
        numbers = [stem.split("_") for stem in stems]
        known = [parts for parts in numbers if len(parts) == 3 and all(part.isdecimal() for part in parts)]
        chunks = np.array(known, dtype="U19").astype(np.int64).reshape(-1, 3)
        inside: BoolArray = np.all(chunks < self.shape, axis=-1)
        if len(known) == len(names) and inside.all():
            return chunks, []
        good = {"_".join(parts) + self.suffix for parts, fits in zip(known, inside.tolist(), strict=True) if fits}
        return chunks[inside], [name for name in names if name not in good]

    def _pages(self) -> Iterator[list[str]]:
        names = self._names()
        while page := list(islice(names, NAMES_AT_ONCE)):
            yield page

    def _names(self) -> Iterator[str]:
        folder = local_path(self.folder_url)
        if folder is not None:
            yield from _file_names(os.fspath(folder))
        elif self.folder_url.startswith("gs://") and np.prod(self.shape) > PAGE * REQUESTS_AT_ONCE:
            # The names of one x are neighbours, so listings of several x overlap in time.
            yield from object_names(self.folder_url, [f"{x}_" for x in range(self.shape[0])])
        else:
            yield from kv.list_keys(self.folder_url)


def _file_names(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.endswith(LOCK_SUFFIX):
                    yield entry.name
    except FileNotFoundError:
        return
