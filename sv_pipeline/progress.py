"""What an ingest tells whoever watches it, as an interface. Shows nothing itself."""

from __future__ import annotations

__all__ = ["Progress"]


class Progress:
    """Receives what happens; the base class ignores it."""

    def begin(self, name: str, total: int) -> None:
        """A step of ``total`` chunks begins."""

    def advance(self, chunks: int) -> None:
        """So many chunks of the step are done."""

    def end(self) -> None:
        """The step is complete."""
