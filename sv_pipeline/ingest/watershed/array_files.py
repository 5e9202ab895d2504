"""NumPy files (``.npy`` and ``.npz``): their content is checked before anything large is read. Knows no volume."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import InputError

__all__ = ["LABEL_ARRAYS", "ArrayHeader", "choose_array", "fits", "load_npy", "native", "read_array", "read_headers"]

LABEL_ARRAYS = ("segmentation", "supervoxels", "labels", "agglomeration", "groundtruth")
"""Names under which a volume is looked for in an ``.npz`` that holds several arrays."""
UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    NotImplementedError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors that NumPy and zipfile raise for a file that is broken, encrypted or of another kind."""
LONGEST_REASON = 200
MOST_DEFLATED = 1040
"""Maximum number of bytes that one byte of a deflated file can become; a header that claims more is wrong."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}


class ArrayHeader(NamedTuple):
    """Shape and type of an array, known before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fault: str = ""
    """Why the array cannot be read; empty if no fault was found."""
    crc: int = 0
    """CRC-32 checksum stored in the archive."""


def native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the same values in the byte order of this machine."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def load_npy(file: str) -> npt.NDArray[Any]:
    """Map the array of an ``.npy`` into memory; raises InputError if it cannot be read."""
    try:
        with Path(file).open("rb") as stream:
            header = _read_header(stream, Path(file).stat().st_size)
        if header.fault:
            raise _broken(file, header.fault)
        if 0 in header.shape:
            return np.empty(header.shape, header.dtype)  # an empty array cannot be mapped
        mapped: npt.NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise _broken(file, error) from error
    return mapped


def read_headers(file: str) -> dict[str, ArrayHeader]:
    """Read shape and type of the arrays of an ``.npz``, by name, without reading the arrays.

    Members that are broken or are not arrays are included, with their fault. Raises InputError if the file is not an
    archive.
    """
    stat = Path(file).stat()
    return dict(_read_headers(file, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=16)
def _read_headers(file: str, _size: int, _time: int) -> tuple[tuple[str, ArrayHeader], ...]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            names = Counter(member.filename.removesuffix(".npy") for member in members)
            headers = {member.filename.removesuffix(".npy"): _member_header(archive, member) for member in members}
            twice = ArrayHeader((), np.dtype(np.void), "it occurs twice in the archive")
            return tuple((name, twice if names[name] > 1 else header) for name, header in headers.items())
    except UNREADABLE as error:
        raise _broken(file, error) from error


def _member_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayHeader:
    try:
        if member.compress_type == zipfile.ZIP_DEFLATED and member.file_size > MOST_DEFLATED * member.compress_size:
            raise ValueError(f"it says that {member.compress_size} bytes become {member.file_size}")
        with archive.open(member) as stream:
            return _read_header(stream, member.file_size)._replace(crc=member.CRC)
    except UNREADABLE as error:
        return ArrayHeader((), np.dtype(np.void), _short(error))


def _read_header(stream: IO[bytes], size: int) -> ArrayHeader:
    """Read the header at the beginning of a file of ``size`` bytes."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format is not known")
    try:
        shape, _, dtype = _HEADERS[version](stream)
    except (*UNREADABLE, SyntaxError, MemoryError) as error:  # NumPy parses the header as a Python expression
        raise ValueError("its header does not describe an array") from error
    fault, content = "", size - stream.tell()
    if dtype.hasobject:
        fault = "it holds Python objects"
    elif min(shape, default=0) < 0:
        fault = f"the shape {shape} is not valid"
    elif prod(shape) * dtype.itemsize > content:
        fault = f"{dtype} of shape {shape} are {prod(shape) * dtype.itemsize} bytes, but the file has {content}"
    return ArrayHeader(tuple(shape), dtype, fault)


def read_array(file: str, name: str) -> npt.NDArray[Any]:
    """Read one array of an ``.npz``, in native byte order.

    Raises
    ------
    InputError
        If the array cannot be read, differs from its header, or does not fit in the memory of this machine.
    """
    header = read_headers(file).get(name)
    if header is None or header.fault:
        raise _broken(f"{file}: {name}", header.fault if header else "the file has no such array")
    n_bytes, memory = (
        prod(header.shape) * header.dtype.itemsize,
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )
    if n_bytes > memory:
        raise InputError(
            f"{file}: {name} needs {n_bytes} bytes of memory; this machine has {memory}.",
            remedy="Save it as .npy, or as a precomputed volume, which are read piece by piece.",
        )
    try:
        with np.load(file, allow_pickle=False) as archive:
            return native(np.asarray(archive[name]))
    except UNREADABLE as error:
        raise _broken(f"{file}: {name}", error) from error


def choose_array(file: str, key: str | None, headers: dict[str, ArrayHeader], n_dimensions: int) -> str:
    """Return the name of the array that is the volume: the one that the user named, or the only candidate.

    Raises
    ------
    InputError
        If there is no candidate or more than one; the message lists the arrays of the file.
    """
    if key is not None:
        if key not in headers:
            raise InputError(f"{file} holds no array {key!r}.", remedy=f"It has: {', '.join(headers) or 'none'}.")
        return key
    # A broken array counts as a candidate if it would be one when intact: another must not silently take its place.
    fitting = [name for name, h in headers.items() if fits(h.shape, n_dimensions) or _lost(name, h)]
    integers = [name for name in fitting if headers[name].dtype.kind in "iu" or _lost(name, headers[name])]
    known = [name for name in LABEL_ARRAYS if name in integers]
    for candidates in (integers, known[:1], fitting):
        if len(candidates) == 1:
            return candidates[0]
    shown = [f"{name} {h.dtype} {h.shape}" if not h.fault else f"{name} ({h.fault})" for name, h in headers.items()]
    raise InputError(
        f"cannot tell which array of {file} is the {n_dimensions}-d volume (it has: {', '.join(shown) or 'none'}).",
        remedy=f"Name it: {file}#name.",
    )


def _lost(name: str, header: ArrayHeader) -> bool:
    """Whether a member without a readable header has the name of a volume of labels."""
    return bool(header.fault) and header.dtype.kind == "V" and not header.shape and name in LABEL_ARRAYS


def fits(shape: Sequence[int], n_dimensions: int) -> bool:
    """Return whether an array can be a volume of ``n_dimensions``; labels may have a fourth axis of length 1."""
    return len(shape) == n_dimensions or (n_dimensions == 3 and len(shape) == 4 and shape[3] == 1)


def _broken(what: str, reason: object) -> InputError:
    return InputError(f"{what} cannot be read: {_short(reason)}.", remedy="Save the array again, or name another file.")


def _short(reason: object) -> str:
    """Shorten a reason, since NumPy repeats parts of a broken file in it."""
    text = str(reason) or type(reason).__name__
    return (text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + " ...").strip().removesuffix(".")
