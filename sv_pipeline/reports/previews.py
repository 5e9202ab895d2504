"""Previews of edits with numbers and a picture, for people. Nothing is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

from sv_pipeline.edits import MergePreview, SplitPreview
from sv_pipeline.reports.edit_numbers import merge_numbers, preview_numbers
from sv_pipeline.reports.sizes import PUBLISHED_WIDTH, parse_width

__all__ = ["PreviewedMerge", "PreviewedSplit"]


@dataclass(frozen=True, eq=False, repr=False)
class _Previewed(ABC):
    """The common part of both kinds of previews; Jupyter shows the picture automatically."""

    draw: Callable[[int], bytes] | None = None
    """Draws the preview as PNG of a width in pixels."""

    @classmethod
    def of(cls, found: SplitPreview | MergePreview, draw: Callable[[int], bytes]) -> Self:
        """Make a preview that can be drawn."""
        return cls(**{field.name: getattr(found, field.name) for field in fields(found)}, draw=draw)

    @property
    @abstractmethod
    def numbers(self) -> dict[str, Any]:
        """Numbers of the edit by name, as plain values; with ``reason`` and ``message`` if it would be refused."""

    @property
    def legal(self) -> bool:
        """Whether the edit would be made."""
        return bool(self.numbers["legal"])

    def picture(self, *, width: int = PUBLISHED_WIDTH) -> bytes:
        """Draw three slices through the place of the edit, now and after it, as PNG of a width in pixels."""
        assert self.draw is not None
        return self.draw(parse_width(width))

    def _repr_png_(self) -> bytes:
        return self.picture()

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.numbers.items() if name != "message")
        return f"<{type(self).__name__}: {said}>"


@dataclass(frozen=True, eq=False, repr=False)
class PreviewedSplit(_Previewed, SplitPreview):
    """The preview of a split, with numbers and a picture."""

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """Numbers of the cut by name, as plain values; with ``reason`` and ``message`` if it would be refused."""
        return preview_numbers(self)


@dataclass(frozen=True, eq=False, repr=False)
class PreviewedMerge(_Previewed, MergePreview):
    """The preview of a merge, with numbers and a picture."""

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """Numbers of the merge by name, as plain values; with ``reason`` and ``message`` if it would be refused."""
        return merge_numbers(self)
