"""The deployment's settings for steps: the home folder, the coordinator's address and the limit of the lag."""

from typing import Any

import dagster as dg
from pydantic import Field

from sv_pipeline.environment import number_in
from sv_pipeline.proofreading import OpenGraph, open_graph
from sv_pipeline.registry import Dataset, Registry, default_home, open_dataset
from sv_pipeline.storage.coordinator import known_address

__all__ = ["LAG_VARIABLE", "PipelineResource", "resources_from_environment"]

LAG_VARIABLE = "SV_PIPELINE_MAX_LAG_SECONDS"
MAX_LAG_SECONDS = 900.0


class PipelineResource(dg.ConfigurableResource):
    """Gives access to registered graphs by id, and holds settings of the deployment."""

    home: str = Field(description="Home folder (path or kvstore URL) with the registered graphs.")
    coordinator: str = Field(
        default="",
        description="host:port of the OCDBT coordinator, for graphs with populate_method: coordinator only.",
    )
    max_lag_seconds: float = Field(
        default=MAX_LAG_SECONDS,
        description="The check pyramid_keeps_up fails if coarser mips do not show an edit after this many seconds.",
    )

    def dataset(self, graph_id: str) -> Dataset:
        """Return the dataset of a registered graph."""
        return open_dataset(graph_id, self.home)

    def open(self, graph_id: str) -> OpenGraph:
        """Open a registered graph for reading and editing."""
        return open_graph(graph_id, self.home)

    @property
    def registry(self) -> Registry:
        """The registry of all graphs."""
        return Registry(self.home)

    def coordinator_address(self, dataset: Dataset) -> str | None:
        """Return the coordinator's address of the graph, or else of the deployment; None if neither is set."""
        return dataset.config.ocdbt_config.coordinator_address or self.coordinator or None


def resources_from_environment() -> dict[str, Any]:
    """Make resources from SV_PIPELINE_HOME, SV_PIPELINE_COORDINATOR and SV_PIPELINE_MAX_LAG_SECONDS.

    Worker processes read the same variables.
    """
    return {
        "pipeline": PipelineResource(
            home=default_home(),
            coordinator=known_address() or "",
            max_lag_seconds=number_in(LAG_VARIABLE, MAX_LAG_SECONDS, meaning="seconds"),
        ),
    }
