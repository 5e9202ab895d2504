"""Volumes that cloud-volume has written on a disk, in every role; and those that are refused, with nothing made."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import cloudvolume
import numpy as np
import pytest

from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.builds import CommandLine
from sv_pipeline_tests.ingest.mistakes import assert_refused_without_a_trace, labels, small

CHUNK = (5, 5, 5)
"""Storage chunks: 4 x 4 x 2 of them."""


def written(folder: Path, array: np.ndarray, compress: bool | None = True, encoding: str = "raw") -> Path:
    """A volume as cloud-volume writes it: NAME.gz, unless something else is asked for."""
    channels = array.shape[3] if array.ndim == 4 else 1
    kind = "image" if channels > 1 else "segmentation"
    info = cloudvolume.CloudVolume.create_new_info(
        channels, kind, array.dtype.name, encoding, (8, 8, 40), (0, 0, 0), array.shape[:3], chunk_size=CHUNK
    )
    volume = cloudvolume.CloudVolume(f"file://{folder}", info=info, compress=compress, progress=False)
    volume.commit_info()
    volume[:] = array
    return folder


def built(folder: Path, source: dict[str, Any] | None, **changes: Any) -> Dataset:
    raw = small(folder) if source is None else builds.raw_config(folder, source=source)
    raw |= {"graph_config": {"CHUNK_SIZE": [10, 20, 10]}, **changes}
    if source is None:
        raw.pop("source")
    dataset = builds.register(raw, folder / "home")
    builds.ingest(dataset, workers=1)
    return dataset


def roots(dataset: Dataset) -> list[set[int]]:
    """Which labels of the source are one object."""
    import sv_pipeline

    graph = sv_pipeline.open_graph(dataset.graph_id, dataset.home)
    points = np.argwhere(labels() > 0)[::25]
    found = np.asarray(graph.roots(points))
    named = labels()[tuple(points.T)]
    return sorted(({int(v) for v in named[found == root]} for root in np.unique(found)), key=min)


def test_gz_chunks_are_read_in_every_role(tmp_path: Path) -> None:
    objects = (labels() % 2 + 1).astype(np.uint32)
    affinities = np.random.default_rng(0).random((*labels().shape, 3)).astype(np.float32)
    found = []
    for compress in (True, None):
        folder = tmp_path / str(compress)
        source = {
            "segmentation": str(written(folder / "labels", labels(), compress)),
            "agglomeration": str(written(folder / "objects", objects, compress)),
            "affinities": str(written(folder / "affinities", affinities, compress)),
        }
        found.append(built(folder, source))
    packed, plain = found
    assert any((tmp_path / "True" / "labels").rglob("*.gz"))
    voxels = [Fork(d.watershed_url, d.graph_id).open().read().result() for d in found]
    np.testing.assert_array_equal(*voxels)
    assert roots(packed) == roots(plain)
    assert len(roots(packed)) < 8
    edges = [sorted(Path(tmp_path, name, "watershed/edges").iterdir()) for name in ("True", "None")]
    assert [f.read_bytes() for f in edges[0]] == [f.read_bytes() for f in edges[1]]


def test_a_watershed_of_compressed_files_is_read(tmp_path: Path) -> None:
    made = built(tmp_path / "made", {"segmentation": str(written(tmp_path / "labels", labels()))})
    before = Fork(made.watershed_url, made.graph_id).open().read().result()
    folder = tmp_path / "given" / "watershed"
    shutil.copytree(tmp_path / "made" / "watershed", folder, ignore=shutil.ignore_patterns("ocdbt", ".watershed"))
    for file in [f for f in folder.rglob("*") if f.is_file() and f.name != "info"]:
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    given = built(tmp_path / "given", None)
    np.testing.assert_array_equal(Fork(given.watershed_url, given.graph_id).open().read().result(), before)
    assert roots(given) == roots(made)
    assert verify_dataset(given).ok


@pytest.mark.parametrize("role", ["segmentation", "agglomeration", "WATERSHED"])
def test_a_volume_without_some_of_its_chunks_is_refused_unless_that_is_asked_for(
    cli: CommandLine, tmp_path: Path, role: str
) -> None:
    raw = small(tmp_path)
    if role == "WATERSHED":
        made = built(tmp_path / "made", {"segmentation": str(written(tmp_path / "labels", labels()))})
        folder = tmp_path / "given"
        shutil.copytree(tmp_path / "made" / "watershed", folder, ignore=shutil.ignore_patterns("ocdbt", ".watershed"))
        key = made.volume.scales[0].key
        for chunk in (folder / key).iterdir():
            chunk.unlink()
        raw.pop("source")
        raw["data_source"] = {"WATERSHED": str(folder)}
        section, field = raw["data_source"], "FILL_MISSING"
    else:
        folder = written(tmp_path / "volume", labels())
        for chunk in sorted((folder / "8_8_40").iterdir())[:5]:
            chunk.unlink()
        raw["source"] |= {role: str(folder)}
        section, field = raw["source"], "fill_missing"
    assert_refused_without_a_trace(cli, tmp_path, raw, "storage chunks", "background", f"{field}: true")
    section[field] = True
    builds.register(raw, cli.home)


def test_chunks_of_an_unknown_ending_are_named(cli: CommandLine, tmp_path: Path) -> None:
    folder = written(tmp_path / "volume", labels(), None)
    for chunk in (folder / "8_8_40").iterdir():
        chunk.rename(chunk.with_name(f"{chunk.name}.lz4"))
    raw = builds.raw_config(tmp_path, source={"segmentation": str(folder)})
    assert_refused_without_a_trace(cli, tmp_path, raw, "32 of 32 storage chunks", ".lz4 exists")


def no_change(_: dict[str, Any]) -> None:
    pass


def same_key(info: dict[str, Any]) -> None:
    info["scales"].append({**info["scales"][0], "resolution": [16, 16, 40], "size": [10, 10, 10]})


REFUSED: dict[str, tuple[dict[str, Any], Any, tuple[str, ...]]] = {
    "jpeg": ({"encoding": "jpeg"}, no_change, ("encoding is 'jpeg'", "raw")),
    "one folder for two mips": ({}, same_key, ("scales 0 and 1", "8_8_40")),
    "unknown encoding": ({}, lambda info: info["scales"][0].update(encoding="foo"), ("encoding is 'foo'",)),
    "not installed": ({}, lambda info: info["scales"][0].update(encoding="compresso"), ("compresso",)),
    "uncountable": (
        {},
        lambda info: info["scales"][0].update(size=[10**9] * 3),
        ("a volume cannot have",),
    ),
    "wrong type": ({}, lambda info: info.update(data_type="float32"), ("float32",)),
    "wrong size": ({}, lambda info: info["scales"][0].update(chunk_sizes=[[9, 9, 9]]), ("storage chunks",)),
    "wrong bytes": ({}, lambda info: info.update(data_type="uint32"), ("cannot be",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_volume_whose_labels_cannot_be_had_is_refused(cli: CommandLine, tmp_path: Path, name: str) -> None:
    how, change, parts = REFUSED[name]
    folder = written(tmp_path / "volume", labels(np.uint8), None, **how)
    info = json.loads((folder / "info").read_text())
    change(info)
    (folder / "info").write_text(json.dumps(info))
    raw = builds.raw_config(tmp_path, source={"segmentation": str(folder)})
    assert_refused_without_a_trace(cli, tmp_path, raw, *parts)


@pytest.mark.parametrize("name", ["data_type", "size"])
@pytest.mark.parametrize("role", ["segmentation", "WATERSHED"])
def test_an_info_file_with_a_name_twice_is_refused(cli: CommandLine, tmp_path: Path, name: str, role: str) -> None:
    """Half of a volume was lost without a word: JSON readers take the last of the two."""
    folder = written(tmp_path / "volume", labels(np.uint64), None)
    value = {"data_type": '"uint32"', "size": "[10, 20, 10]"}[name]
    text = (folder / "info").read_text()
    (folder / "info").write_text(text.replace(f'"{name}"', f'"{name}": {value}, "{name}"', 1))
    raw = builds.raw_config(tmp_path, source={"segmentation": str(folder)})
    if role == "WATERSHED":
        del raw["source"]
        raw["data_source"] = {"WATERSHED": str(folder)}
    assert_refused_without_a_trace(cli, tmp_path, raw, "info", f"{name!r} appears twice")
