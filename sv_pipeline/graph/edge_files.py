"""Edge and component files of layer 2 chunks: PyChunkedGraph's protobuf formats, read and written in bulk.

The module owns the file names and the wire format. It does not know how edges are made.

``edges_x_y_z.proto.zst`` is one zstd frame of ``ChunkEdgesMsg {in_chunk = 1; cross_chunk = 2; between_chunk = 3}``,
each an ``EdgesMsg {node_ids1 = 1; node_ids2 = 2; affinities = 3; areas = 4}`` of raw little-endian bytes (uint64,
uint64, float32, uint64). ``components_x_y_z.proto`` is a packed repeated uint64: ``[n, id * n, n, id * n, ...]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from sv_pipeline.algorithms import edge_rules
from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.errors import InputError
from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.storage import kv
from sv_pipeline.storage.compressed_files import read_files

__all__ = [
    "ChunkEdges",
    "Edges",
    "components_key",
    "decode_components",
    "decode_edges",
    "edges_key",
    "encode_components",
    "encode_edges",
    "read_components",
    "read_components_many",
    "read_edges",
    "read_edges_many",
    "usable",
    "write_components",
    "write_edges",
]

COMPRESSION_LEVEL = 9
REMEDY = "Restore the file from its source, or make the watershed again."

Components = list[UInt64Array]
"""Groups of supervoxels; each group is connected."""


@dataclass(frozen=True)
class ChunkEdges:
    """Atomic edges of one chunk: the contents of its edge file."""

    in_: Edges = field(default_factory=Edges)
    """Edges with both ends in the chunk; each edge occurs once."""
    between: Edges = field(default_factory=Edges)
    """Edges from the chunk to a neighbouring chunk, whose file has the reverse edge; their affinity is finite."""
    cross: Edges = field(default_factory=Edges)
    """Edges between pieces of one watershed label that the chunk border cuts; like ``between``, but affinity inf."""


class _Kind(NamedTuple):
    name: str
    field: str


_KINDS = (_Kind("in_", "in_chunk"), _Kind("cross", "cross_chunk"), _Kind("between", "between_chunk"))
_COLUMNS = tuple(
    (name, np.dtype(of))
    for name, of in (("node_ids1", "<u8"), ("node_ids2", "<u8"), ("affinities", "<f4"), ("areas", "<u8"))
)


@cache
def _messages() -> tuple[type[Any], type[Any]]:
    """Return the message classes ChunkEdgesMsg and ComponentsMsg, from a descriptor built here (no generated code)."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="sv_pipeline_formats.proto", package="sv_pipeline", syntax="proto3")
    edges = file.message_type.add(name="EdgesMsg")
    for number, (name, _) in enumerate(_COLUMNS, start=1):
        edges.field.add(name=name, number=number, type=kinds.TYPE_BYTES, label=kinds.LABEL_OPTIONAL)
    chunk = file.message_type.add(name="ChunkEdgesMsg")
    for number, kind in enumerate(_KINDS, start=1):
        chunk.field.add(
            name=kind.field,
            number=number,
            type=kinds.TYPE_MESSAGE,
            label=kinds.LABEL_OPTIONAL,
            type_name=".sv_pipeline.EdgesMsg",
        )
    components = file.message_type.add(name="ComponentsMsg")
    components.field.add(name="components", number=1, type=kinds.TYPE_UINT64, label=kinds.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    get = message_factory.GetMessageClass
    return (
        get(pool.FindMessageTypeByName("sv_pipeline.ChunkEdgesMsg")),
        get(pool.FindMessageTypeByName("sv_pipeline.ComponentsMsg")),
    )


# -- names ------------------------------------------------------------------------------------------------------------


def edges_key(coordinate: npt.ArrayLike) -> str:
    """Return the file name of a chunk's edges."""
    return "edges_{}_{}_{}.proto.zst".format(*np.asarray(coordinate).tolist())


def components_key(coordinate: npt.ArrayLike) -> str:
    """Return the file name of a chunk's components."""
    return "components_{}_{}_{}.proto".format(*np.asarray(coordinate).tolist())


# -- edges ------------------------------------------------------------------------------------------------------------


def encode_edges(edges: ChunkEdges) -> bytes:
    """Encode an edge file."""
    chunk = _messages()[0]()
    for kind in _KINDS:
        values: Edges = getattr(edges, kind.name)
        part = getattr(chunk, kind.field)
        for name, dtype in _COLUMNS:
            setattr(part, name, np.ascontiguousarray(getattr(values, name), dtype=dtype).tobytes())
    return zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(chunk.SerializeToString(deterministic=True))


def decode_edges(
    data: bytes, *, where: str, layout: IdLayout | None = None, coordinate: npt.ArrayLike | None = None
) -> ChunkEdges:
    """Decode an edge file.

    Parameters
    ----------
    data
        Contents of the file.
    where
        Name of the file, for messages.
    layout, coordinate
        If both are given, the edges are checked against the rules of :mod:`sv_pipeline.algorithms.edge_rules`, and
        their ids are checked: they must be supervoxels, and lie in this chunk where the format requires it.

    Raises
    ------
    InputError
        If the file is damaged, or an edge breaks a rule.
    """
    chunk = _messages()[0]()
    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        raw = frame.decompress(data)
        if not frame.eof:
            raise InputError(f"edge file {where} is truncated.", remedy=REMEDY)
        chunk.ParseFromString(raw)
    except (zstandard.ZstdError, message.DecodeError) as error:
        raise InputError(f"edge file {where} cannot be decoded: {error}.", remedy=REMEDY) from error
    parts = {kind.name: _decode_part(getattr(chunk, kind.field), f"{where} ({kind.field})") for kind in _KINDS}
    if layout is not None and coordinate is not None:
        for name, edges in parts.items():
            _check_ids(edges, layout, coordinate, inside=name == "in_", where=f"{where} ({name.rstrip('_')})")
        _check_rules(parts, where)
    return ChunkEdges(**parts)


def _decode_part(part: Any, where: str) -> Edges:
    columns = {}
    for name, dtype in _COLUMNS:
        raw = getattr(part, name)
        if len(raw) % dtype.itemsize:
            raise InputError(
                f"edge file {where}: {name} has {len(raw)} bytes, not a whole number of values.", remedy=REMEDY
            )
        columns[name] = np.frombuffer(raw, dtype)
    if len(set(map(len, columns.values()))) > 1:
        lengths = {name: len(column) for name, column in columns.items()}
        raise InputError(f"edge file {where}: columns differ in length: {lengths}.", remedy=REMEDY)
    return Edges(**columns)


def _check_rules(parts: dict[str, Edges], where: str) -> None:
    joined = Edges.join(parts.values())
    pairs = np.stack([joined.node_ids1, joined.node_ids2], axis=-1)
    cross = np.repeat([name == "cross" for name in parts], [len(part) for part in parts.values()])
    faults = edge_rules.edge_faults(pairs, joined.affinities, joined.areas, cross)
    if (again := edge_rules.repeated(pairs)).any():
        faults.append(edge_rules.BrokenRule("it is listed more than once", again))
    if faults:
        first = int(np.flatnonzero(faults[0].edges)[0])
        a, b = pairs[first].tolist()
        more = f" ({np.count_nonzero(faults[0].edges):,} such edges)" if faults[0].edges.sum() > 1 else ""
        raise InputError(
            f"edge file {where}: edge {a} - {b} of affinity {joined.affinities[first]} and area {joined.areas[first]}: "
            f"{faults[0].text}{more}.",
            remedy="Write the file again.",
        )


def usable(edges: ChunkEdges) -> ChunkEdges:
    """Return the edges with affinities that a cut can use; there are older files that were not checked by the rules."""

    def part(edges: Edges, may_be_inf: bool) -> Edges:
        return replace(edges, affinities=edge_rules.usable_affinities(edges.affinities, may_be_inf))

    return ChunkEdges(part(edges.in_, False), part(edges.between, False), part(edges.cross, True))


def _check_ids(edges: Edges, layout: IdLayout, coordinate: npt.ArrayLike, *, inside: bool, where: str) -> None:
    here = layout.chunk_ids(1, coordinate)
    first, second = layout.chunks(edges.node_ids1), layout.chunks(edges.node_ids2)
    wrong = first != here
    wrong |= (second != here) if inside else (second == here) | (layout.layers(edges.node_ids2) != 1)
    wrong |= (layout.segments(edges.node_ids1) == 0) | (layout.segments(edges.node_ids2) == 0)
    if wrong.any():
        pair = int(edges.node_ids1[wrong][0]), int(edges.node_ids2[wrong][0])
        raise InputError(
            f"edge file {where}: {np.count_nonzero(wrong)} edges do not belong to this chunk, first {pair}.",
            remedy="Check that EDGES, CHUNK_SIZE and SPATIAL_BITS belong to this watershed volume.",
        )


def read_edges_many(url: str, coordinates: npt.ArrayLike, *, layout: IdLayout | None = None) -> list[ChunkEdges]:
    """Read the edges of many chunks concurrently; a missing file means a chunk without edges.

    Parameters
    ----------
    url
        Folder of the edge files.
    coordinates
        Chunk coordinates, shape (n, 3).
    layout
        If given, edges and their ids are checked as by :func:`decode_edges`.
    """
    coords = np.asarray(coordinates, np.int64).reshape(-1, 3)
    keys = [edges_key(c) for c in coords]
    return [
        ChunkEdges() if data is None else decode_edges(data, where=f"{url}{key}", layout=layout, coordinate=c)
        for data, key, c in zip(read_files(kv.as_url(url), keys), keys, coords, strict=True)
    ]


def read_edges(url: str, coordinate: npt.ArrayLike, *, layout: IdLayout | None = None) -> ChunkEdges:
    """Read the edges of one chunk, coordinate of shape (3,); see :func:`read_edges_many`."""
    return read_edges_many(url, np.asarray(coordinate)[None], layout=layout)[0]


def write_edges(url: str, coordinate: npt.ArrayLike, edges: ChunkEdges) -> None:
    """Write the edge file of one chunk."""
    kv.write_bytes(kv.as_url(url), edges_key(coordinate), encode_edges(edges))


# -- components -------------------------------------------------------------------------------------------------------


def encode_components(components: Sequence[npt.ArrayLike]) -> bytes:
    """Encode a component file."""
    parts = [np.asarray(ids, np.uint64) for ids in components]
    flat = [v for ids in parts for v in (np.array([len(ids)], np.uint64), ids)]
    values = np.concatenate(flat) if flat else np.empty(0, np.uint64)
    return bytes(_messages()[1](components=values.tolist()).SerializeToString(deterministic=True))


def decode_components(data: bytes, *, where: str) -> Components:
    """Decode a component file; InputError if it is damaged."""
    parsed = _messages()[1]()
    try:
        parsed.ParseFromString(data)
    except message.DecodeError as error:
        raise InputError(f"component file {where} cannot be decoded: {error}.", remedy=REMEDY) from error
    flat = np.array(parsed.components, dtype=np.uint64)
    components, start = [], 0
    while start < len(flat):
        stop = start + 1 + int(flat[start])
        if stop > len(flat):
            raise InputError(f"component file {where} ends inside a component.", remedy=REMEDY)
        components.append(flat[start + 1 : stop])
        start = stop
    return components


def read_components_many(url: str, coordinates: npt.ArrayLike) -> list[Components]:
    """Read the components of many chunks, coordinates of shape (n, 3); a missing file means no components."""
    keys = [components_key(c) for c in np.asarray(coordinates, np.int64).reshape(-1, 3)]
    found = read_files(kv.as_url(url), keys)
    return [[] if d is None else decode_components(d, where=f"{url}{key}") for d, key in zip(found, keys, strict=True)]


def read_components(url: str, coordinate: npt.ArrayLike) -> Components:
    """Read the components of one chunk, coordinate of shape (3,)."""
    return read_components_many(url, np.asarray(coordinate)[None])[0]


def write_components(url: str, coordinate: npt.ArrayLike, components: Sequence[npt.ArrayLike]) -> None:
    """Write the component file of one chunk."""
    kv.write_bytes(kv.as_url(url), components_key(coordinate), encode_components(components))
