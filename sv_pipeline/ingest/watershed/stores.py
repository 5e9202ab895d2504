"""Source volumes that TensorStore opens: precomputed volumes, and volumes given by a TensorStore spec.

Only mip 0 of a precomputed volume is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorstore as ts

from sv_pipeline.errors import ConfigError, DamagedError, InputError, SvPipelineError
from sv_pipeline.json_texts import read_json
from sv_pipeline.places import is_spec, parse_source
from sv_pipeline.storage.context import process_context
from sv_pipeline.storage.precomputed import parse_info_file
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.storage.stored_scale import StoredScale
from sv_pipeline.storage.volume_info import LABEL_ENCODINGS, check_label_encoding, parse_source_info
from sv_pipeline.storage.wall import in_one_line

__all__ = ["open_store"]

PICTURE_DRIVERS = frozenset({"jpeg", "webp", "avif"})
REMEDY = (
    "Give an .npz, an .npy, a neuroglancer precomputed volume (its folder) or a TensorStore spec; "
    "a table must be a .csv or an .npz."
)


def open_store(path: str, *, labels: bool) -> tuple[ts.TensorStore, StoredScale | None]:
    """Open a source.

    Parameters
    ----------
    path
        Folder or URL of a precomputed volume, or a TensorStore spec in JSON.
    labels
        Whether the voxels are labels, which must be stored in a lossless encoding.

    Returns
    -------
    tuple[tensorstore.TensorStore, StoredScale | None]
        The store and, if it is a mip of a precomputed volume, that mip.

    Raises
    ------
    InputError
        If the source cannot be opened, or holds labels in an encoding that may change them.
    """
    if is_spec(path):
        return _from_spec(path, labels=labels)
    place = parse_source(path)
    if place.file is not None and place.file.exists() and not place.file.is_dir():
        raise _unusable(path, "it is a file of another kind")
    url = place.folder_url
    stored = _stored(url, path)
    if labels:
        check_label_encoding(stored.scale, f"{url}info: scales[0].")
    try:
        return stored.open(), stored
    except (ValueError, OSError, ConfigError, DamagedError) as error:
        raise _unusable(path, error) from error


def _stored(url: str, path: str) -> StoredScale:
    def read() -> ts.KvStore.ReadResult:
        return ts.KvStore.open(url, context=process_context()).result().read("info").result()

    try:
        found = retry_transport(read, what=f"opening {path}")
    except (ValueError, OSError, ConfigError, DamagedError) as error:
        raise _unusable(path, error) from error
    if found.state == "missing":
        raise _unusable(path, "there is no 'info' file")
    return StoredScale(url, *parse_info_file(bytes(found.value), f"{url}info", parse_source_info))


def _from_spec(text: str, *, labels: bool) -> tuple[ts.TensorStore, StoredScale | None]:
    try:
        spec = read_json(text)
    except ValueError as error:
        raise ConfigError(f"source: not a valid TensorStore spec: {error}.") from error
    try:
        store = retry_transport(
            lambda: ts.open(spec, context=process_context(), open=True, create=False, read=True).result(),
            what=f"opening {text}",
        )
        found = store.spec().to_json()
    except (ValueError, OSError, ConfigError, DamagedError) as error:
        raise _unusable(text, error) from error
    if labels and (lossy := next(_lossy(found), None)):
        raise InputError(
            f"{text} has the lossy encoding {lossy!r}, which may change labels.",
            remedy="Export the labels again, in a lossless encoding.",
        )
    stored = _scale_of_spec(found, text)
    if stored is not None and stored.suffixes:
        raise InputError(
            f"the chunks of {stored.folder} are compressed as files (NAME{stored.suffixes[0]}), which no TensorStore "
            "spec can read.",
            remedy=f"Name the folder instead: {stored.url}.",
        )
    return store, stored


def _scale_of_spec(spec: dict[str, Any], text: str) -> StoredScale | None:
    """The mip that a spec opens; None unless it is simply a mip of a precomputed volume in a folder."""
    if spec.get("driver") != "neuroglancer_precomputed":
        return None
    try:
        url = ts.KvStore.Spec(spec["kvstore"]).url
    except ValueError:
        return None  # a store that is composed of others has no URL
    if "|" in url:
        return None
    stored = _stored(url, text)
    return StoredScale(url, stored.raw, stored.volume, int(spec.get("scale_index", 0)))


def _lossy(spec: Any) -> Iterator[str]:
    """Yield the lossy encodings and drivers that occur anywhere in a spec."""
    if isinstance(spec, list):
        for part in spec:
            yield from _lossy(part)
    elif isinstance(spec, dict):
        if spec.get("driver") in PICTURE_DRIVERS:
            yield spec["driver"]
        metadata = spec.get("scale_metadata")
        if isinstance(metadata, dict) and metadata.get("encoding", "raw") not in LABEL_ENCODINGS:
            yield str(metadata["encoding"])
        for part in spec.values():
            yield from _lossy(part)


def _unusable(path: str, reason: str | Exception) -> InputError:
    if isinstance(reason, Exception):
        reason = reason.message.rstrip(".") if isinstance(reason, SvPipelineError) else in_one_line(reason)
    return InputError(f"{path} cannot be opened as a volume: {reason}.", remedy=REMEDY)
