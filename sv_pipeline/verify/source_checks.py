"""Check that the watershed's objects are still those to which its base refers. Reads listings, but no voxels."""

from __future__ import annotations

from sv_pipeline.errors import NotFoundError
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.source_record import changes_of_source
from sv_pipeline.verify.report import Outcome

__all__ = ["check_source"]

RESTORE = "restore the version that was there when the base was made, or wipe the base and build it again"


def check_source(outcome: Outcome, base: Base, *, sample: int | None = None) -> None:
    """Compare sizes and versions of the watershed's objects with those that the base refers to.

    Parameters
    ----------
    sample
        Number of populate tasks whose objects are compared; None = all.
    """
    try:
        info = base.info()
    except NotFoundError:
        outcome.skipped = "there is no base: the graph was built without voxels"
        return
    if not info.refers:
        return  # the base holds copies, so that the watershed may change
    found = changes_of_source(info, at_most=sample)
    outcome.checked = found.looked_at
    if found.copied_from is not None:
        outcome.warning(
            "the base was made when its watershed was elsewhere: only the sizes of objects can be compared.",
            found.copied_from,
        )
    for names, what in (
        (found.changed, "an object of the watershed is not the version that the base refers to"),
        (found.gone, "an object of the watershed that the base refers to is gone"),
        (found.appeared, "an object has appeared in the watershed where the base shows background"),
    ):
        if names:
            outcome.error(f"{what}: {RESTORE}.", names[0], len(names))
