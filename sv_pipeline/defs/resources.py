"""What steps need from the deployment: the home folder and the coordinator's address."""

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
    """Finds graphs by id."""

    home: str = Field(description="Home folder (path or kvstore URL) with the registered graphs.")
    coordinator: str = Field(
        default="",
        description="host:port of the OCDBT coordinator for populate_method: coordinator. Not needed for the default.",
    )
    max_lag_seconds: float = Field(
        default=MAX_LAG_SECONDS,
        description="Age of the oldest edit that coarser mips do not show yet, above which a check alerts.",
    )

    def dataset(self, graph_id: str) -> Dataset:
        """A registered graph."""
        return open_dataset(graph_id, self.home)

    def open(self, graph_id: str) -> OpenGraph:
        """A registered graph, to look at and to edit."""
        return open_graph(graph_id, self.home)

    @property
    def registry(self) -> Registry:
        """All registered graphs."""
        return Registry(self.home)

    def coordinator_address(self, dataset: Dataset) -> str | None:
        """The graph's own address, else the deployment's; None where neither is set."""
        return dataset.config.ocdbt_config.coordinator_address or self.coordinator or None


def resources_from_environment() -> dict[str, Any]:
    """Resources out of SV_PIPELINE_HOME, SV_PIPELINE_COORDINATOR and SV_PIPELINE_MAX_LAG_SECONDS.

    Workers read the same variables.
    """
    return {
        "pipeline": PipelineResource(
            home=default_home(),
            coordinator=known_address() or "",
            max_lag_seconds=number_in(LAG_VARIABLE, MAX_LAG_SECONDS, meaning="seconds"),
        ),
    }
