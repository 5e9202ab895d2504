"""What the dump of a failed populate task, or of a failed merge, tells about it. Reads no storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sv_pipeline.grid import Box
from sv_pipeline.segmentation.base.layout import task_box
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.volume_info import Scale

if TYPE_CHECKING:
    from sv_pipeline.segmentation.base.populate import PopulatePlan

__all__ = ["base_details", "count_keys", "task_details"]


def count_keys(box: Box, scale: Scale) -> int:
    """Return the number of storage chunks of a mip that a box of its voxels touches."""
    if not box.volume:
        return 0
    start, stop = np.subtract(box.start, scale.voxel_offset), np.subtract(box.stop, scale.voxel_offset)
    return int(np.prod(-(-stop // scale.chunk_size) - start // scale.chunk_size))


def task_details(plan: PopulatePlan, coordinate: tuple[int, int, int], address: str | None) -> dict[str, Any]:
    """Describe a task: its box at each mip, with the number of its keys, its bytes, and the specs of both sides."""
    base = plan.base
    boxes = [task_box(base.volume, mip, plan.grid, plan.layer, coordinate) for mip in range(base.n_mips)]
    return {**_common(plan), "coordinate": coordinate, "mips": _mips(plan, boxes, address)}


def base_details(plan: PopulatePlan) -> dict[str, Any]:
    """Describe the base, whose parts could not be merged."""
    boxes = [scale.bounds for scale in plan.base.volume.scales]
    return {**_common(plan), "n_tasks": plan.n_tasks, "mips": _mips(plan, boxes, None)}


def _common(plan: PopulatePlan) -> dict[str, Any]:
    return {
        "watershed": plan.base.watershed_url,
        "layer": plan.layer,
        "method": plan.method.value,
        "memory": plan.memory,
        "source_mips": plan.base.source_mips,
    }


def _mips(plan: PopulatePlan, boxes: list[Box], address: str | None) -> list[dict[str, Any]]:
    base = plan.base
    spec = base.spec(coordinator=address)
    return [
        {
            "mip": mip,
            "key": scale.key,
            "box": str(box),
            "shape": box.shape,
            "storage_chunk": scale.chunk_size,
            "n_keys": count_keys(box, scale),
            "raw_bytes": 8 * box.volume,
            "source": source_spec(base.watershed_url, mip) if mip < base.source_mips else f"made of mip {mip - 1}",
            "spec": ocdbt.array_spec(spec, mip),
        }
        for mip, (box, scale) in enumerate(zip(boxes, base.volume.scales, strict=True))
    ]


def source_spec(url: str, mip: int) -> dict[str, Any]:
    """Return the spec of a mip of a precomputed volume, for people; it is not opened."""
    return {"driver": "neuroglancer_precomputed", "kvstore": url, "scale_index": mip}
