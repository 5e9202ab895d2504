"""Keys of PyChunkedGraph's dataset files that have no meaning here. Knows only their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["WITHOUT_MEANING", "without_foreign_keys"]

WITHOUT_MEANING: dict[tuple[str, ...], frozenset[str]] = {
    ("graph_config",): frozenset({"ID", "OVERWRITE", "ROOT_COUNTERS"}),
    ("backend_client", "CONFIG"): frozenset({"CREDENTIALS", "MAX_ROW_KEY_COUNT"}),
    ("ocdbt_config",): frozenset({"populate_base", "sv_split_threshold"}),
    (): frozenset({"ingest_config"}),
}
"""Keys that are accepted but have no effect, by section."""
KEPT = frozenset({"ocdbt_config.populate_base", "ocdbt_config.sv_split_threshold", "ingest_config"})
"""Keys of these that stay in the configuration, because the graph's meta or registration passes them on."""


def without_foreign_keys(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a configuration without the keys that have no meaning here, and the dotted names of these keys.

    ``graph_config.ID`` replaces a missing ``graph_id``.
    """
    found: list[str] = []
    cleaned = _cleaned(raw, (), found)
    graph_config = raw.get("graph_config")
    named = graph_config.get("ID") if isinstance(graph_config, Mapping) else None
    if named and "graph_id" not in raw:
        cleaned["graph_id"] = named
        found.remove("graph_config.ID")
    return cleaned, found


def _cleaned(section: Mapping[str, Any], path: tuple[str, ...], found: list[str]) -> dict[str, Any]:
    meaningless = WITHOUT_MEANING.get(path, frozenset())
    cleaned: dict[str, Any] = {}
    for key, value in section.items():
        dotted = ".".join((*path, str(key)))
        if key in meaningless and value is not None:
            found.append(dotted)
            if dotted not in KEPT:
                continue
        inner = (*path, key)
        is_section = isinstance(value, Mapping) and any(known[: len(inner)] == inner for known in WITHOUT_MEANING)
        cleaned[key] = _cleaned(value, inner, found) if is_section else value
    return cleaned
