"""Making a watershed in a test, and reading back what it holds."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np

from sv_pipeline.config import parse_config
from sv_pipeline.ingest import formats
from sv_pipeline.ingest.watershed import make_watershed, prepare_watershed
from sv_pipeline.segmentation import kv
from sv_pipeline.segmentation.precomputed import open_volume

_names = itertools.count()


def dataset(source, chunk_size=(4, 4, 4), target=None, graph_config=None, **source_options):
    """Configuration of a dataset made of ``source``; the target is in memory unless given."""
    return parse_config(
        {
            "graph_id": "g",
            "data_source": {"WATERSHED": target or f"memory://watershed_{next(_names)}/"},
            "source": {"segmentation": str(source), "resolution": (8, 8, 40)}
            | {k: str(v) if k in ("agglomeration", "affinities") else v for k, v in source_options.items()},
            "graph_config": {"CHUNK_SIZE": chunk_size, **(graph_config or {})},
        }
    )


def written(config):
    """All keys of the target of a configuration."""
    return kv.list_keys(config.data_source.watershed)


class Made:
    """A finished watershed, read back."""

    def __init__(self, config, workers=1):
        self.report = make_watershed(config, workers=workers)
        self.plan = plan = prepare_watershed(config)
        self.volume = open_volume(plan.target).read().result()
        self.coordinates = plan.grid.coordinates(2)
        self.edges = formats.read_edges_many(plan.edges_url, self.coordinates, layout=plan.layout)
        self.components = formats.read_components_many(plan.components_url, self.coordinates)

    def all_edges(self):
        """Unordered pair of ids -> list of (area, affinity, kind), one per file that holds it."""
        found = {}
        for chunk in self.edges:
            for kind, edges in (("in", chunk.in_), ("between", chunk.between), ("cross", chunk.cross)):
                for a, b, affinity, area in zip(*(column.tolist() for column in edges.arrays), strict=True):
                    found.setdefault((min(a, b), max(a, b)), []).append((area, affinity, kind))
        return found

    def roots(self):
        """Connected components of the active edges, as sets of ids, the way an ingest reads the files."""
        graph = nx.Graph()
        for chunk, components in zip(self.edges, self.components, strict=True):
            part = {int(i): n for n, ids in enumerate(components) for i in ids}
            graph.add_nodes_from(part)
            for edges in (chunk.in_, chunk.between):
                pairs = zip(edges.node_ids1.tolist(), edges.node_ids2.tolist(), strict=True)
                graph.add_edges_from((a, b) for a, b in pairs if part[a] == part[b])
            graph.add_edges_from(zip(chunk.cross.node_ids1.tolist(), chunk.cross.node_ids2.tolist(), strict=True))
        return {frozenset(ids) for ids in nx.connected_components(graph)}

    def ids(self):
        """All supervoxel ids of the volume, sorted."""
        ids = np.unique(self.volume)
        return ids[ids != 0]
