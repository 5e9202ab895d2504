"""Where to cut a connected mask between two connected sets of seeds. Knows nothing of input checks and components."""

from __future__ import annotations

import dijkstra3d
import edt
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.voxel_cut.pieces import keep_seeded_pieces
from sv_pipeline.algorithms.voxel_cut.seeds import Coordinates, Mask, SeedPair, join_seeds

__all__ = ["cut_connected"]


def cut_connected(mask: Mask, seeds: SeedPair, spacing: tuple[float, float, float]) -> Mask:
    """The first side of a 26-connected mask."""
    depth = edt.edt(mask, anisotropy=spacing, black_border=True)
    joined = join_seeds(mask, depth, seeds, spacing)
    first = mask & (_distance(mask, joined.first, spacing) <= _distance(mask, joined.second, spacing))
    first[tuple(joined.second.T)] = False
    return keep_seeded_pieces(mask, first, joined)


def _distance(mask: Mask, seeds: Coordinates, spacing: tuple[float, float, float]) -> npt.NDArray[np.float32]:
    """Geodesic distance (nm) to the seeds."""
    return np.asarray(dijkstra3d.euclidean_distance_field(mask, [tuple(s) for s in seeds.tolist()], anisotropy=spacing))
