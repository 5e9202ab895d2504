"""Downsampling of labels that are not decoded first."""

from __future__ import annotations

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.algorithms.encoded_labels import downsample_encoded
from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline_tests.properties import examples

CHUNK = (16, 8, 24)
Triple = tuple[int, int, int]


def encoded(labels: np.ndarray, grid: Triple) -> list[bytes]:
    """Chunks as TensorStore stores them, z fastest; those that hold only background are not stored."""
    scale = {"resolution": [1, 1, 1], "size": labels.shape, "chunk_size": CHUNK, "encoding": "compressed_segmentation"}
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": "memory://",
        "multiscale_metadata": {"type": "segmentation", "data_type": "uint64", "num_channels": 1},
        "scale_metadata": {**scale, "key": "m", "compressed_segmentation_block_size": [8, 8, 8]},
    }
    array = ts.open(spec, create=True, context=ts.Context()).result()
    array[..., 0].write(labels).result()
    spans = [
        "_".join(f"{n * size}-{n * size + size}" for n, size in zip(number, CHUNK, strict=True))
        for number in np.ndindex(*grid)
    ]
    return [bytes(array.kvstore.read(f"m/{span}").result().value) for span in spans]


def volume(grid: Triple, kinds: list[int], seed: int) -> np.ndarray:
    """Blocks of 8 x 8 x 8 voxels with as many labels each as ``kinds`` says, in turn; 1 stands for background too."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(np.multiply(grid, CHUNK), np.uint64, order="F")
    for turn, block in enumerate(np.ndindex(*(np.array(labels.shape) // 8))):
        ids = rng.integers(0, 2**64, kinds[turn % len(kinds)], np.uint64)
        ids[rng.random(len(ids)) < 0.3] = 0
        labels[tuple(slice(8 * n, 8 * n + 8) for n in block)] = rng.choice(ids, (8, 8, 8))
    return labels


@examples(30)
@given(
    st.tuples(*[st.integers(1, 3)] * 3),
    st.lists(st.sampled_from([1, 1, 2, 3, 4, 9, 16, 17, 200]), min_size=1, max_size=5),
    st.sampled_from([(2, 2, 1), (2, 2, 2)]),
    st.integers(0, 1000),
)
def test_the_result_is_that_of_the_decoded_labels(grid: Triple, kinds: list[int], step: Triple, seed: int) -> None:
    labels = volume(grid, kinds, seed)
    made = downsample_encoded(encoded(labels, grid), grid, CHUNK, step)
    assert made is not None
    assert made.flags.f_contiguous
    np.testing.assert_array_equal(made, downsample(labels, step))


def test_what_it_does_not_support_is_left_to_a_decoder() -> None:
    labels = volume((1, 1, 1), [2], 0)
    (chunk,) = encoded(labels, (1, 1, 1))
    assert downsample_encoded([chunk], (1, 1, 1), CHUNK, (2, 2, 2)) is not None
    assert downsample_encoded([chunk], (1, 1, 1), CHUNK, (2, 1, 1)) is None
    assert downsample_encoded([chunk], (1, 1, 1), (16, 8, 23), (2, 2, 2)) is None
    many = encoded(volume((1, 1, 1), [1000], 0), (1, 1, 1))
    assert downsample_encoded(many, (1, 1, 1), CHUNK, (2, 2, 2)) is None  # more than 256 labels in a block


@pytest.mark.parametrize("labels", [(5, 5), (7, 5)])
def test_a_table_that_is_not_in_order_is_left_to_a_decoder(labels: tuple[int, int]) -> None:
    """If a label were listed twice, its voxels would count as two labels."""
    words = np.zeros(1 + 2 + 16 + 4, "<u4")
    words[:3] = 1, 2 + 16 | 1 << 24, 2
    words[3:19] = 0xAAAAAAAA
    words[19::2] = labels
    assert downsample_encoded([words.tobytes()], (1, 1, 1), (8, 8, 8), (2, 2, 2)) is None


@given(st.data())
@examples(40)
def test_damaged_bytes_are_left_to_a_decoder_or_give_labels(data: st.DataObject) -> None:
    """No offset may lead outside of the chunk, so no damage reads what is beside it in memory, or ends the process."""
    (chunk,) = encoded(volume((1, 1, 1), [1, 3, 9], 1), (1, 1, 1))
    words = np.frombuffer(chunk, "<u4").copy()
    for place in data.draw(st.lists(st.integers(0, 24), max_size=3)):
        words[place] = data.draw(st.integers(0, 2**32 - 1))
    damaged = words.tobytes()[: data.draw(st.integers(0, len(chunk)))]
    made = downsample_encoded([damaged], (1, 1, 1), CHUNK, (2, 2, 2))
    assert made is None or made.shape == (8, 4, 12)
