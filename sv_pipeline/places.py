"""Places as users name them, paths or URLs: one parser for every field, option and variable. Opens nothing.

::

    /data/ws  ws  ~/ws             a path: every character is literal, including ``#``, ``|``, ``?`` and ``%20``
    file:///data/a%20b             a URL, percent-encoded; likewise gs://, memory://, s3://, http://, https://
    precomputed://gs://bucket/ws   the same places, as Neuroglancer writes them
    gs://bucket/ws/|neuroglancer-precomputed:
    run#3/a.npz#seg                one array of an ``.npz`` file

Any other text is refused. A text is never taken for another place than the one that it names.
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
"""Schemes of folders that the pipeline can write to."""
READABLE = (*WRITABLE, "s3", "http", "https")
"""Schemes of volumes that the pipeline can read."""

MAX_PATH, MAX_NAME = 4096, 255
"""Largest lengths in bytes that Linux file systems accept."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_FORMAT = "precomputed://"
_PIPELINE = "|neuroglancer-precomputed:"
_LOOKS_LIKE_PIPELINE = re.compile(r"\|[a-z][a-z0-9._-]*:")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_VARIABLE = re.compile(r"(?:^|/)\$\{?[A-Za-z_]")
_BUCKET = re.compile(r"[a-z0-9_-][a-z0-9._-]{1,220}[a-z0-9]")
_SAFE = "/:@!$&'()*+,;=~"
"""Characters that need no encoding in the path of a URL."""
LOCK_SUFFIX = ".__lock"
"""Suffix of lock files of TensorStore's file driver, which refuses such names itself."""


@dataclass(frozen=True)
class Place:
    """A parsed place."""

    scheme: str
    """One of READABLE."""
    path: str
    """For a file, its absolute path; otherwise the part after ``://``, percent-encoded."""
    member: str | None = None
    """Name of an array inside an ``.npz``."""

    @property
    def file(self) -> Path | None:
        """The local file or folder; None for other schemes."""
        return Path(self.path) if self.scheme == "file" else None

    @property
    def folder_url(self) -> str:
        """The URL of the place as a folder, ending with ``/``."""
        if self.scheme == "file":
            return f"file://{quote(self.path.rstrip('/'))}/"
        path, mark, query = self.path.partition("?")  # only http has a query; elsewhere the mark is encoded
        return f"{self.scheme}://{path.rstrip('/')}/{mark}{query}" if path.strip("/") else f"{self.scheme}://"

    def inside(self, name: str) -> Place:
        """Return a folder in this one, whose name needs no encoding."""
        return Place(self.scheme, f"{self.path.rstrip('/')}/{name}" if self.path.strip("/") else f"{self.path}{name}")

    @property
    def text(self) -> str:
        """A path or URL that names this place independently of the current folder."""
        member = "" if self.member is None else f"#{self.member}"
        if self.scheme != "file":
            return f"{self.scheme}://{self.path}{member}"
        as_url = _LOOKS_LIKE_PIPELINE.search(self.path) or self.path != self.path.rstrip()
        as_url = as_url or (".npz#" in self.path and self.member is None)
        return (f"file://{quote(self.path)}" if as_url else self.path) + member


def parse_folder(text: str | os.PathLike[str]) -> Place:
    """Parse a folder to write to: a path, or a URL with scheme ``file``, ``gs`` or ``memory``.

    Raises
    ------
    ConfigError
        If the text is not understood; the message suggests how to write it.
    """
    text = _text(text)
    if is_spec(text):
        raise ConfigError(
            f"{_shown(text)} looks like a spec of TensorStore, which cannot name a folder here.",
            remedy="Give a path, or a URL such as gs://bucket/folder/; for a folder of this name write ./{….",
        )
    place = _parse(text, WRITABLE)
    if place.path == "/":
        raise ConfigError(f"{_shown(text)} is the root of all files.", remedy="Name a folder below it.")
    return place


def local_folder(text: str | os.PathLike[str], *, what: str = "the folder") -> Path:
    """Parse a folder on this machine, given as a path or ``file`` URL; ConfigError for anything else."""
    place = parse_folder(text)
    if place.file is None:
        raise ConfigError(f"{what} must be on a local disk, not {_shown(_text(text))}.", remedy="Give a path.")
    return place.file


def parse_source(text: str) -> Place:
    """Parse a file or volume to read, optionally with the name of an array: ``run#3/a.npz#seg``.

    If several ``.npz#`` occur, the last one whose file exists separates the file from the array. If the whole text is
    an existing path, it contains no array name.

    Raises
    ------
    ConfigError
        If the text is not understood; the message suggests how to write it.
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
    """Whether a text is a TensorStore spec (JSON) rather than a place."""
    return text.lstrip().startswith("{")


def _text(given: object) -> str:
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{shown(text)} is not a place: it contains invalid characters.",
                remedy="Rename it: names must be UTF-8.",
            ) from error
        return text
    raise ConfigError(f"{shown(given)} is not a place.", remedy="Give a path or a URL, as text.")


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
        raise ConfigError(f"{_shown(text)} names a format, but not a place.", remedy="Write precomputed://gs://b/p/.")
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
            f"{_shown(text)} looks like a Windows path.", remedy=f"For a folder of this name write ./{place}."
        )
    if scheme not in schemes:
        also = f"For a folder of this name write ./{place}." if not rest.startswith("//") else ""
        usable = ", ".join(f"{name}://" for name in schemes)
        raise ConfigError(f"cannot use {_shown(text)}: {scheme!r} is none of {usable}.", remedy=also or None)
    if scheme == "file":
        return Place("file", _file_of_url(rest, text))
    if not rest.startswith("//"):
        raise ConfigError(f"{_shown(text)} is not a URL.", remedy=f"Write {scheme}://{rest.lstrip('/')}.")
    return Place(scheme, _remote(scheme, rest[2:], text))


def _absolute(path: str, text: str) -> str:
    """Make a path absolute; refuse it where its meaning is ambiguous."""
    if "\\" in path:
        # TensorStore's file driver treats a backslash as a slash.
        raise ConfigError(f"{_shown(text)} holds a backslash.", remedy="Separate folders by '/'.")
    if _VARIABLE.search(path):
        raise ConfigError(
            f"{_shown(text)} names a variable, but variables are not expanded here.", remedy="Write the path out."
        )
    expanded = os.path.expanduser(path)  # noqa: PTH111 - leaves the path unchanged if there is no such user
    if expanded.startswith("~"):
        raise ConfigError(
            f"{_shown(text)}: there is no such user.", remedy=f"For a folder of this name write ./{path}."
        )
    absolute = os.path.abspath(expanded)  # noqa: PTH100 - does not resolve symbolic links
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
    """Return the path of a ``file:`` URL: ``/path``, ``///path`` or ``//localhost/path``."""
    _check_url(rest, text)
    host, path = "", rest
    if rest.startswith("//"):
        host, separator, path = rest[2:].partition("/")
        path = separator + path
    if host not in ("", "localhost") or not path.startswith("/"):
        raise ConfigError(
            f"{_shown(text)} names no file on this machine: the part after file:// is a host.",
            remedy="Write file:///path from the root, or the path alone.",
        )
    return _absolute(_decoded(path, text), text)


def _remote(scheme: str, rest: str, text: str) -> str:
    """Return host or bucket and path in normal form."""
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
        raise ConfigError(f"{_shown(text)}: '.' and '..' have no meaning in a bucket.", remedy="Write the path out.")
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
    """Shorten a text for messages, and leave out the parts of a URL that may be secret."""
    text = re.sub(r"//[^/@?#]*@", "//…@", text)
    text = re.sub(r"\?.*", "?…", text, flags=re.DOTALL) if "://" in text else text
    return repr(text if len(text) <= 200 else f"{text[:200]}…")
