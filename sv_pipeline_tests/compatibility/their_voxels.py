"""The voxels of a graph as PyChunkedGraph lays them out: bases, forks, specs and splits, written from the sheet alone.

Nothing of the pipeline is used here, so that both sides are independent. All that is known of a graph is its meta.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

__all__ = ["DEFAULTS", "Theirs"]

DEFAULTS: dict[str, Any] = {
    "enabled": False,
    "populate_base": True,
    "populate_layer": 3,
    "sv_split_threshold": 10,
    "compression": {"id": "zstd", "level": 12},
    "max_inline_value_bytes": 4096,
    "max_dst_chunk_shape": [128, 128, 64],
}
Labels = npt.NDArray[np.uint64]
Json = dict[str, Any]


@dataclass(frozen=True)
class Theirs:
    """What their software knows of a graph, and does to its voxels."""

    graph_id: str
    watershed: str
    """As it stands in the meta: no slash at its end."""
    custom_data: Json

    @classmethod
    def of(cls, meta: Any) -> Theirs:
        """By a meta, of theirs or unpickled from a table."""
        return cls(meta.graph_config.ID, meta.data_source.WATERSHED, dict(meta.custom_data))

    # -- settings -------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> str:
        return f"{self.watershed}/ocdbt/"

    @property
    def settings(self) -> Json:
        """The info file's values over the graph's over the defaults; unknown keys do not matter."""
        stored = self.custom_data.get("ocdbt_config", {})
        raw = ts.KvStore.open(f"{self.folder}.populated/").result().read("meta.json").result()
        info = json.loads(raw.value) if raw.state == "value" else {}
        return {k: info.get(k, stored.get(k, v)) for k, v in DEFAULTS.items()}

    @property
    def has_voxels(self) -> bool:
        if "ocdbt_config" in self.custom_data:
            return bool(self.settings["enabled"])
        return bool(self.custom_data.get("seg", {}).get("ocdbt"))

    @property
    def config(self) -> Json:
        settings = self.settings
        return {k: settings[k] for k in ("compression", "max_inline_value_bytes")}

    # -- specs ----------------------------------------------------------------------------------------------------

    def base_spec(self, *, with_config: bool = False) -> Json:
        spec: Json = {"driver": "ocdbt", "base": f"{self.folder}base/"}
        return {**spec, "config": self.config} if with_config else spec

    def fork_spec(self, *, version: int | str | None = None) -> Json:
        fork, data = f"{self.folder}{self.graph_id}/", f"{self.graph_id}_d/"
        spec: Json = {
            "driver": "ocdbt",
            "base": {
                "driver": "kvstack",
                "layers": [
                    {"base": f"{self.folder}base/"},
                    {"exact": "manifest.ocdbt", "base": f"{fork}manifest.ocdbt"},
                    {"prefix": data, "base": f"{fork}{data}"},
                ],
            },
            "value_data_prefix": data,
            "btree_node_data_prefix": data,
            "version_tree_node_data_prefix": data,
            "config": self.config,
        }
        return spec if version is None else {**spec, "version": version}

    def open(self, mip: int = 0, *, spec: Json | None = None) -> ts.TensorStore:
        array = {"driver": "neuroglancer_precomputed", "kvstore": spec or self.fork_spec(), "scale_index": mip}
        return ts.open(array, open=True).result()[..., 0]

    # -- writing --------------------------------------------------------------------------------------------------

    def recolour(self, old: int, new: int, box: tuple[slice, ...], *, spec: Json | None = None) -> None:
        """Give the voxels of a supervoxel inside a box another id, at mip 0 only, as its splits do."""
        volume = self.open(spec=spec)
        voxels: Labels = np.asarray(volume[box].read().result())
        volume[box].write(np.where(voxels == old, np.uint64(new), voxels)).result()

    def write(self, voxels: Labels, *, spec: Json | None = None) -> None:
        """Write what has changed of mip 0, as the box that its splits write."""
        volume = self.open(spec=spec)
        changed = np.argwhere(np.asarray(volume.read().result()) != voxels)
        start, stop = changed.min(axis=0), changed.max(axis=0) + 1
        inside = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        origin = np.array(volume.domain.inclusive_min)
        box = tuple(slice(a, b) for a, b in zip((start + origin).tolist(), (stop + origin).tolist(), strict=True))
        volume[box].write(voxels[inside]).result()

    def make_base(self, *, mips: int | None = None, info_file: bool = True) -> None:
        """Copy mips of the watershed, at the root of the key space; then the info file."""
        info = json.loads(ts.KvStore.open(f"{self.watershed}/").result()["info"])
        spec = self.base_spec(with_config=True)
        for mip, scale in enumerate(info["scales"][:mips]):
            source = ts.open(
                {"driver": "neuroglancer_precomputed", "kvstore": f"{self.watershed}/", "scale_index": mip}, open=True
            ).result()
            chunk = np.minimum(scale["chunk_sizes"][0], self.settings["max_dst_chunk_shape"]).tolist()
            target = ts.open(
                {
                    "driver": "neuroglancer_precomputed",
                    "kvstore": spec,
                    "multiscale_metadata": {"data_type": "uint64", "num_channels": 1, "type": "segmentation"},
                    "scale_metadata": {
                        "key": scale["key"],
                        "resolution": scale["resolution"],
                        "size": scale["size"],
                        "voxel_offset": scale.get("voxel_offset", [0, 0, 0]),
                        "chunk_size": chunk,
                        "encoding": "compressed_segmentation",
                        "compressed_segmentation_block_size": [8, 8, 8],
                    },
                },
                create=True,
                open=True,
            ).result()
            target.write(ts.cast(source, ts.uint64)).result()
        if not info_file:
            return
        settings = {k: v for k, v in self.settings.items() if k not in ("enabled", "populate_base")}
        populated = ts.KvStore.open(f"{self.folder}.populated/").result()
        populated["meta.json"] = json.dumps(settings).encode()

    def make_fork(self) -> None:
        """One object is copied."""
        folder = ts.KvStore.open(self.folder).result()
        folder[f"{self.graph_id}/manifest.ocdbt"] = folder["base/manifest.ocdbt"]
