"""Secrets in texts: how they are recognised and masked. Knows no place where texts go.

Passwords and tokens reach the pipeline inside of places: ``https://user:password@host/``, ``?token=...``, parameters of
signed URLs, and ``Authorization`` or ``Cookie`` headers of a TensorStore spec. The pipeline uses them but never shows
them: the text of every error, log record, dump, metadata entry and published description goes through `redacted`
first. Secret values of a configuration (see `remember`) are masked wherever they appear, so that a message that quotes
a part of a URL does not show them either.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

__all__ = ["guard_logging", "redacted", "redacted_value", "remember", "scrub"]

MASK = "***"
MIN_LENGTH = 6
"""Characters. A shorter value is masked only where it is marked as a secret, since it may occur in other words."""

_NAME = (
    r"[\w.\-]*(?:token|secret|passw(?:or)?d|signature|credential|api[_\-]?key|access[_\-]?key|private[_\-]?key"
    r"|auth(?!or(?!iz))|cookie|session)[\w.\-]*"
)
"""Names of parameters, headers and JSON fields whose values are secrets."""
_PARAMETER_NAME = rf"(?:{_NAME}|key|sig|pwd|pass|jwt|sas|code|googleaccessid)"
_QUOTE = r"\\*[\"']"
_USER = re.compile(
    r"(?P<before>://|%3A%2F%2F)"
    r"(?P<secret>(?:(?!%2F|%22)[^/\s\"'|<>?#\\])+|[^/\s:@\"'\\]+:(?!\d+/)[^\s@\"'|<>?#\\]+)(?P<after>@|%40)",
    re.I,
)
_PARAMETER = re.compile(
    rf"(?P<before>(?:[?&;#]|%3F|%26){_PARAMETER_NAME}(?:=|%3D))(?P<secret>(?:(?!%26|%22|%7C)[^\s&\"'|<>\\])+)(?P<after>)",
    re.I,
)
_HEADER = re.compile(
    r"(?P<before>(?:\b(?:proxy-)?authorization|\b(?:set-)?cookie|\bx-[\w\-]*(?:key|token|secret|auth)[\w\-]*)"
    rf"(?:{_QUOTE})?\s*[:=]\s*(?:{_QUOTE})?)(?P<secret>[^\"'\\\n\]}}]+)(?P<after>)",
    re.I,
)
_JSON_FIELD = re.compile(rf"(?P<before>{_QUOTE}{_NAME}{_QUOTE}\s*:\s*{_QUOTE})(?P<secret>[^\"'\\]+)(?P<after>)", re.I)
_LISTED_HEADER = re.compile(rf"(?P<before>{_QUOTE}{_NAME}\s*:\s*)(?P<secret>[^\"'\\]+)(?P<after>(?={_QUOTE}))", re.I)
_SCHEME = re.compile(r"(?P<before>\b(?:bearer|basic)\s+)(?P<secret>[\w.~+/\-]{8,}=*)(?P<after>)", re.I)
_PATTERNS = (_USER, _PARAMETER, _HEADER, _JSON_FIELD, _LISTED_HEADER, _SCHEME)
_FIELD = re.compile(_NAME, re.I)

_known: set[str] = set()


def redacted(text: str) -> str:
    """Replace every secret in the text by ``***``."""
    for value in sorted(_known, key=len, reverse=True):
        if value in text:
            text = text.replace(value, MASK)
    for pattern in _PATTERNS:
        text = pattern.sub(lambda found: f"{found['before']}{MASK}{found['after']}", text)
    return text


def redacted_value(value: Any) -> Any:
    """Replace every secret in the texts of JSON-like data, and the values of fields that are named like one."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {
            redacted(key) if isinstance(key, str) else key: MASK
            if isinstance(key, str) and isinstance(item, str) and _FIELD.fullmatch(key)
            else redacted_value(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted_value(item) for item in value]
    return value


def remember(value: Any) -> None:
    """Collect the secrets of a configuration, so that this process masks them wherever they appear from now on."""
    for text in _texts(value):
        for pattern in _PATTERNS:
            for found in pattern.finditer(text):
                _note(found["secret"])
        name, colon, secret = text.partition(":")
        if colon and _FIELD.fullmatch(name.strip()):
            _note(secret.strip())


def _texts(value: Any, field: str = "") -> Iterator[str]:
    """Yield all texts of JSON-like data; JSON inside of a text is parsed as well."""
    if isinstance(value, str):
        yield value
        if field and _FIELD.fullmatch(field):
            _note(value)
        if value.lstrip().startswith("{"):
            try:
                yield from _texts(json.loads(value))
            except ValueError:
                return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _note(secret: str) -> None:
    parts = {secret, secret.partition(":")[2], secret.partition(" ")[2], *re.split(r"[;,]\s*\w+=|^\w+=", secret)}
    for part in parts:
        for form in (part, unquote(part), quote(part, safe=""), json.dumps(part)[1:-1]):
            if len(form.strip()) >= MIN_LENGTH and MASK not in form:
                _known.add(form.strip())


def scrub(error: BaseException) -> None:
    """Mask secrets in the texts of an error, its causes and its context, in place, so that it can be shown."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.args = tuple(redacted(part) if isinstance(part, str) else part for part in current.args)
        if notes := getattr(current, "__notes__", None):
            notes[:] = [redacted(note) for note in notes]
        pending += [current.__cause__, current.__context__]


def guard_logging() -> None:
    """Mask secrets in all log records of this package from now on."""
    make = logging.getLogRecordFactory()
    if getattr(make, "masks_secrets", False):
        return

    def make_masked(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        if str(record.name).partition(".")[0] == "sv_pipeline":
            try:
                record.msg, record.args = redacted(record.getMessage()), ()
            except (TypeError, ValueError):
                record.msg, record.args = redacted(f"{record.msg} {record.args}"), ()
            if record.exc_info and record.exc_info[1] is not None:
                scrub(record.exc_info[1])
        return record

    make_masked.masks_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_masked)
