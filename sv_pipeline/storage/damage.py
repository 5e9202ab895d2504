"""Finds the file that an error of TensorStore refers to. Reads only; raises nothing.

TensorStore names the file if it reads a manifest or a node of a B+tree. If it reads a value, it names the key and the
folder of the base, even if the value is stored in a fork or in a part. Then the trees are searched for that key.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    import tensorstore as ts

__all__ = ["Damage", "damage_of"]

_VALUE = re.compile(
    r"\"(?P<key>[^\"]+)\" in OCDBT database at (?:(?:local file )?\"(?P<base>[^\"]+)\"|(?P<url>[a-z0-9]+://\S+/)(?=:|\s|$))"
)
_FILE = re.compile(
    r"(?:local file |of |decoding |reading |at )\"(?P<file>[^\"]*/[^\"]*[^\"/])\"(?:: (?P<reason>.*))?", re.S
)
_URL = re.compile(r"(?P<file>\b(?:https?|s3|gs)://[^\s\"'|]+?)(?:: (?P<reason>.*)|(?= does not exist)|$)", re.S)
_DETAILS = re.compile(r"\s*\[(?:tensorstore_spec|source locations|curl_code|os_error_code|http_response_body)=.*", re.S)
_CODE = re.compile(r"^[A-Z][A-Z_]+: ")
_NO_VERSION = re.compile(r"Version where .* not present")
_FORKS = ".forks/"
_NO_REASON = "it does not exist"


@dataclass(frozen=True)
class Damage:
    """What is wrong with a file."""

    place: str | None
    """The file, or files; None if the error does not tell."""
    reason: str
    of_watershed: bool = False
    """Whether the file is one of the watershed that a base refers to."""


def damage_of(text: str) -> Damage:
    """Return the file that an error message of TensorStore refers to, and what is wrong with it."""
    text = _CODE.sub("", _DETAILS.sub("", text)).strip()
    value = _VALUE.search(text)
    after = text[value.end() :].removeprefix(": ") if value else text
    if _NO_VERSION.search(after):  # a version that never existed, or was pruned, is not damage
        return Damage(None, text.strip(". "))
    for pattern in (_FILE, _URL):
        if found := list(pattern.finditer(after)):
            last = found[-1]
            return Damage(last["file"], (last["reason"] or _NO_REASON).strip(". "))
    if value is None:
        return Damage(None, text.strip(". "))
    base = value["base"] or value["url"]
    files = _files_of(value["key"], base)
    reason = after.strip(". ") or _NO_REASON
    if files:
        inside = base.rstrip("/").rpartition("/")[0]
        of_watershed = not any(file.startswith(inside + "/") for file in files)
        return Damage(" or ".join(files), f"the value of {value['key']}: {reason}", of_watershed)
    return Damage(None, f"the value of {value['key']} in the database at {base}: {reason}")


def _files_of(key: str, base: str) -> list[str]:
    """Return the unreadable files that hold the value of a key in the base or its forks; all of them if none is."""
    import tensorstore as ts  # deferred: this module is imported with the package, and TensorStore loads slowly

    parent, _, name = (base if "://" in base else f"file://{quote(base)}").rstrip("/").rpartition("/")
    watershed, _, folder_name = parent.rpartition("/")
    found: dict[str, bool] = {}
    try:
        # The context has no cache, because the current state of the storage is needed.
        folder = ts.KvStore.open(watershed + "/", context=ts.Context()).result()
        graphs = [graph.decode() for graph in (folder / f"{folder_name}/{_FORKS}").list().result()]
        for graph in (None, *graphs):
            for file, start, length in _extents(parent, name, graph, key):
                found[file] = found.get(file, False) or not _is_there(folder, file, start, length)
    except ValueError:
        pass
    chosen = [file for file, missing in found.items() if missing] or list(found)
    return [f"{base.rstrip('/').rsplit('/', 2)[0]}/{file}" for file in chosen]


def _extents(parent: str, name: str, graph: str | None, key: str) -> Iterator[tuple[str, int, int]]:
    """Where the latest generation of a base or fork keeps the value of a key: file of the watershed, start, length."""
    import tensorstore as ts

    from sv_pipeline.storage.ocdbt import SOURCE_PREFIX

    watershed, _, ocdbt_folder = parent.rpartition("/")
    layers: list[dict[str, Any]] = [
        {"base": f"{parent}/{name}/"},
        {"prefix": SOURCE_PREFIX, "base": f"{watershed}/"},
    ]
    if graph is not None:
        fork, own = f"{parent}/{graph}/", f"{graph}_d/"
        layers += [{"base": fork, "prefix": "manifest.", "strip_prefix": 0}, {"base": fork + own, "prefix": own}]
    context = ts.Context()
    try:
        stack = ts.KvStore.open({"driver": "kvstack", "layers": layers}, context=context).result()
        root = ts.ocdbt.dump(stack, context=context).result()["versions"][-1]["root"]
        location, rest = root.get("location"), key.encode()
        while location is not None:
            node = ts.ocdbt.dump(stack, location, context=context).result()
            keys = [entry["key"] for entry in node["entries"]]
            entry = node["entries"][bisect_right(keys, rest) - 1] if keys and keys[0] <= rest else {}
            location = entry.get("location")
            rest = rest[len(entry.get("subtree_common_prefix", b"")) :]
            if "indirect_value" in entry and entry["key"] == rest:
                head, start, length = entry["indirect_value"].rsplit(":", 2)
                _, prefix, relative = head.split(":", 2)
                file = unquote(prefix + relative)
                folder = graph if graph is not None and file.startswith(f"{graph}_d/") else name
                if not file.startswith(SOURCE_PREFIX):
                    file = f"{ocdbt_folder}/{folder}/{file}"
                yield file.removeprefix(SOURCE_PREFIX), int(start), int(length)
    except (ValueError, KeyError, IndexError, TypeError):
        return


def _is_there(folder: ts.KvStore, file: str, start: int, length: int) -> bool:
    try:
        found = folder.read(file, byte_range=slice(start, start + length)).result()
    except ValueError:
        return False
    return bool(found.state == "value")
