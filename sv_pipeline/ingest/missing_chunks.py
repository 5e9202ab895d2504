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
    """Each volume in chunks that an ingest reads, with the part of it that is read, by the name of its field."""
    source = dataset.config.source
    if source is None:
        return {"data_source.WATERSHED": (stored_scale(dataset.watershed_url), None)}
    return {f"source.{name}": found for name, found in watershed.source_scales(source).items()}


def chunks_of_sources(dataset: Dataset) -> dict[str, Coverage]:
    """How many storage chunks of each volume that an ingest reads are there, by the name of its field.

    Files of NumPy, which have no chunks, are not among them. Of a watershed mip 0 is counted; coarser mips that lack
    chunks are made anew (`segmentation.base.given_mips`).
    """
    return {name: coverage(stored, part) for name, (stored, part) in _scales(dataset).items()}


def report_missing_chunks(dataset: Dataset) -> None:
    """Say which volumes lack chunks; refuse more than a few, unless the configuration allows for them.

    Raises
    ------
    InputError
        If more than a few are missing (see `check_coverage`), or those that are there cannot be decoded.
    """
    source, url = dataset.config.source, dataset.watershed_url
    if source is None:
        # Watersheds that earlier versions have made lack the chunks that are all background.
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
            logger.warning("%s: %s, first %s; they are background", name, found.text, found.example)


def missing_chunks(dataset: Dataset, *, needed: bool) -> dict[str, str]:
    """What `chunks_of_sources` finds missing, as text by field; nothing where all has been read before.

    Parameters
    ----------
    needed
        Whether the watershed is made of a source that is there.
    """
    done = dataset.base.is_complete()
    if done or (dataset.config.source is not None and not needed):
        return {}
    return {name: found.text for name, found in chunks_of_sources(dataset).items() if found.missing}
