"""Costs of an ingest as they were measured, for forecasts without a sample of the volume. Holds numbers only.

``benchmarks/scale.py model`` measures them again: processor time and bytes on tiles of a real volume (10 nm voxels,
chunks of 32 and 64 voxels), on a local disk with SQLite. The intervals contain what was seen on both chunk sizes, and
on loaded and idle machines. They are no confidence intervals, and another volume or storage can lie outside of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sv_pipeline.ingest.estimates import Estimate
from sv_pipeline.memory import INTERPRETER_MB

__all__ = ["DEFAULT_COSTS", "Costs"]


@dataclass(frozen=True)
class Costs:
    """Costs per unit: times in seconds of one worker, sizes in bytes."""

    # What a volume holds.
    supervoxels_per_voxel: Estimate
    edges_per_supervoxel: Estimate
    """Active edges, counted at each chunk that they touch, as done-markers count them."""
    nodes_per_supervoxel: Estimate
    """Nodes that the tasks of layer 2 make."""
    first_node_ratio: Estimate
    """Nodes that the tasks of layer 3 make for each node of layer 2."""
    node_ratio: Estimate
    """Nodes that the tasks of a layer above 3 make for each node that the tasks of the layer below made."""

    # Time.
    label_seconds_per_chunk: Estimate
    label_seconds_per_voxel: Estimate
    edge_seconds_per_chunk: Estimate
    edge_seconds_per_voxel: Estimate
    read_seconds_per_voxel: Estimate
    """Reading voxels and finding their distinct ids."""
    layer2_seconds_per_chunk: Estimate
    layer2_seconds_per_supervoxel: Estimate
    upper_seconds_per_chunk: Estimate
    upper_seconds_per_node: Estimate
    """Layers above 2, for each node of the layer below."""
    copy_seconds_per_voxel: Estimate
    """Copying or downsampling into the base, for each voxel that is read or written."""
    refer_seconds_per_key: Estimate
    merge_seconds_per_key: Estimate

    # Bytes stored.
    bytes_per_supervoxel: Estimate
    """Table bytes of layer 2: the rows of supervoxels and of layer 2 nodes, for each supervoxel."""
    bytes_per_node: Estimate
    """Table bytes of a node above layer 2, with what its children's rows gain."""
    bytes_per_ingest_row: Estimate
    file_bytes_per_supervoxel: Estimate
    """Edge and component files, and the segment tables of the label pass."""
    volume_bytes_per_voxel: Estimate
    """A voxel as compressed segmentation, in the watershed or in the base."""
    bytes_per_reference: Estimate

    # Memory.
    process_memory: Estimate
    memory_per_supervoxel: Estimate
    memory_per_node: Estimate
    """Layers above 2, for each node of the layer below in one chunk; with its cross edges."""
    read_memory_per_voxel: Estimate
    label_memory_per_voxel: Estimate
    copy_memory_per_voxel: Estimate


DEFAULT_COSTS = Costs(
    supervoxels_per_voxel=Estimate(4.4e-4, 1e-4, 4e-3),
    edges_per_supervoxel=Estimate(5.2, 4, 8),
    nodes_per_supervoxel=Estimate(0.2, 0.1, 0.4),
    first_node_ratio=Estimate(0.42, 0.33, 0.5),
    node_ratio=Estimate(0.4, 0.3, 0.5),
    label_seconds_per_chunk=Estimate(4e-3, 2e-3, 8e-3),
    label_seconds_per_voxel=Estimate(7e-8, 5e-8, 1.3e-7),
    edge_seconds_per_chunk=Estimate(18e-3, 10e-3, 30e-3),
    edge_seconds_per_voxel=Estimate(1.3e-7, 1e-7, 2.5e-7),
    read_seconds_per_voxel=Estimate(8e-9, 3e-9, 2e-8),
    layer2_seconds_per_chunk=Estimate(1.7e-3, 1e-3, 4e-3),
    layer2_seconds_per_supervoxel=Estimate(36e-6, 25e-6, 60e-6),
    upper_seconds_per_chunk=Estimate(2e-3, 1e-3, 5e-3),
    upper_seconds_per_node=Estimate(45e-6, 30e-6, 90e-6),
    copy_seconds_per_voxel=Estimate(25e-9, 15e-9, 60e-9),
    refer_seconds_per_key=Estimate(20e-6, 5e-6, 100e-6),
    merge_seconds_per_key=Estimate(3e-6, 2e-6, 10e-6),
    bytes_per_supervoxel=Estimate(130, 90, 220),
    bytes_per_node=Estimate(200, 120, 500),
    bytes_per_ingest_row=Estimate(400, 300, 600),
    file_bytes_per_supervoxel=Estimate(100, 60, 200),
    volume_bytes_per_voxel=Estimate(0.3, 0.1, 0.6),
    bytes_per_reference=Estimate(50, 30, 80),
    process_memory=Estimate(INTERPRETER_MB * 2.0**20, 150e6, INTERPRETER_MB * 2.0**20),
    memory_per_supervoxel=Estimate(870, 600, 1500),
    memory_per_node=Estimate(1270, 600, 2000),
    read_memory_per_voxel=Estimate(24, 16, 40),
    label_memory_per_voxel=Estimate(40, 24, 64),
    copy_memory_per_voxel=Estimate(16, 8, 24),
)
