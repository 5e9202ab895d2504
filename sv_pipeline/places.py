"""Places as users name them, paths or URLs: one parser for every field, option and variable. Opens nothing.

::

    /data/ws  ws  ~/ws             a path: every character stands for itself; ``#``, ``|``, ``?`` and ``%20`` as well
    file:///data/a%20b             a URL: percent-encoded; so is gs://, memory://, s3://, http://, https://
    precomputed://gs://bucket/ws   the same places, as Neuroglancer writes them
    gs://bucket/ws/|neuroglancer-precomputed:
    run#3/a.npz#seg                one array of an ``.npz``

Whatever is none of these is refused. A text never stands for another place than the one it names.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from sv_pipeline.arguments import shown
from sv_pipeline.errors import ConfigError

__all__ = ["LOCK_SUFFIX", "READABLE", "WRITABLE", "Place", "is_spec", "local_folder", "parse_folder", "parse_source"]

WRITABLE = ("file", "gs", "memory")
"""Schemes of folders that we write to."""
READABLE = (*WRITABLE, "s3", "http", "https")
"""Schemes of volumes that we read."""

MAX_PATH, MAX_NAME = 4096, 255
"""Bytes that the file systems of Linux take."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_FORMAT = "precomputed://"
_PIPELINE = "|neuroglancer-precomputed:"
_LOOKS_LIKE_PIPELINE = re.compile(r"\|[a-z][a-z0-9._-]*:")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_VARIABLE = re.compile(r"(?:^|/)\$\{?[A-Za-z_]")
_BUCKET = re.compile(r"[a-z0-9_-][a-z0-9._-]{1,220}[a-z0-9]")
_SAFE = "/:@!$&'()*+,;=~"
"""What may stand in a URL's path as it is."""
LOCK_SUFFIX = ".__lock"
"""Ends the names of the lock files of TensorStore's driver, which refuses such names itself."""


@dataclass(frozen=True)
class Place:
    """A place that was understood."""

    scheme: str
    """One of READABLE."""
    path: str
    """Of a file: its absolute path. Else what follows ``://``, percent-encoded."""
    member: str | None = None
    """Name of an array inside an ``.npz``."""

    @property
    def file(self) -> Path | None:
        """The local file or folder; None for other places."""
        return Path(self.path) if self.scheme == "file" else None

    @property
    def folder_url(self) -> str:
        """As URL of a folder, which ends with ``/``."""
        if self.scheme == "file":
            return f"file://{quote(self.path.rstrip('/'))}/"
        path, mark, query = self.path.partition("?")  # only of http: elsewhere it is encoded
        return f"{self.scheme}://{path.rstrip('/')}/{mark}{query}" if path.strip("/") else f"{self.scheme}://"

    def inside(self, name: str) -> Place:
        """A folder in this one; its name needs no encoding."""
        return Place(self.scheme, f"{self.path.rstrip('/')}/{name}" if self.path.strip("/") else f"{self.path}{name}")

    @property
    def text(self) -> str:
        """A text that names this place, whatever the current folder is: a path, or a URL."""
        member = "" if self.member is None else f"#{self.member}"
        if self.scheme != "file":
            return f"{self.scheme}://{self.path}{member}"
        as_url = _LOOKS_LIKE_PIPELINE.search(self.path) or self.path != self.path.rstrip()
        as_url = as_url or (".npz#" in self.path and self.member is None)
        return (f"file://{quote(self.path)}" if as_url else self.path) + member


def parse_folder(text: str | os.PathLike[str]) -> Place:
    """A folder to write to: a path, or a URL of ``file``, ``gs`` or ``memory``.

    Raises
    ------
    ConfigError
        If the text is not understood; says how to write what may be meant.
    """
    text = _text(text)
    if is_spec(text):
        raise ConfigError(
            f"{_shown(text)} looks like a spec of TensorStore, which names no folder here.",
            remedy="Give a path, or a URL such as gs://bucket/folder/; for a folder of this name write ./{….",
        )
    place = _parse(text, WRITABLE)
    if place.path == "/":
        raise ConfigError(f"{_shown(text)} is the root of all files.", remedy="Give a folder of its own in it.")
    return place


def local_folder(text: str | os.PathLike[str], *, what: str = "the folder") -> Path:
    """A folder on this machine: a path, or a ``file`` URL; ConfigError for anything else."""
    place = parse_folder(text)
    if place.file is None:
        raise ConfigError(f"{what} must be on a local disk, not {_shown(_text(text))}.", remedy="Give a path.")
    return place.file


def parse_source(text: str) -> Place:
    """A file or a volume to read, perhaps with the name of an array: ``run#3/a.npz#seg``.

    The last ``.npz#`` counts whose file exists. A path that exists as a whole has no array's name in it.

    Raises
    ------
    ConfigError
        If the text is not understood; says how to write what may be meant.
    """
    text = _text(text)
    if _has_scheme(text):
        ends = [match.end() - 1 for match in re.finditer(r"\.npz#", text)]
        if ends:
            place = _parse(text[: ends[0]], READABLE)
            return _named(place, text[ends[0] + 1 :], text)
        return _parse(text, READABLE)
    whole = _parse(text, READABLE)
    ends = [match.start() + 4 for match in re.finditer(r"\.npz#", whole.path)]
    if not ends or os.path.lexists(whole.path):
        return whole
    at = next((end for end in reversed(ends) if os.path.isfile(whole.path[:end])), ends[-1])  # noqa: PTH113 - one stat
    return _named(Place("file", whole.path[:at]), whole.path[at + 1 :], text)


def is_spec(text: str) -> bool:
    """Whether a text is a TensorStore spec (JSON), rather than a place."""
    return text.lstrip().startswith("{")


def _text(given: object) -> str:
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{shown(text)} is no place: it holds what is no character.", remedy="Rename it: names are UTF-8."
            ) from error
        return text
    raise ConfigError(f"{shown(given)} is no place.", remedy="Give a path or a URL, as text.")


def _named(place: Place, member: str, text: str) -> Place:
    if not member:
        raise ConfigError(f"{_shown(text)} names no array after '#'.", remedy="Write file.npz#array, or file.npz.")
    return Place(place.scheme, place.path, member)


def _has_scheme(text: str) -> bool:
    return _SCHEME.match(text.removeprefix(_FORMAT)) is not None


def _parse(text: str, schemes: tuple[str, ...]) -> Place:
    if not text.strip():
        raise ConfigError("an empty text does not name a place.", remedy="Give a path or a URL such as gs://b/p/.")
    if text != text.strip():
        raise ConfigError(f"{_shown(text)} begins or ends with white space.", remedy="Remove it (or %20 in a URL).")
    if _CONTROL.search(text):
        raise ConfigError(f"{_shown(text)} holds a control character.", remedy="Remove it.")
    place = text.removeprefix(_FORMAT).removesuffix(_PIPELINE)
    if not place:
        raise ConfigError(f"{_shown(text)} names a format, but no place.", remedy="Write precomputed://gs://b/p/.")
    if _LOOKS_LIKE_PIPELINE.search(place):
        raise ConfigError(
            f"{_shown(text)} is a pipeline that cannot be used here.",
            remedy=f"Only {_PIPELINE} is understood; for a folder with '|' in its name write a file:// URL with %7C.",
        )
    found = _SCHEME.fullmatch(place)
    if found is None:
        return Place("file", _absolute(place, text))
    scheme, rest = found[1].lower(), found[2]
    if len(scheme) == 1:
        raise ConfigError(
            f"{_shown(text)} looks like a path of Windows.", remedy=f"For a folder of this name write ./{place}."
        )
    if scheme not in schemes:
        also = f"For a folder of this name write ./{place}." if not rest.startswith("//") else ""
        usable = ", ".join(f"{name}://" for name in schemes)
        raise ConfigError(f"cannot use {_shown(text)}: {scheme!r} is none of {usable}.", remedy=also or None)
    if scheme == "file":
        return Place("file", _file_of_url(rest, text))
    if not rest.startswith("//"):
        raise ConfigError(f"{_shown(text)} is no URL.", remedy=f"Write {scheme}://{rest.lstrip('/')}.")
    return Place(scheme, _remote(scheme, rest[2:], text))


def _absolute(path: str, text: str) -> str:
    """A path from the root; refused where it is not sure which one is meant."""
    if "\\" in path:
        # The file driver takes it for a slash.
        raise ConfigError(f"{_shown(text)} holds a backslash.", remedy="Separate folders by '/'.")
    if _VARIABLE.search(path):
        raise ConfigError(
            f"{_shown(text)} names a variable, which is not replaced by its value.", remedy="Write the path out."
        )
    expanded = os.path.expanduser(path)  # noqa: PTH111 - says by its result that there is no such user
    if expanded.startswith("~"):
        raise ConfigError(
            f"{_shown(text)}: there is no such user.", remedy=f"For a folder of this name write ./{path}."
        )
    absolute = os.path.abspath(expanded)  # noqa: PTH100 - not resolved: links stay links
    absolute = "/" + absolute.lstrip("/")
    if ".." in expanded.split("/") and os.path.realpath(expanded) != os.path.realpath(absolute):
        raise ConfigError(
            f"{_shown(text)} goes up ('..') from a symbolic link, which has two meanings.",
            remedy=f"Write {absolute} or {os.path.realpath(expanded)}.",
        )
    if any(part.endswith(LOCK_SUFFIX) for part in absolute.split("/")):
        raise ConfigError(f"{_shown(text)}: names that end with {LOCK_SUFFIX} belong to lock files.")
    if len(absolute) > MAX_PATH or any(len(os.fsencode(part)) > MAX_NAME for part in absolute.split("/")):
        raise ConfigError(f"{_shown(text)} is too long for a path.", remedy=f"A name has at most {MAX_NAME} bytes.")
    try:
        quote(absolute)
    except UnicodeEncodeError as error:
        raise ConfigError(f"{_shown(text)} is not UTF-8.", remedy="Rename it, or make a link to it.") from error
    return absolute


def _file_of_url(rest: str, text: str) -> str:
    """Path of a ``file:`` URL: ``/path``, ``///path`` or ``//localhost/path``."""
    _check_url(rest, text)
    host, path = "", rest
    if rest.startswith("//"):
        host, separator, path = rest[2:].partition("/")
        path = separator + path
    if host not in ("", "localhost") or not path.startswith("/"):
        raise ConfigError(
            f"{_shown(text)} names no file of this machine: what stands after file:// is a host.",
            remedy="Write file:///path from the root, or the path alone.",
        )
    return _absolute(_decoded(path, text), text)


def _remote(scheme: str, rest: str, text: str) -> str:
    """Host or bucket and path, in normal form."""
    if scheme in ("http", "https"):
        if "#" in rest:
            raise ConfigError(f"{_shown(text)} holds '#'.", remedy="Write %23 for a '#' in a name.")
        try:
            host = urlsplit(f"{scheme}://{rest}").hostname
        except ValueError:
            host = None
        if not host:
            raise ConfigError(f"{_shown(text)} names no server.", remedy=f"Write {scheme}://server/folder/.")
        return rest
    _check_url(rest, text)
    path = _decoded(rest, text)
    if scheme in ("gs", "s3"):
        bucket, _, folder = path.partition("/")
        if not bucket:
            raise ConfigError(f"{_shown(text)} names no bucket.", remedy=f"Give {scheme}://bucket/folder/.")
        if not _BUCKET.fullmatch(bucket):
            raise ConfigError(f"{_shown(text)}: {bucket!r} cannot be the name of a bucket.")
        path = f"{bucket}/{folder}" if folder else bucket
    if {".", ".."} & set(path.split("/")):
        raise ConfigError(f"{_shown(text)}: '.' and '..' mean nothing in a bucket.", remedy="Write the path out.")
    return quote(path, safe=_SAFE)


def _check_url(rest: str, text: str) -> None:
    for mark, escape in (("#", "%23"), ("?", "%3F"), ("|", "%7C")):
        if mark in rest:
            raise ConfigError(f"{_shown(text)} holds {mark!r}.", remedy=f"Write {escape} for a {mark!r} in a name.")
    if _BAD_ESCAPE.search(rest):
        raise ConfigError(f"{_shown(text)} holds a '%' that encodes nothing.", remedy="Write %25 for a '%' in a name.")


def _decoded(path: str, text: str) -> str:
    if "%2f" in path.lower():
        raise ConfigError(f"{_shown(text)} holds an encoded slash.", remedy="Separate folders by '/'.")
    try:
        decoded = unquote(path, errors="strict")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_shown(text)} is not UTF-8 once it is decoded.") from error
    if _CONTROL.search(decoded):
        raise ConfigError(f"{_shown(text)} holds an encoded control character.")
    return decoded


def _shown(text: str) -> str:
    """A text for messages: nothing that a URL may keep secret, and not at any length."""
    text = re.sub(r"//[^/@?#]*@", "//…@", text)
    text = re.sub(r"\?.*", "?…", text, flags=re.DOTALL) if "://" in text else text
    return repr(text if len(text) <= 200 else f"{text[:200]}…")
