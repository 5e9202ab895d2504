"""The job that registers a graph, which is the first step of everything: from a dataset YAML, or from its content.

The launchpad shows each field of a dataset with its documentation, and an example to change. What can be known without
reading volumes is checked when the run is asked for, so that a mistake is refused in the launchpad, before there is a
run.
"""

from typing import Any

import dagster as dg

from sv_pipeline.config import DatasetConfig, load_config, parse_config
from sv_pipeline.defs.config_schema import schema_of
from sv_pipeline.defs.metadata import explained_failures
from sv_pipeline.defs.partitions import add_partitions
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import INGEST_GROUP, UPKEEP
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.registration import require_local_inputs
from sv_pipeline.redaction import redacted
from sv_pipeline.registry import Dataset

__all__ = ["EXAMPLE", "register_graph_job"]

EXAMPLE = {
    "graph_id": "my_graph",
    "data_source": {"WATERSHED": "/data/my_graph/watershed"},
    "source": {"segmentation": "/data/my_segmentation.npz"},
    "graph_config": {"CHUNK_SIZE": [256, 256, 512]},
}
"""The dataset that the launchpad shows at first."""

SCHEMA = dg.Selector(
    {
        "path": dg.Field(
            str,
            description="Path of a dataset YAML, such as /data/my_graph.yaml. Dagster's code server and the run must "
            "be able to read it; otherwise give its content as 'dataset'.",
        ),
        "dataset": dg.Field(
            schema_of(DatasetConfig),
            default_value=EXAMPLE,
            description="The content of a dataset YAML. Change the example: the segmentation to read, and the folder "
            "or bucket of the watershed volume to make. If that volume exists already, remove 'source'.",
        ),
    }
)


class RefusedConfigError(dg.DagsterError):
    """A configuration that cannot be registered. Dagster's UI shows the message of such an error in the launchpad."""


def _parsed(given: dict[str, Any]) -> DatasetConfig:
    return load_config(given["path"]) if "path" in given else parse_config(given["dataset"], where="dataset")


@dg.config_mapping(config_schema=SCHEMA)
def checked_at_once(given: dict[str, Any]) -> dict[str, Any]:
    """Pass the dataset to its step; a configuration that cannot be used is refused when the run is asked for."""
    try:
        require_local_inputs(_parsed(given))
    except SvPipelineError as error:
        raise RefusedConfigError(redacted(str(error))) from None
    return {"ops": {"register_graph": {"config": given}}}


@dg.op(config_schema=SCHEMA, out=dg.Out(dg.Nothing))
def register_graph(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    """Check a dataset configuration against its source, store it, and add the graph and its layers as partitions."""
    with explained_failures():
        dataset = stages.register(_parsed(context.op_config), pipeline.home)
        metadata = _metadata(context, dataset)
    add_partitions(context.instance, [dataset])
    context.add_output_metadata(metadata)
    context.log.info(
        "registered %s: %s; next: materialize its partition of the ingest assets",
        dataset.graph_id,
        metadata["size"].value,
    )


def _metadata(context: dg.OpExecutionContext, dataset: Dataset) -> dict[str, Any]:
    """What was registered, and links to the next steps."""
    volume, grid, graph_id = dataset.volume, dataset.grid, dataset.graph_id
    shape = " x ".join(f"{n:,}" for n in volume.bounds.shape)
    resolution = " x ".join(f"{r:g}" for r in volume.scales[0].resolution)
    layers = {f"layer {number}": grid.count(number) for number in range(2, grid.n_layers + 1)}
    return {
        "graph": graph_id,
        "size": dg.MetadataValue.text(f"{shape} voxels of {resolution} nm"),
        "layers": dg.MetadataValue.text(", ".join(f"{name}: {count:,} chunks" for name, count in layers.items())),
        "next": dg.MetadataValue.text(
            f"Open the page below, press 'Materialize all', choose the partition {graph_id}: one run builds the graph. "
            "The asset ingest_plan forecasts time, memory and costs before."
        ),
        "build_it": dg.MetadataValue.url(_group_page(context)),
    }


def _group_page(context: dg.OpExecutionContext) -> str:
    """Return the page of the assets that build a graph; all assets, if the run belongs to no code location."""
    origin = context.run.remote_job_origin
    if origin is None:
        return "/assets"
    return f"/locations/{origin.repository_origin.code_location_origin.location_name}/asset-groups/{INGEST_GROUP}"


@dg.job(config=checked_at_once, tags=UPKEEP, executor_def=dg.in_process_executor)
def register_graph_job() -> None:
    """Register a graph: the first step.

    Open the tab *Launchpad*. It shows an example, and beside it what each field means. Give either the content of a
    dataset YAML,

    ```yaml
    dataset:
      graph_id: my_graph
      data_source:
        WATERSHED: /data/my_graph/watershed       # the volume of supervoxels: made here, as there is a source
      source:
        segmentation: /data/my_segmentation.npz   # .npz, .npy or a precomputed volume
        resolution: [16, 16, 40]                  # nm, if the segmentation does not state it
      graph_config:
        CHUNK_SIZE: [256, 256, 512]
    ```

    or its path:

    ```yaml
    path: /data/my_graph.yaml
    ```

    The configuration is checked against its source before anything is written. Nothing is built yet: the result of the
    run leads to the assets that do that.
    """
    register_graph()
