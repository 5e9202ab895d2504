"""Bounded waits for locks of the operating system: how long to wait, what to log, which process holds the lock.

The system drops such a lock when its holder dies. A holder that is stopped (Ctrl-Z, a frozen virtual machine) keeps it.
Nobody may take the lock away from it, since it could go on at any moment. So other processes wait for a bounded time,
and then name the process and host that must go on or be ended. For that, each holder leaves a note beside the lock.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sv_pipeline.backoff import Backoff
from sv_pipeline.environment import number_in
from sv_pipeline.errors import UnavailableError

__all__ = ["NOTE_BYTES", "VARIABLE", "Holder", "Wait", "at_most", "doing", "lock_wait", "locked_by"]

VARIABLE = "SV_PIPELINE_LOCK_WAIT"
"""Environment variable for the longest wait, in seconds."""
DEFAULT_SECONDS = 60.0
SAY_AFTER = 3.0
"""Seconds of waiting after which the log first names the holder; each further message comes after twice the time."""
BACKOFF = Backoff(0.0005, 0.05, factor=1.5)
NOTE_BYTES = 1024
"""Length of a note, padded with blanks so that a short note overwrites a longer one completely."""
MAX_TEXT = 120
_PROC = Path("/proc")

_logger = logging.getLogger(__name__)
_bound: ContextVar[float | None] = ContextVar("bound", default=None)
_doing: ContextVar[str | None] = ContextVar("doing", default=None)
# Threads of a pool do not inherit what the thread that submitted their task is doing. The activity that began last is
# the best guess.
_begun: list[str] = []


def lock_wait() -> float:
    """Return the seconds that this process waits for a lock.

    Raises
    ------
    ConfigError
        If the environment variable does not hold a number of seconds.
    """
    seconds = number_in(VARIABLE, DEFAULT_SECONDS, meaning="seconds", may_be_zero=True)
    bound = _bound.get()
    return seconds if bound is None else min(seconds, bound)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Limit waits for locks during the block, for work that can as well be done another time."""
    token = _bound.set(seconds)
    try:
        yield
    finally:
        _bound.reset(token)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Describe what this process does in the block, as it reads after "which": "commits operation 12 of graph g"."""
    token = _doing.set(what)
    _begun.append(what)
    try:
        yield
    finally:
        _begun.remove(what)
        _doing.reset(token)


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    host: str
    pid: int
    doing: str
    since: float | None = None
    """Time at which it got the lock, in seconds since the epoch by its own clock."""

    @classmethod
    def this_process(cls) -> Holder:
        """Describe this process at this moment."""
        what = _doing.get() or (_begun[-1:] or [f"runs {_command(sys.argv)}"])[0]
        return cls(socket.gethostname(), os.getpid(), what[:MAX_TEXT], time.time())

    def encode(self) -> bytes:
        """Encode the holder as a note."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, note: bytes) -> Holder | None:
        """Decode a note; None if it is empty or incomplete."""
        try:
            value: dict[str, Any] = json.loads(note)
            return cls(str(value["host"]), int(value["pid"]), str(value["doing"]), float(value["since"]))
        except (ValueError, KeyError, TypeError):
            return None

    @property
    def is_stopped(self) -> bool:
        """Whether the process is stopped; False if it runs on another host, since that cannot be seen from here."""
        return self.host == socket.gethostname() and _state(self.pid) in ("T", "t")

    def __str__(self) -> str:
        since = "" if self.since is None else f", since {time.strftime('%H:%M:%S', time.localtime(self.since))}"
        stopped = "; it is stopped" if self.is_stopped else ""
        return f"process {self.pid} on host {self.host}, which {self.doing}{since}{stopped}"

    @property
    def remedy(self) -> str:
        """What a person can do about the lock."""
        return (
            f"If that process is stopped, let it go on ('kill -CONT {self.pid}' on {self.host}) or end it "
            f"('kill -9 {self.pid}'; nothing is lost, because recovery finishes its operation). "
            f"Nothing else has to be removed. {VARIABLE} sets the longest wait in seconds."
        )


class Wait:
    """One wait for a lock; the caller calls :meth:`pause` after each failed attempt."""

    def __init__(self, name: str, holder: Callable[[], Holder | None]) -> None:
        """Begin to wait.

        Parameters
        ----------
        name
            Name of the lock, as in "the commit guard of file:///x/".
        holder
            Finds the process that holds the lock; called only for messages.
        """
        self._name, self._holder = name, holder
        self._began = time.monotonic()
        self._tries, self._say_at = 0, SAY_AFTER

    def pause(self) -> None:
        """Wait a little; raise UnavailableError when the longest wait is over."""
        waited, bound = time.monotonic() - self._began, lock_wait()
        if waited >= bound:
            holder = self._holder()
            raise UnavailableError(
                f"{self._name} was locked for {waited:.0f} s by {holder or 'a process that left no note'}.",
                remedy=holder.remedy if holder else "Find out which process has it: 'fuser -v' names it.",
                repeat="Then run this again.",
            )
        if waited >= self._say_at:
            self._say_at = 2 * waited
            _logger.warning(
                "waiting for %s, locked by %s; %.0f s left",
                self._name,
                self._holder() or "a process that left no note",
                bound - waited,
            )
        self._tries += 1
        time.sleep(min(BACKOFF.jittered(self._tries), bound - waited))


def locked_by(file: Path, kind: str, byte: int | None = None) -> Holder | None:
    """Return the process that holds a lock on a file, as the kernel of this host reports it.

    The result is None if no process holds one, or if the system does not tell. The file is not opened, because closing
    it would drop the locks that this process itself has on it.

    Parameters
    ----------
    file
        The locked file.
    kind
        ``FLOCK`` or ``POSIX``.
    byte
        Position of a POSIX lock in the file; None for any position.
    """
    try:
        stat = file.stat()
        lines = (_PROC / "locks").read_text().splitlines()
    except OSError:
        return None
    place = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    for fields in (line.split() for line in lines):
        if len(fields) != 8 or fields[1] != kind or fields[5] != place:
            continue
        if kind == "POSIX" and fields[3] != "WRITE":
            continue  # SQLite's readers
        last = None if fields[7] == "EOF" else int(fields[7])
        if byte is None or (int(fields[6]) <= byte and (last is None or byte <= last)):
            return Holder(socket.gethostname(), int(fields[4]), f"runs {_command_of(int(fields[4]))}")
    return None


def _state(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _command_of(pid: int) -> str:
    try:
        return _command((_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").strip("\0").split("\0"))
    except OSError:
        return "an unknown command"


def _command(words: list[str]) -> str:
    text = " ".join(words)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
