"""The pieces of a mask are those of SciPy, also in images that are one voxel thin."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from sv_pipeline.algorithms.voxel_cut import cut_mask
from sv_pipeline.algorithms.voxel_cut.mask_pieces import mask_pieces

SHAPES = st.tuples(*[st.integers(1, 7)] * 3)


@given(arrays(np.bool_, SHAPES), st.sampled_from("CF"))
@example(np.array([[[True, False, True]]]), "F")
def test_pieces_are_those_of_scipy(mask: npt.NDArray[np.bool_], order: str) -> None:
    pieces, n_pieces = mask_pieces(np.asarray(mask, order=order))  # type: ignore[call-overload]
    theirs, n_theirs = ndimage.label(mask, np.ones((3, 3, 3)))
    assert n_pieces == n_theirs
    assert len(np.unique(np.stack([pieces[mask], theirs[mask]]), axis=1).T) == n_pieces
    assert not pieces[~mask].any()


def test_a_thread_and_what_lies_beside_it_are_cut() -> None:
    mask = np.ones((1, 1, 9), np.bool_)
    mask[..., 7] = False
    sides = cut_mask(mask, np.array([[0, 0, 0]]), np.array([[0, 0, 6]]), (8, 8, 8))
    assert np.unique(sides[mask]).tolist() == [1, 2]
