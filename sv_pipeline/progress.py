"""Progress of long work: an interface that a terminal or Dagster implements. Shows nothing itself."""

from __future__ import annotations

__all__ = ["Progress"]


class Progress:
    """Receives the progress of a piece of work; this base class ignores it."""

    def begin(self, name: str, total: int, done: int = 0) -> None:
        """Begin a step of ``total`` chunks, of which ``done`` were done before."""

    def advance(self, chunks: int) -> None:
        """Report that so many further chunks of the step are done."""

    def end(self) -> None:
        """Report that the step is complete."""
