"""The command ``demo``: it takes one volume through the whole pipeline, verifies the result and draws pictures."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sv_pipeline.cli.stopping import CONTINUE, if_stopped
from sv_pipeline.errors import InputError

if TYPE_CHECKING:
    from sv_pipeline.registry import Dataset

__all__ = ["demo"]

_OBJECT_ARRAYS = ("agglomeration", "objects", "bodies", "groundtruth")


@click.command()
@click.argument("source", required=False)
@click.option("--folder", default="demo", show_default=True, help="Folder for data and pictures of the demo.")
@click.option("--chunk-size", metavar="X,Y,Z", default="64,64,64", show_default=True, help="Size of a chunk in voxels.")
@click.option("--resolution", metavar="X,Y,Z", help="Nanometres per voxel, if the source does not give them.")
@click.pass_obj
@if_stopped(CONTINUE)
def demo(home: str, source: str | None, folder: str, chunk_size: str, resolution: str | None) -> None:
    """Take SOURCE (.npz, .npy, or a precomputed volume) through the whole pipeline, without any server.

    Without SOURCE, a synthetic neuropil is made. The demo ends with a verification, pictures and a summary.
    """
    # Imported here, since Dagster, pandas and matplotlib take seconds to load, and --help does not need them.
    import yaml

    from sv_pipeline.config import parse_config
    from sv_pipeline.ingest import stages
    from sv_pipeline.places import local_folder, parse_source
    from sv_pipeline.verify.dataset import verify_dataset

    started = time.monotonic()
    sizes = _numbers(chunk_size, "--chunk-size"), _numbers(resolution, "--resolution", float) if resolution else None
    if source is not None:
        source = parse_source(source).text
    place = local_folder(folder)
    place.mkdir(parents=True, exist_ok=True)
    config = _configuration(source, place, sizes[0], sizes[1])
    path = place / f"{config['graph_id']}.yaml"
    dataset = stages.register(parse_config(config, where="the demo"), home)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    _materialize(dataset)
    pictures = place / "pictures" / dataset.graph_id
    written = _pictures(dataset, pictures)
    click.echo("verifying the result ...", err=True)
    report = verify_dataset(dataset)
    _summary(dataset, home, path, written, report.summary(), time.monotonic() - started)
    if not report.ok:
        sys.exit(1)


def _numbers(text: str, option: str, kind: type[int] | type[float] = int) -> list[float]:
    said = f"{text!r} is not a size. Write three {'whole ' if kind is int else ''}numbers, such as 64,64,64."
    try:
        values = [kind(v) for v in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(said, param_hint=option) from error
    if len(values) != 3:
        raise click.BadParameter(said, param_hint=option)
    return values


def _configuration(
    source: str | None, place: Path, chunk_size: list[float], resolution: list[float] | None
) -> dict[str, Any]:
    given: dict[str, Any]
    if source is None:
        given, name = _synthetic(place), "demo"
    else:
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(source.rstrip("/")).name.split(".")[0]).strip("_-") or "demo"
        given = {"segmentation": source}
        if source.endswith(".npz") and (objects := _object_array(source)):
            given["agglomeration"] = f"{source}#{objects}"
    if resolution:
        given["resolution"] = resolution
    return {
        "graph_id": name,
        "data_source": {"WATERSHED": str(place / "watershed" / name)},
        "source": given,
        "graph_config": {"CHUNK_SIZE": chunk_size},
        "ocdbt_config": {"populate_layer": 4},
    }


def _object_array(source: str) -> str | None:
    """Name of the array of an .npz that groups labels into objects, if one has a usual name."""
    import numpy as np

    try:
        with np.load(source) as arrays:
            return next((name for name in _OBJECT_ARRAYS if name in arrays.files), None)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error  # without the number and the path, which the message has
        raise InputError(f"cannot read {source}: {why}.", remedy="Give a readable .npz file.") from error


def _synthetic(place: Path) -> dict[str, Any]:
    import numpy as np
    import pandas as pd

    from sv_pipeline.demo.synthetic import synthetic_neuropil

    path = place / "synthetic.npz"
    if not path.exists():
        click.echo("making a synthetic neuropil ...", err=True)
        volume = synthetic_neuropil()
        partial = place / "synthetic.partial.npz"
        objects = pd.DataFrame({"label": volume.labels, "object": volume.objects})
        objects.to_csv(place / "synthetic_objects.csv", index=False)
        np.savez_compressed(
            partial, segmentation=volume.segmentation, bodies=volume.bodies, resolution=np.asarray(volume.resolution)
        )
        partial.rename(path)
    return {"segmentation": f"{path}#segmentation", "agglomeration": str(place / "synthetic_objects.csv")}


def _materialize(dataset: Dataset) -> None:
    from sv_pipeline.definitions import defs
    from sv_pipeline.defs.launch import ASSETS, materialize_graph, project_instance

    with project_instance() as instance:
        job = defs().resolve_implicit_global_asset_job_def()
        assets = ("ingest_plan", *ASSETS, "pyramid", "fork_files")
        materialize_graph(job, dataset, instance, lambda name: click.echo(f"  {name}", err=True), assets)


def _pictures(dataset: Dataset, folder: Path) -> list[Path]:
    from sv_pipeline.reports import views

    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "supervoxels.png": views.supervoxels_picture,
        "roots.png": views.roots_picture,
        "mips.png": views.mips_picture,
    }
    written = []
    for name, draw in made.items():
        (folder / name).write_bytes(draw(dataset))
        written.append(folder / name)
    return written


def _summary(dataset: Dataset, home: str, config: Path, pictures: list[Path], proof: str, seconds: float) -> None:
    from sv_pipeline.reports.status import graph_status

    status = graph_status(dataset)
    nodes = {row.name: row.nodes for row in status.stages if row.nodes}
    size = " x ".join(map(str, dataset.volume.bounds.shape))
    resolution = " x ".join(f"{r:g}" for r in dataset.volume.scales[0].resolution)
    lines = [
        "",
        f"graph {dataset.graph_id} is ready ({seconds:.0f} s)",
        f"  volume      {size} voxels of {resolution} nm",
        f"  chunks      {dataset.grid.count(2)}, in {dataset.grid.n_layers} layers",
        f"  nodes       {', '.join(f'{name}: {count:,}' for name, count in nodes.items())}",
        f"  config      {config}",
        f"  watershed   {dataset.watershed_url}",
        f"  home        {home}",
        *(f"  picture     {path}" for path in pictures),
        "",
        proof,
        "",
        "Next:",
        "  make ui                                     runs, pictures and checks in Dagster",
        f"  {sys.argv[0]} --home {home} info {dataset.graph_id}",
    ]
    click.echo("\n".join(lines))
