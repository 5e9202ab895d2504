"""Settings of the Jobs, from the YAML file that SV_PIPELINE_KUBERNETES names. Knows no cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sv_pipeline.config_errors import describe_errors, not_a_mapping, unusable_fields
from sv_pipeline.config_fields import Int
from sv_pipeline.errors import ConfigError
from sv_pipeline.ingest.batches import Stage
from sv_pipeline.memory import INTERPRETER_MB
from sv_pipeline.yaml_files import read_yaml

__all__ = ["SETTINGS_VARIABLE", "JobSettings", "PodResources", "parse_settings", "settings_from_environment"]

SETTINGS_VARIABLE = "SV_PIPELINE_KUBERNETES"
FROM_ENVIRONMENT = {"image": "SV_PIPELINE_IMAGE", "namespace": "SV_PIPELINE_NAMESPACE"}
"""Environment variables for fields that a settings file leaves out; other files of a deployment need them too."""
EXAMPLE = "deploy/kubernetes/fanout.yaml is an example."
DEFAULT = "default"

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
"""Name of an object of the cluster."""
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")]
"""An amount as Kubernetes writes it, in quotes if it is a bare number: ``"1"``, ``500m``, ``4Gi``."""


def _known_work(value: Mapping[str, PodResources]) -> Mapping[str, PodResources]:
    stages = {stage.value for stage in Stage}
    for name in value:
        stage, _, layer = name.partition("_L")
        if name != DEFAULT and (stage not in stages or ("_L" in name and not layer.isdigit())):
            raise ValueError(
                f"{name!r} is no kind of work: use {DEFAULT}, a stage ({', '.join(sorted(stages))}), or a stage of a "
                "layer, such as graph_L02"
            )
    return value


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
UNITS |= {f"{prefix}i": float(1 << shift) for prefix, shift in zip("KMGTP", range(10, 60, 10), strict=True)}
SMALLEST_BUDGET_MB = 64


class PodResources(_Settings):
    """What one worker may use."""

    memory: Quantity = "4Gi"
    """Both request and limit, so that a worker takes nothing that its node has promised to others. The worker's memory
    budget is what is left of it beside the interpreter."""
    cpu: Quantity = "1"
    """Requested, but not limited: a worker may use more while its node is idle."""
    ephemeral_storage: Quantity | None = None
    parallelism: Int | None = Field(default=None, ge=1, le=100_000)
    """Largest number of pods at once for this kind of work; default: that of the settings."""

    @property
    def budget_mb(self) -> int:
        """Memory in MiB that is left for the work of a worker beside its interpreter."""
        number = self.memory.rstrip("mkMGTPKi")
        return int(float(number) * UNITS[self.memory.removeprefix(number)] / (1 << 20)) - INTERPRETER_MB

    @model_validator(mode="after")
    def _room_for_work(self) -> PodResources:
        if self.budget_mb < SMALLEST_BUDGET_MB:
            raise ValueError(
                f"memory {self.memory} is too little: the interpreter of a worker takes {INTERPRETER_MB} MiB, and its "
                f"work needs {SMALLEST_BUDGET_MB} MiB at least; write 2Gi, for example"
            )
        return self


class JobSettings(_Settings):
    """How batches run in a cluster. Only the image is required."""

    image: str = Field(min_length=1)
    """Image with sv_pipeline in it, the same as that of the code server."""
    namespace: Name = "default"
    service_account: Name = "default"
    """Service account of the workers; it needs no right in the cluster, but access to bucket and table."""
    image_pull_policy: Annotated[str, Field(pattern=r"^(Always|IfNotPresent|Never)$")] = "IfNotPresent"
    command: tuple[str, ...] = ("sv-pipeline",)
    """The command line inside the image; the arguments follow."""
    env: dict[str, str] = {}
    """Environment variables of the workers; no secrets, since everyone who may read Jobs can read them."""
    env_config_maps: tuple[Name, ...] = ()
    """Config maps of which every entry becomes an environment variable, in the order of their precedence."""
    env_secrets: tuple[Name, ...] = ()
    """Secrets of which every entry becomes an environment variable."""
    resources: Annotated[dict[str, PodResources], AfterValidator(_known_work)] = {}
    """Resources by kind of work: ``default``, a stage (``voxels``), or a stage of a layer (``graph_L02``)."""
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    priority_class: Name | None = None
    """Name of the priority class of the workers; default: that of the cluster."""
    parallelism: Int = Field(default=50, ge=1, le=100_000)
    """Largest number of pods of a Job at once."""
    most_batches: Int = Field(default=10_000, ge=1, le=1_000_000)
    """Largest number of batches, and so of pods, of a Job; batches are larger where a layer would need more."""
    backoff_limit_per_index: Int = Field(default=3, ge=0, le=100)
    """How many more attempts an index gets whose pod ended without success. Evictions do not count."""
    max_failed_indexes: Int | None = Field(default=None, ge=0)
    """The Job stops when more indexes than this have failed for good; default: all others are finished first."""
    active_deadline_seconds: Int | None = Field(default=None, ge=1)
    """Longest time of a Job; default: no limit."""
    ttl_seconds_after_finished: Int | None = Field(default=86_400, ge=0)
    """When the cluster removes a Job that was left, after its end; None: never."""
    keep_finished_jobs: bool = False
    """Whether a Job stays, to be looked at, when all its chunks are done. A failed Job always stays."""
    poll_seconds: float = Field(default=5.0, gt=0, le=600)
    """Pause between two looks at a Job."""
    api_patience_seconds: float = Field(default=600.0, gt=0)
    """How long one request to the API server is repeated before the step fails."""
    context: str | None = None
    """Context of the kubeconfig file, outside of a cluster; default: its current one."""

    def resources_for(self, stage: Stage, layer: int) -> PodResources:
        """Return the resources of a kind of work: the most specific entry."""
        names = (f"{stage}_L{layer:02d}", stage.value, DEFAULT)
        return next((self.resources[name] for name in names if name in self.resources), PodResources())


def parse_settings(raw: Any, where: str) -> JobSettings:
    """Validate the content of a settings file (``where``); ConfigError names every field that cannot be used."""
    if not isinstance(raw, dict):
        raise not_a_mapping(where, raw, remedy=EXAMPLE)
    try:
        return JobSettings.model_validate(raw)
    except pydantic.ValidationError as error:
        lines = [f"  {line}" for line in describe_errors(JobSettings, error)]
        raise unusable_fields(where, lines, remedy=EXAMPLE) from error


def settings_from_environment() -> JobSettings:
    """Read the settings file that SV_PIPELINE_KUBERNETES names; ConfigError if it names none.

    Image and namespace, if the file leaves them out, are those of SV_PIPELINE_IMAGE and SV_PIPELINE_NAMESPACE.
    """
    path = os.environ.get(SETTINGS_VARIABLE, "").strip()
    if not path:
        raise ConfigError(
            f"{SETTINGS_VARIABLE} is not set, so it is not known which image pods run, and where.",
            remedy=f"Set it to the path of a settings file; {EXAMPLE}",
        )
    raw = read_yaml(path)
    if isinstance(raw, dict):
        raw = {name: os.environ[v] for name, v in FROM_ENVIRONMENT.items() if os.environ.get(v)} | raw
    return parse_settings(raw, path)
