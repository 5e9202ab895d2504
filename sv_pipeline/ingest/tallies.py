"""The tally of a block of chunks: which are done or failed, and sums over their done-markers. Reads no table.

A tally grows by what ingest rows say (`Markers`). Each chunk enters it once, however often its marker is looked at, so
the order and the repetition of additions do not matter, and a tally equals the count of the markers that it has seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import CorruptionError

__all__ = ["DONE", "MINUTES_KEPT", "SUMS", "Example", "Markers", "Tally"]

IntArray = npt.NDArray[np.int64]
StateArray = npt.NDArray[np.uint8]

MISSING, DONE, FIRST_FAILURE = 0, 1, 2
"""States of a chunk; the states from ``FIRST_FAILURE`` on are the kinds of failures, in their order."""
MOST_KINDS = 250
SUMS = ("nodes", "supervoxels", "edges", "seconds")
"""Numbers of a done-marker that are summed up. Seconds are kept in units of 0.1 ms, so that sums are exact."""
TICKS_PER_SECOND = 10_000
MINUTES_KEPT = 15
"""Minutes before the last end of a task for which the number of finished chunks is kept."""


@dataclass(frozen=True)
class Example:
    """The failure of one chunk, the first of its kind."""

    position: int
    """Position of the chunk in its block."""
    error: str
    worker: str
    time: int
    """Time of the failure in milliseconds since the epoch."""

    @classmethod
    def of(cls, position: int, failure: dict[str, Any]) -> Example:
        """Read the value of a failure in an ingest row."""
        return cls(position, str(failure["error"]), str(failure.get("worker", "")), int(failure.get("time", 0)))


@dataclass(frozen=True)
class Markers:
    """What the ingest rows of some chunks of a block say."""

    positions: IntArray
    """Positions in the block of the chunks with a done-marker, shape (n,)."""
    numbers: dict[str, IntArray]
    """``SUMS``, and ``started`` and ``finished`` in milliseconds since the epoch; each has shape (n,)."""
    failures: Sequence[tuple[int, dict[str, Any]]]
    """Position and failure of each chunk that failed and has no done-marker."""

    @classmethod
    def decode(
        cls, positions: IntArray, done: Sequence[bytes], failures: Iterable[tuple[int, dict[str, Any]]]
    ) -> Markers:
        """Decode the done-markers (JSON) of the chunks at some positions, shape (n,), all at once."""
        try:
            values: list[dict[str, Any]] = json.loads(b"[" + b",".join(done) + b"]")
        except ValueError as error:
            raise CorruptionError(f"a done-marker is not JSON: {error}.") from error
        n = len(values)
        numbers = {
            name: np.fromiter((value.get(name, 0) for value in values), np.int64, n) for name in (*SUMS[:3], "finished")
        }
        seconds = np.fromiter((value.get("seconds", 0) for value in values), np.float64, n)
        numbers["seconds"] = np.rint(TICKS_PER_SECOND * seconds).astype(np.int64)
        # Markers of earlier versions have no start.
        started = (value.get("started", value.get("finished", 0)) for value in values)
        numbers["started"] = np.fromiter(started, np.int64, n)
        return cls(positions, numbers, tuple(failures))


@dataclass
class Tally:
    """The count of a block of chunks."""

    states: StateArray
    """State of each chunk, shape (chunks,)."""
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SUMS, 0))
    first_started: int | None = None
    last_finished: int | None = None
    recent: dict[int, int] = field(default_factory=dict)
    """Number of chunks done in each of the last minutes, by minute since the epoch."""
    kinds: list[str] = field(default_factory=list)
    """Kinds of failures, in the order of their states."""
    examples: dict[str, Example] = field(default_factory=dict)
    """The first failure of each kind."""

    @classmethod
    def empty(cls, chunks: int) -> Tally:
        """Return the tally of a block in which nothing is done."""
        return cls(np.zeros(chunks, np.uint8))

    @property
    def done(self) -> npt.NDArray[np.bool_]:
        """Whether each chunk is done, shape (chunks,)."""
        return np.asarray(self.states == DONE, np.bool_)

    @property
    def complete(self) -> bool:
        """Whether all chunks are done."""
        return bool(self.done.all())

    # -- counting -------------------------------------------------------------------------------------------------

    def add(self, asked: IntArray, markers: Markers) -> bool:
        """Take in what the ingest rows of the chunks at positions ``asked`` say; return whether that changed anything.

        They must not contradict the tally (`is_contradicted`).
        """
        before = self.states.copy(), list(self.kinds), dict(self.examples)
        self._add_done(markers)
        others = asked[self.states[asked] != DONE]
        self.states[others] = MISSING
        for position, failure in markers.failures:
            self._add_failure(position, failure)
        self._forget_kinds()
        return not (np.array_equal(before[0], self.states) and before[1] == self.kinds and before[2] == self.examples)

    def is_contradicted(self, asked: IntArray, markers: Markers) -> bool:
        """Return whether a chunk at ``asked`` that was done has no marker any more; then all must be counted anew."""
        marked = np.zeros(len(self.states), np.bool_)
        marked[markers.positions] = True
        return bool((self.done[asked] & ~marked[asked]).any())

    def _add_done(self, markers: Markers) -> None:
        new = self.states[markers.positions] != DONE
        if not new.any():
            return
        self.states[markers.positions[new]] = DONE
        for name in SUMS:
            self.sums[name] += int(markers.numbers[name][new].sum())
        started, finished = int(markers.numbers["started"][new].min()), markers.numbers["finished"][new]
        self.first_started = started if self.first_started is None else min(self.first_started, started)
        last = int(finished.max())
        self.last_finished = last if self.last_finished is None else max(self.last_finished, last)
        minutes, counts = np.unique(finished // 60_000, return_counts=True)
        for minute, count in zip(minutes.tolist(), counts.tolist(), strict=True):
            self.recent[minute] = self.recent.get(minute, 0) + count
        oldest = self.last_finished // 60_000 - MINUTES_KEPT
        self.recent = {minute: count for minute, count in sorted(self.recent.items()) if minute > oldest}

    def _add_failure(self, position: int, failure: dict[str, Any]) -> None:
        if self.states[position] == DONE:
            return
        kind = str(failure.get("kind", ""))
        if kind not in self.kinds:
            if len(self.kinds) == MOST_KINDS:
                kind = self.kinds[-1]
            else:
                self.kinds.append(kind)
        self.states[position] = FIRST_FAILURE + self.kinds.index(kind)
        known = self.examples.get(kind)
        if known is None or position <= known.position:
            self.examples[kind] = Example.of(position, failure)

    def _forget_kinds(self) -> None:
        """Sort the kinds, and drop those of which no chunk is left."""
        codes = np.zeros(256, np.uint8)
        codes[DONE] = DONE
        old = {kind: FIRST_FAILURE + i for i, kind in enumerate(self.kinds)}
        self.kinds = sorted(kind for kind, code in old.items() if (self.states == code).any())
        for i, kind in enumerate(self.kinds):
            codes[old[kind]] = FIRST_FAILURE + i
        self.states = codes[self.states]
        still = {FIRST_FAILURE + i: kind for i, kind in enumerate(self.kinds)}
        self.examples = {
            kind: e for kind, e in self.examples.items() if still.get(int(self.states[e.position])) == kind
        }

    def failed(self, kind: str) -> IntArray:
        """Return the positions of the chunks with a failure of one kind, ascending."""
        return np.flatnonzero(self.states == FIRST_FAILURE + self.kinds.index(kind))

    def outdated_examples(self) -> IntArray:
        """Return the positions of the chunks whose failure must be read to have the first example of each kind."""
        firsts = {kind: int(self.failed(kind)[0]) for kind in self.kinds}
        known = {kind: example.position for kind, example in self.examples.items()}
        return np.unique([at for kind, at in firsts.items() if known.get(kind) != at]).astype(np.int64)

    # -- stored form ----------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, Any]:
        """Return the numbers in their stored form; the states are stored beside them."""
        failures = [
            [kind, len(self.failed(kind)), e.position, e.error, e.worker, e.time]
            for kind in self.kinds
            for e in [self.examples[kind]]
        ]
        return {
            "chunks": len(self.states),
            "done": int(self.done.sum()),
            "sums": [self.sums[name] for name in SUMS],
            "first": self.first_started,
            "last": self.last_finished,
            "recent": [[minute, count] for minute, count in self.recent.items()],
            "failures": failures,
        }

    @classmethod
    def of(cls, counts: dict[str, Any], states: StateArray) -> Tally:
        """Read the stored form."""
        try:
            failures = [(str(kind), Example(*rest)) for kind, _, *rest in counts["failures"]]
            if len(states) != counts["chunks"]:
                raise ValueError(f"{len(states)} states of {counts['chunks']} chunks")  # noqa: TRY301
            return cls(
                states=states.copy(),
                sums=dict(zip(SUMS, counts["sums"], strict=True)),
                first_started=counts["first"],
                last_finished=counts["last"],
                recent=dict(counts["recent"]),
                kinds=[kind for kind, _ in failures],
                examples=dict(failures),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(
                f"the counts of a block cannot be read: {error!r}.",
                remedy="Delete the rows whose keys begin with 'sv_pipeline:counts'; the next ingest counts anew.",
            ) from error
