"""A second, slow opinion: loops over voxels, nothing shared with the package but the id layout."""

from __future__ import annotations

import itertools
from collections import defaultdict

import networkx as nx
import numpy as np

NEIGHBOURS = [s for s in itertools.product((-1, 0, 1), repeat=3) if any(s)]


def neighbours(voxel, shape):
    for shift in NEIGHBOURS:
        other = tuple(np.add(voxel, shift))
        if all(0 <= o < n for o, n in zip(other, shape, strict=True)):
            yield other, sum(map(abs, shift)) == 1


def chunk_of(voxel, chunk_size):
    return tuple(int(v // c) for v, c in zip(voxel, chunk_size, strict=True))


def supervoxels(labels, chunk_size):
    """Piece of each voxel: (chunk, number), numbered from 1 by first voxel, x fastest."""
    pieces, last = {}, defaultdict(int)
    for z, y, x in itertools.product(*(range(n) for n in labels.shape[::-1])):
        if labels[x, y, z] == 0 or (x, y, z) in pieces:
            continue
        chunk = chunk_of((x, y, z), chunk_size)
        last[chunk] += 1
        queue = [(x, y, z)]
        pieces[x, y, z] = (chunk, last[chunk])
        while queue:
            voxel = queue.pop()
            for other, _ in neighbours(voxel, labels.shape):
                same = labels[other] == labels[voxel] and chunk_of(other, chunk_size) == chunk
                if same and other not in pieces:
                    pieces[other] = pieces[voxel]
                    queue.append(other)
    return pieces


def contacts(labels, objects, pieces):
    """(area, kind) of each unordered pair of pieces that must have an edge."""
    faces, diagonal, label_of = defaultdict(int), set(), {}
    for voxel, piece in pieces.items():
        label_of[piece] = labels[voxel]
        for other, is_face in neighbours(voxel, labels.shape):
            if other in pieces and piece < pieces[other]:
                pair = piece, pieces[other]
                if is_face:
                    faces[pair] += 1
                elif objects[voxel] == objects[other]:
                    diagonal.add(pair)
    edges = {}
    for pair in set(faces) | diagonal:
        a, b = pair
        kind = "in" if a[0] == b[0] else "cross" if label_of[a] == label_of[b] else "between"
        edges[pair] = (1 if kind == "cross" else faces.get(pair, 1), kind)
    return edges


def surfaces(pieces):
    """Voxel faces of each piece that do not lie inside it."""
    count = defaultdict(int)
    for voxel, piece in pieces.items():
        for shift in NEIGHBOURS:
            if sum(map(abs, shift)) == 1 and pieces.get(tuple(np.add(voxel, shift))) != piece:
                count[piece] += 1
    return count


def roots(objects, pieces):
    """Sets of pieces that are one 26-connected part of one object."""
    graph = nx.Graph()
    graph.add_nodes_from(pieces.values())
    for voxel, piece in pieces.items():
        for other, _ in neighbours(voxel, objects.shape):
            if other in pieces and objects[other] == objects[voxel]:
                graph.add_edge(piece, pieces[other])
    return {frozenset(part) for part in nx.connected_components(graph)}
