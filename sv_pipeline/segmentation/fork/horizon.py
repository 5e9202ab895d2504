"""The beginning of a fork's history, and the error for a version that is not part of it. Reads only."""

from __future__ import annotations

from datetime import UTC, datetime

import tensorstore as ts

from sv_pipeline.errors import NotFoundError
from sv_pipeline.storage.generations import current_version
from sv_pipeline.storage.history import oldest_generation
from sv_pipeline.storage.ocdbt import Version

__all__ = ["no_such_version"]


def no_such_version(base: ts.KvStore, what: str, version: Version) -> NotFoundError:
    """Return the error for a version that a fork does not have; it names the oldest one that can be read.

    Parameters
    ----------
    base
        Underlying key space of the fork.
    what
        Description of the fork for the message, such as ``the fork of graph 'g'``.
    """
    oldest, latest = oldest_generation(base), current_version(base)
    if isinstance(version, int) and version > latest.generation:
        return NotFoundError(
            f"{what} has no generation {version}.", remedy=f"Its latest generation is {latest.generation}."
        )
    kind = "generation" if isinstance(version, int) else "version"
    begins = datetime.fromtimestamp(oldest.commit_time / 1e9, UTC).isoformat(timespec="milliseconds")
    return NotFoundError(
        f"{what} has no {kind} {version}: its history begins with generation {oldest.number}, "
        f"of {begins.replace('+00:00', 'Z')}.",
        remedy="Read a later version. The retention policy of the graph decides how much of the history is kept.",
    )
