"""Files that are compressed as a whole, such as ``NAME.gz``, which cloud-volume writes on local disks.

In buckets the compression is stored with the object and the name is unchanged; TensorStore's drivers handle that.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import zstandard

from sv_pipeline.errors import InputError
from sv_pipeline.storage import kv
from sv_pipeline.storage.file_guard import local_path

__all__ = ["SUFFIXES", "decompress", "only_form", "read_files", "suffixes_in"]


def _brotli(data: bytes) -> bytes:
    import brotli

    try:
        return bytes(brotli.decompress(data))
    except brotli.error as error:
        raise ValueError(str(error)) from error


def _zstd(data: bytes) -> bytes:
    frame = zstandard.ZstdDecompressor().decompressobj()
    content = frame.decompress(data)
    if not frame.eof:
        raise ValueError("the file is truncated")
    return content


_METHODS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".br": _brotli,
    ".zstd": _zstd,
    ".zst": _zstd,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
SUFFIXES = tuple(_METHODS)
"""Suffixes of the names of compressed files."""


def decompress(data: bytes, suffix: str, where: str) -> bytes:
    """Decompress a file; InputError if it is damaged."""
    try:
        return _METHODS[suffix](data)
    except (ValueError, EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise InputError(
            f"{where} cannot be decompressed: {error}.", remedy="Restore the file from its source."
        ) from error


def suffixes_in(folder_url: str) -> tuple[str, ...]:
    """Return the suffixes of compressed files in a folder; they occur only on local disks and in memory."""
    folder = local_path(folder_url)
    if folder is None:
        return _suffixes_of(kv.list_keys(folder_url)) if folder_url.startswith("memory://") else ()
    try:
        return _suffixes_on_disk(str(folder), folder.stat().st_mtime_ns)
    except OSError:
        return ()


@lru_cache(maxsize=256)
def _suffixes_on_disk(folder: str, _changed: int) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return _suffixes_of([entry.name for entry in entries])


def _suffixes_of(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(suffix for suffix in SUFFIXES if any(name.endswith(suffix) for name in names))


def only_form(name: str, contents: Sequence[bytes | None], suffixes: Sequence[str], where: str) -> bytes | None:
    """Return the content of a file that may be stored under several names, decompressed; None if it is missing.

    Parameters
    ----------
    name
        Name without a suffix.
    contents
        Content stored under that name, and under the name with each of ``suffixes``; None if missing.
    suffixes
        Suffixes of compressed files in the folder.
    where
        Folder, for messages.

    Raises
    ------
    InputError
        If there are two contents, of which one must be out of date, or the content is damaged.
    """
    found = [(suffix, data) for suffix, data in zip(("", *suffixes), contents, strict=True) if data is not None]
    if len(found) > 1:
        raise InputError(
            f"{where} holds both {' and '.join(name + suffix for suffix, _ in found)}; one of them is out of date.",
            remedy="Remove the outdated one.",
        )
    if not found:
        return None
    suffix, data = found[0]
    return data if not suffix else decompress(data, suffix, f"{where}{name}{suffix}")


def read_files(url: str, names: Sequence[str]) -> list[bytes | None]:
    """Read files, and decompress those that are compressed as a whole; None for each missing file.

    A name includes suffixes that are part of the file's own name (``edges_0_0_0.proto.zst``).

    Raises
    ------
    InputError
        If a file exists in two forms, or cannot be decompressed.
    """
    suffixes = suffixes_in(kv.as_url(url))
    if not suffixes:
        return kv.read_many(url, names)
    forms = ("", *suffixes)
    contents = kv.read_many(url, [name + form for name in names for form in forms])
    rows = [contents[i : i + len(forms)] for i in range(0, len(contents), len(forms))]
    return [only_form(name, row, suffixes, url) for name, row in zip(names, rows, strict=True)]
