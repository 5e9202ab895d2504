"""Announces a graph's fork to other software: in the graph's meta, and in documents that are published beside the fork.

Nothing else in the meta changes. The documents are ``ocdbt/.readers/<graph id>/contract.json``, which holds the specs
of all mips, and ``info`` beside it, for graphene data sources.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from sv_pipeline.errors import ConflictError, NotFoundError
from sv_pipeline.graph.graphene_info import graphene_info
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.fork.contract import publish
from sv_pipeline.table import keys
from sv_pipeline.table.columns import META_KEY
from sv_pipeline.table.interface import CellMatch, SetCell
from sv_pipeline.table.meta import OCDBT_CONFIG, TableMeta, decode_meta, encode_meta, ocdbt_settings

__all__ = ["announce_fork", "publish_documents"]

ATTEMPTS = 5


def announce_fork(dataset: Dataset) -> None:
    """Enter in the meta of a graph that it has a fork, with the fork's settings, unless the meta says so already.

    Values of the base's info file take precedence over those in the meta, and these over those of the configuration.
    The meta of a graph whose voxels are the base itself is not changed, since software that finds these settings would
    look for a fork.
    """
    if dataset.fork.is_in_place():
        return
    for _ in range(ATTEMPTS):
        try:
            row = dataset.table.read_rows([keys.META], [META_KEY], newest_only=True).get(keys.META)
        except NotFoundError:
            row = None
        if not row:
            return  # voxels may be made before the table
        stored = row[META_KEY][0].value
        meta = decode_meta(stored, f"the meta of table {dataset.table.name!r}")
        wanted = _announced(dataset, meta)
        if wanted == meta:
            return
        cell = SetCell(META_KEY, encode_meta(wanted))
        if dataset.table.check_and_mutate(keys.META, [CellMatch(META_KEY, stored)], if_matched=[cell]):
            return
    raise ConflictError(
        f"the meta of table {dataset.table.name!r} was changed by other software at every attempt.",
        repeat="Try again.",
    )


def publish_documents(dataset: Dataset) -> None:
    """Publish the documents with which readers and viewers open the graph's voxels, replacing earlier ones."""
    documents = {"contract.json": dataset.fork.contract()}
    with suppress(NotFoundError):  # voxels may be made before the table
        documents["info"] = graphene_info(dataset.graph)
    publish(dataset.watershed_url, dataset.graph_id, documents)


def _announced(dataset: Dataset, meta: TableMeta) -> TableMeta:
    base, config = dataset.base, dataset.config
    asked = ocdbt_settings(config)
    known: dict[str, Any] = dict(meta.custom_data.get(OCDBT_CONFIG) or {})
    info = base.info()
    readable = info.form.manifest_kind == "single" and not info.refers
    settings = {**asked, **known, **base.settings(), "enabled": config.ocdbt_config.enabled and readable}
    return replace(meta, custom_data={**meta.custom_data, OCDBT_CONFIG: settings})
