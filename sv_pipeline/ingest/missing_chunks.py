"""Storage chunks that a dataset's volumes lack: counted when a graph is registered, and for its reports."""

from __future__ import annotations

import logging

from sv_pipeline.grid import Box
from sv_pipeline.ingest import watershed
from sv_pipeline.registry import Dataset
from sv_pipeline.storage import kv
from sv_pipeline.storage.coverage import Coverage, check_coverage, coverage
from sv_pipeline.storage.precomputed import stored_scale
from sv_pipeline.storage.stored_scale import StoredScale

__all__ = ["chunks_of_sources", "missing_chunks", "report_missing_chunks"]

logger = logging.getLogger(__name__)

OURS = ".watershed/meta.json"


def _scales(dataset: Dataset) -> dict[str, tuple[StoredScale, Box | None]]:
    """The chunked volumes that an ingest reads, by configuration field, each with the box that is read; None = all."""
    source = dataset.config.source
    if source is None:
        return {"data_source.WATERSHED": (stored_scale(dataset.watershed_url), None)}
    return {f"source.{name}": found for name, found in watershed.source_scales(source).items()}


def chunks_of_sources(dataset: Dataset) -> dict[str, Coverage]:
    """Count the storage chunks that exist of each volume that an ingest reads, by configuration field.

    NumPy files are left out, since they have no chunks. In a watershed only mip 0 is counted; coarser mips that lack
    chunks are computed anew (`segmentation.base.given_mips`).
    """
    return {name: coverage(stored, part) for name, (stored, part) in _scales(dataset).items()}


def report_missing_chunks(dataset: Dataset) -> None:
    """Log which volumes lack chunks, and raise an error for more than a few, unless the configuration allows them.

    Raises
    ------
    InputError
        If more than a few chunks are missing (see `check_coverage`), or the existing ones cannot be decoded.
    """
    source, url = dataset.config.source, dataset.watershed_url
    if source is None:
        # Watersheds that were made by earlier versions lack the chunks that hold only background.
        allowed = dataset.config.data_source.fill_missing or kv.read_bytes(url, OURS) is not None
        field = "data_source.FILL_MISSING"
    else:
        allowed, field = source.fill_missing, "source.fill_missing"
    for name, (stored, part) in _scales(dataset).items():
        found = coverage(stored, part)
        if not allowed:
            check_coverage(found, field)
        stored.check_readable()
        if found.missing:
            logger.warning("%s: %s, first %s; they are read as background", name, found.text, found.example)


def missing_chunks(dataset: Dataset, *, needed: bool) -> dict[str, str]:
    """Describe the missing storage chunks of each volume, by configuration field.

    The result is empty if the ingest has read all its volumes already.

    Parameters
    ----------
    needed
        Whether this ingest makes the watershed from its source (see `stages.needs_watershed`).
    """
    done = dataset.base.is_complete()
    if done or (dataset.config.source is not None and not needed):
        return {}
    return {name: found.text for name, found in chunks_of_sources(dataset).items() if found.missing}
