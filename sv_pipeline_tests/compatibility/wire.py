"""Edge and component files taken apart by hand: protobuf's wire format and zstd frames, no code of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard

__all__ = ["ChunkFiles", "Columns", "fields", "read_chunk_files", "varint"]

KINDS = {1: "in", 2: "cross", 3: "between"}
LENGTH_DELIMITED = 2


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a byte, and where the next one begins."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each field of a message; all of ours are length delimited."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        assert key & 7 == LENGTH_DELIMITED, f"field {key >> 3} has wire type {key & 7}"
        length, at = varint(data, at)
        assert at + length <= len(data)
        yield key >> 3, data[at : at + length]
        at += length


@dataclass(frozen=True)
class Columns:
    """The edges of one kind."""

    node_ids1: npt.NDArray[np.uint64]
    node_ids2: npt.NDArray[np.uint64]
    affinities: npt.NDArray[np.float32]
    areas: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, data: bytes) -> Columns:
        parts = dict(fields(data))
        assert set(parts) <= {1, 2, 3, 4}
        types = ("<u8", "<u8", "<f4", "<u8")
        return cls(*(np.frombuffer(parts.get(n, b""), t) for n, t in enumerate(types, start=1)))

    def __len__(self) -> int:
        return len(self.node_ids1)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return list(zip(self.node_ids1.tolist(), self.node_ids2.tolist(), strict=True))


@dataclass(frozen=True)
class ChunkFiles:
    """Both files of one chunk."""

    edges: dict[str, Columns]
    components: list[list[int]]

    @property
    def active(self) -> set[tuple[int, int]]:
        """Active edges, smaller id first: both ends in one component, or pieces of one label."""
        of = {sv: number for number, ids in enumerate(self.components) for sv in ids}
        found = set(self.edges["cross"].pairs)
        for kind in ("in", "between"):
            found |= {(a, b) for a, b in self.edges[kind].pairs if a in of and b in of and of[a] == of[b]}
        return {(min(edge), max(edge)) for edge in found}


def read_chunk_files(edges_url: str, components_url: str, coordinate: tuple[int, int, int]) -> ChunkFiles:
    """Read both files of a chunk; both must be there."""
    name = "_".join(map(str, coordinate))
    frame = (Path(edges_url.removeprefix("file://")) / f"edges_{name}.proto.zst").read_bytes()
    # Decoders of one call need the content's size in the frame's header.
    assert zstandard.frame_content_size(frame) >= 0
    message = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    parts = {KINDS[number]: Columns.of(part) for number, part in fields(message)}
    empty = Columns.of(b"")
    data = (Path(components_url.removeprefix("file://")) / f"components_{name}.proto").read_bytes()
    return ChunkFiles({kind: parts.get(kind, empty) for kind in KINDS.values()}, _components(data))


def _components(data: bytes) -> list[list[int]]:
    values: list[int] = []
    for number, packed in fields(data):
        assert number == 1
        at = 0
        while at < len(packed):
            value, at = varint(packed, at)
            values.append(value)
    components, at = [], 0
    while at < len(values):
        components.append(values[at + 1 : at + 1 + values[at]])
        assert len(components[-1]) == values[at]
        at += 1 + values[at]
    return components
