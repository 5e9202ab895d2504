"""Making a watershed in a test, reading back what it holds, and checking that it is what a watershed must be."""

from __future__ import annotations

import itertools

import cc3d
import fastremap
import networkx as nx
import numpy as np
import tensorstore as ts

from sv_pipeline.config import parse_config
from sv_pipeline.graph import edge_files as formats
from sv_pipeline.ingest import watershed
from sv_pipeline.ingest.watershed import WatershedPass, prepare_watershed
from sv_pipeline.processes import Workers
from sv_pipeline.storage import kv
from sv_pipeline.storage.precomputed import open_volume

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


def make_watershed(config, workers=0):
    """Make the watershed volume and its files, or what is left of it to make; in this process, or in some workers."""
    plan = prepare_watershed(config)
    passes = (
        (WatershedPass.LABELS, watershed.run_label_batch, watershed.finish_labels),
        (WatershedPass.EDGES, watershed.run_edge_batch, watershed.finish_watershed),
    )
    for stage, run, finish in passes:
        left = watershed.pending(plan, stage)
        if workers and len(left):
            with Workers(workers) as pool:
                futures = [pool.submit(run, plan, batch) for batch in np.array_split(left, min(workers, len(left)))]
                for future in futures:
                    future.result()
        else:
            run(plan, left)
        report = finish(plan)
    return report


def written(config):
    """All keys of the target of a configuration."""
    return kv.list_keys(config.data_source.watershed)


class Made:
    """A finished watershed, read back."""

    def __init__(self, config, workers=0):
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


def float_precomputed(folder, values, dtype="float32"):
    metadata = {"type": "image", "data_type": dtype, "num_channels": values.shape[3]}
    scale = {"resolution": [4, 5, 6], "size": values.shape[:3], "chunk_size": [4, 4, 4], "encoding": "raw"}
    spec = {"driver": "neuroglancer_precomputed", "kvstore": kv.as_url(folder), "multiscale_metadata": metadata}
    ts.open(spec | {"scale_metadata": scale}, create=True).result().write(values).result()
    return kv.as_url(folder)


def check(made, labels, objects):
    """State of a finished watershed, by means that the package does not use."""
    layout, grid = made.plan.layout, made.plan.grid
    ids = made.ids()
    assert made.report.supervoxels == len(ids)
    assert (layout.layers(ids) == 1).all()

    # each supervoxel is one 26-connected piece, in its chunk, of one label
    volume = fastremap.renumber(made.volume)[0]
    assert cc3d.connected_components(volume, connectivity=26, return_N=True)[1] == len(ids)
    for coordinate in made.coordinates:
        box = grid.box(2, coordinate).shifted(-np.asarray(made.plan.bounds.start))
        here = fastremap.unique(made.volume[box.slices])
        assert (layout.coordinates(here[here != 0]) == coordinate).all()
    assert len(pairs(volume, labels)) == len(np.unique(volume))

    # outgoing edges are in both files, equal; in edges are in one
    for sides in made.all_edges().values():
        area, affinity, kind = sides[0]
        assert sides == [sides[0]] * (1 if kind == "in" else 2)
        assert area >= 1
        assert affinity == np.inf if kind == "cross" else 0 < affinity < 1

    # every supervoxel is named by the component file of its chunk
    for coordinate, components in zip(made.coordinates, made.components, strict=True):
        named = np.concatenate([*components, np.empty(0, np.uint64)])
        assert len(np.unique(named)) == len(named)
        own = ids[(layout.coordinates(ids) == coordinate).all(axis=1)]
        assert np.isin(own, named).all()

    # roots are the 26-connected pieces of objects
    objects = fastremap.renumber(np.asfortranarray(objects))[0]
    parts, n = cc3d.connected_components(objects, connectivity=26, return_N=True)
    roots = made.roots()
    assert len(roots) == n
    root_of = {node: number for number, root in enumerate(roots) for node in root}
    ids_of, parts_of = pairs(made.volume, parts).T
    found = {(root_of[i], part) for i, part in zip(ids_of.tolist(), parts_of.tolist(), strict=True) if i}
    assert len(found) == n


def pairs(a, b):
    """Values that meet in a voxel, shape (n, 2)."""
    (names_a, index_a), (names_b, index_b) = (fastremap.unique(v.ravel(order="F"), return_inverse=True) for v in (a, b))
    packed = fastremap.unique(index_a.astype(np.uint64) * np.uint64(len(names_b)) + index_b.astype(np.uint64))
    first, second = np.divmod(packed, np.uint64(len(names_b)))
    return np.stack([names_a[first], names_b[second].astype(np.uint64)], axis=-1)
