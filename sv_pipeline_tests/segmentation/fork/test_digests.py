"""Each commit to a fork writes the digests of what it writes; putting back brings the earlier ones back."""

from __future__ import annotations

import numpy as np
import pytest

from sv_pipeline.algorithms.voxel_blocks import VoxelBlock
from sv_pipeline.grid import Box
from sv_pipeline.pyramid.downsample import downsample
from sv_pipeline.pyramid.mip_maker import open_pyramid
from sv_pipeline.pyramid.rebuild import rebuild_mip
from sv_pipeline.segmentation.fork.digests import StorageChunk, agrees, chunks_in, digest_of, made_anew
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.own_chunks import OwnChunks, own_chunks
from sv_pipeline_tests.segmentation.commits import edit, forked, storage_boxes
from sv_pipeline_tests.segmentation.volumes import Watershed


@pytest.fixture
def watershed(tmp_path: object) -> Watershed:
    return forked(f"file://{tmp_path}/ws", storage_chunk_size=(16, 16, 8))


def own_of(watershed: Watershed) -> OwnChunks:
    pyramid = open_pyramid(Fork(watershed.url, "g"))
    return own_chunks(pyramid.store, pyramid.volume)


def agreeing(watershed: Watershed) -> dict[StorageChunk, bool | None]:
    """Whether each digest is that of the voxels."""
    pyramid = open_pyramid(Fork(watershed.url, "g"))
    return {
        chunk: agrees(
            value, pyramid.store.array(chunk.mip)[chunk.box(pyramid.volume.scales[chunk.mip]).slices].read().result()
        )
        for chunk, value in own_of(watershed).digests.items()
    }


def test_a_digest_depends_on_voxels_and_shape_and_not_on_the_order_in_memory() -> None:
    voxels = np.arange(24, dtype=np.uint64).reshape(2, 3, 4)
    assert digest_of(voxels) == digest_of(np.asfortranarray(voxels))
    assert digest_of(voxels) != digest_of(voxels.reshape(3, 2, 4))
    assert digest_of(np.zeros((2, 2, 2), np.uint64)) != digest_of(np.zeros((2, 2, 3), np.uint64))
    changed = voxels.copy()
    changed[1, 2, 3] ^= np.uint64(1 << 63)
    assert digest_of(voxels) != digest_of(changed)
    assert agrees(b"another-hash:00 11", voxels) is None


def test_a_digest_is_written_for_each_chunk_of_an_edit_and_taken_back_with_it(watershed: Watershed) -> None:
    assert not own_of(watershed).every
    boxes = storage_boxes(watershed)[:3]
    Fork(watershed.url, "g").commit(edit(watershed, 1, boxes[:2]))
    first = own_of(watershed).digests
    assert len(first) == 2
    Fork(watershed.url, "g").commit(edit(watershed, 2, boxes[1:]))
    assert len(agreeing(watershed)) == 3
    assert all(agreeing(watershed).values())
    Fork(watershed.url, "g").take_fence(2, "recovery")
    Fork(watershed.url, "g").restore(2, owner="recovery")
    after = own_of(watershed).digests
    assert all(agreeing(watershed).values())
    assert {c: v.split()[0] for c, v in after.items() if c in first} == {c: v.split()[0] for c, v in first.items()}


def test_a_chunk_that_is_written_in_part_loses_its_digest(watershed: Watershed) -> None:
    box = storage_boxes(watershed)[0]
    Fork(watershed.url, "g").commit(edit(watershed, 1, [box]))
    Fork(watershed.url, "g").commit(edit(watershed, 2, [Box.of(box.start, np.subtract(box.stop, 1))]))
    assert not own_of(watershed).digests


def test_mips_have_digests_too(watershed: Watershed) -> None:
    Fork(watershed.url, "g").commit(edit(watershed, 1, storage_boxes(watershed)[:2]))
    downsample(Fork(watershed.url, "g"))
    found = agreeing(watershed)
    assert {chunk.mip for chunk in found} == {0, 1}
    assert all(found.values())
    pyramid = open_pyramid(Fork(watershed.url, "g"))
    array = pyramid.store.array(1)
    array[...].write(np.uint64(7)).result()
    rebuild_mip(pyramid, 1)
    found = agreeing(watershed)
    assert len([chunk for chunk in found if chunk.mip == 1]) == len(
        chunks_in(1, pyramid.volume.scales[1], pyramid.volume.scales[1].bounds)
    )
    assert all(found.values())


def test_who_wrote_a_chunk_last_is_told_by_the_history(watershed: Watershed) -> None:
    box = storage_boxes(watershed)[0]
    Fork(watershed.url, "g").commit(edit(watershed, 1, [box]))
    pyramid = open_pyramid(Fork(watershed.url, "g"))
    store, scale = pyramid.store, pyramid.volume.scales[0]
    (chunk,) = chunks_in(0, scale, box)
    assert made_anew(store, chunk.key(scale), chunk.digest_key) is True
    Fork(watershed.url, "g").commit(edit(watershed, 2, storage_boxes(watershed)[1:2]))
    assert made_anew(store, chunk.key(scale), chunk.digest_key) is True
    with store.transaction() as transaction:
        store.array(0).with_transaction(transaction)[box.slices].write(np.uint64(5)).result()
    assert made_anew(store, chunk.key(scale), chunk.digest_key) is False
    block = VoxelBlock(box, np.full(box.shape, 6, np.uint64))
    Fork(watershed.url, "g").commit(edit(watershed, 3, [], blocks=[block]))
    assert made_anew(store, chunk.key(scale), chunk.digest_key) is True


def test_own_chunks_of_a_tree_of_several_levels(tmp_path: object) -> None:
    """Keys of nodes below the root lack the prefix that they have in common."""
    options = {"max_decoded_node_bytes": 4096, "max_inline_value_bytes": 100}
    watershed = forked(f"file://{tmp_path}/ws", storage_chunk_size=(16, 16, 8), **options)
    boxes = storage_boxes(watershed)[::3]
    Fork(watershed.url, "g").commit(edit(watershed, 1, boxes))
    found = own_of(watershed)
    scale = open_pyramid(Fork(watershed.url, "g")).volume.scales[0]
    assert {chunk.box(scale) for chunk in found.digests} == set(boxes)
    assert {chunk.box(scale) for chunk in found.outside} == set(boxes)
    assert all(agreeing(watershed).values())
