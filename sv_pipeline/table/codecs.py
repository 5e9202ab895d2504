"""Codecs between values of one type and the bytes of a cell, as in PyChunkedGraph's tables. Knows no column."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import zstandard

from sv_pipeline.errors import CorruptionError
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import pickles

__all__ = [
    "ArrayCodec",
    "AsciiIdCodec",
    "Codec",
    "CounterCodec",
    "IntPickleCodec",
    "JsonCodec",
    "TextCodec",
    "TimePickleCodec",
    "UInt64Codec",
    "compress",
]

V = TypeVar("V")
Scalar = TypeVar("Scalar", bound=np.generic)

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_LEVEL = 3  # it is a hundred times faster than PyChunkedGraph's level 22, for 30 % more bytes

_zstd = threading.local()  # threads must not share compressors and decompressors


def compress(data: bytes) -> bytes:
    """Compress with zstd, by the compressor of this thread: to make one takes longer than to compress a small cell."""
    if not hasattr(_zstd, "compressor"):
        _zstd.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    return cast(bytes, _zstd.compressor.compress(data))


def _decompress(data: bytes) -> bytes:
    if not hasattr(_zstd, "decompressor"):
        _zstd.decompressor = zstandard.ZstdDecompressor()
    try:
        if zstandard.frame_content_size(data) >= 0:
            return cast(bytes, _zstd.decompressor.decompress(data))
        return cast(bytes, _zstd.decompressor.decompressobj().decompress(data))
    except zstandard.ZstdError as error:
        raise CorruptionError(f"a compressed cell of {len(data)} bytes cannot be read: {error}.") from error


class Codec(Protocol[V]):
    """Encoding of a value as bytes. ``decode`` raises CorruptionError if the bytes cannot be such a value."""

    def encode(self, value: V) -> bytes:
        """Encode a value."""
        ...

    def decode(self, data: bytes) -> V:
        """Decode bytes; arrays are read-only views where possible."""
        ...


@dataclass(frozen=True)
class ArrayCodec(Generic[Scalar]):
    """Little-endian array of one dtype, shape (n,) or (n, ``columns``), raw or compressed with zstd.

    Old tables have uncompressed cells in compressed columns: cells without the magic bytes of zstd are read as raw.
    """

    dtype: npt.DTypeLike
    columns: int | None = None
    compressed: bool = False

    def encode(self, value: npt.ArrayLike) -> bytes:
        """Encode an array or a list; ValueError for negative ids, TypeError for numbers of another kind."""
        array = value if isinstance(value, np.ndarray) and value.size else np.asarray(value, self.dtype)
        if array.dtype.kind == "i" and np.dtype(self.dtype).kind == "u":
            if array.min() < 0:
                raise ValueError("ids cannot be negative")
            array = array.astype(self.dtype)
        data = array.astype(self.dtype, casting="same_kind", copy=False).tobytes()
        return compress(data) if self.compressed else data

    def decode(self, data: bytes) -> npt.NDArray[Scalar]:
        """Decode an array."""
        if self.compressed and data[:4] == ZSTD_MAGIC:
            data = _decompress(data)
        return self.from_raw(data)

    def raw(self, data: bytes) -> bytes:
        """Return a cell's bytes without compression."""
        return _decompress(data) if self.compressed and data[:4] == ZSTD_MAGIC else data

    def from_raw(self, data: bytes) -> npt.NDArray[Scalar]:
        """Decode an array from uncompressed bytes."""
        try:
            array: npt.NDArray[Scalar] = np.frombuffer(data, dtype=self.dtype)
            return array if self.columns is None else array.reshape(-1, self.columns)
        except ValueError as error:
            raise CorruptionError(
                f"a cell of {len(data)} bytes is not an array of {np.dtype(self.dtype)}: {error}."
            ) from error


@dataclass(frozen=True)
class UInt64Codec:
    """One uint64, little endian."""

    def encode(self, value: int | np.integer[Any]) -> bytes:
        """Encode as eight bytes."""
        return int(value).to_bytes(8, "little")

    def decode(self, data: bytes) -> int:
        """Decode the number."""
        return int.from_bytes(_exactly(data, 8), "little")


@dataclass(frozen=True)
class CounterCodec:
    """One int64, **big** endian, as the increment of tables requires it."""

    def encode(self, value: int | np.integer[Any]) -> bytes:
        """Encode as eight bytes."""
        return int(value).to_bytes(8, "big", signed=True)

    def decode(self, data: bytes) -> int:
        """Decode the number."""
        return int.from_bytes(_exactly(data, 8), "big", signed=True)


@dataclass(frozen=True)
class AsciiIdCodec:
    """An id as 20 decimal digits."""

    def encode(self, value: int | np.integer[Any]) -> bytes:
        """Encode as twenty bytes."""
        return b"%020d" % int(value)

    def decode(self, data: bytes) -> int:
        """Decode the number."""
        if not data.isdigit():
            raise CorruptionError(f"a cell holds {data[:40]!r} instead of an id in digits.")
        return int(data)


@dataclass(frozen=True)
class TextCodec:
    """UTF-8 text."""

    def encode(self, value: str) -> bytes:
        """Encode as UTF-8."""
        return value.encode()

    def decode(self, data: bytes) -> str:
        """Decode the text; bytes that are not UTF-8 become replacement characters."""
        return data.decode(errors="replace")


@dataclass(frozen=True)
class JsonCodec:
    """A JSON value; used only in our own rows."""

    def encode(self, value: Any) -> bytes:
        """Encode as compact JSON with sorted keys, so that equal values give equal bytes."""
        return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()

    def decode(self, data: bytes) -> Any:
        """Decode the value."""
        try:
            return json.loads(data)
        except ValueError as error:
            raise CorruptionError(f"a cell is not JSON: {error}.") from error


@dataclass(frozen=True)
class IntPickleCodec:
    """A pickled int."""

    def encode(self, value: int) -> bytes:
        """Encode as a pickle."""
        return pickle.dumps(int(value), pickles.PROTOCOL)

    def decode(self, data: bytes) -> int:
        """Decode the number."""
        value = pickles.load(data, {}, "a cell")
        if not isinstance(value, int):
            raise CorruptionError(f"a cell holds {value!r} instead of a number.")
        return value


@dataclass(frozen=True)
class TimePickleCodec:
    """A pickled datetime."""

    def encode(self, value: datetime) -> bytes:
        """Encode as a pickle."""
        return pickle.dumps(value, pickles.PROTOCOL)

    def decode(self, data: bytes) -> datetime:
        """Decode the time."""
        value = pickles.load(data, pickles.TIMES, "a cell")
        if not isinstance(value, datetime):
            raise CorruptionError(f"a cell holds {value!r} instead of a time.")
        return value


def uint64_values(cells: Sequence[bytes]) -> UInt64Array:
    """Decode many cells of one uint64 each to one array, shape (n,)."""
    data = b"".join(cells)
    if len(data) != 8 * len(cells):
        raise CorruptionError("a cell does not consist of one uint64.")
    return np.frombuffer(data, "<u8").astype(np.uint64, copy=False)


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise CorruptionError(f"a cell has {len(data)} bytes, not {size}.")
    return data
