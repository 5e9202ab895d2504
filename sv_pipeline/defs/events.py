"""A sensor that delivers the edit feed of each graph to its receivers."""

import time
from typing import Any

import dagster as dg

from sv_pipeline.defs.metadata import numbers
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.ticks import ended_tick, read_cursor, told
from sv_pipeline.event_receivers import receivers_of
from sv_pipeline.feed.delivery import next_events
from sv_pipeline.feed.event import EditEvent
from sv_pipeline.feed.receivers import deliver_to_all
from sv_pipeline.registry import Registry, ask_every_graph

__all__ = ["edit_events_sensor"]

SECONDS = 20.0
"""Time for the deliveries of one tick; Dagster allows 60 seconds for the whole tick."""


@dg.sensor(
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Delivers finished edits to the receivers that the configuration of a graph or the environment names: "
    "Pub/Sub topics, webhooks, and observations of the asset fork. The cursor holds the number of the next event to "
    "observe; the table of a graph stores the progress of the other receivers.",
)
def edit_events_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
    """Deliver finished edits to the receivers that the YAML of a graph or the environment names.

    The graph's table stores the progress of webhooks and Pub/Sub topics. The progress of observations of the asset
    ``fork`` is in this sensor's cursor, which Dagster stores together with them.
    """
    known = read_cursor(context)
    said, observed, cursor = [], [], {}
    began = time.monotonic()

    def ask(registry: Registry, graph_id: str) -> tuple[list[str], list[EditEvent], dict[str, Any] | None]:
        return _deliver(registry, graph_id, known.get(graph_id), began + SECONDS)

    answers = ask_every_graph(pipeline.registry, ask)
    for graph_id, answer in answers.items():
        if isinstance(answer, str):
            said.append(f"{graph_id}: {answer}")
            place = known.get(graph_id)
        else:
            outcomes, events, place = answer
            said += outcomes
            observed += [_observation(event) for event in events]
        if place is not None:
            cursor[graph_id] = place
    found = told(said) or "no graph has receivers of edit events"
    return ended_tick(context, f"looked at {len(answers)} graphs: {found}", cursor=cursor, asset_events=observed)


def _deliver(
    registry: Registry, graph_id: str, place: dict[str, Any] | None, deadline: float
) -> tuple[list[str], list[EditEvent], dict[str, Any] | None]:
    """Deliver events of a graph; returns messages about that, events to observe, and the place after these events."""
    dataset = registry.get(graph_id)
    receivers = receivers_of(dataset.config.events)
    if not receivers or not dataset.table.exists():
        return [], [], place
    outcomes = deliver_to_all(dataset, seconds=max(0.0, deadline - time.monotonic()))
    said = [f"{graph_id}: {outcome}" for outcome in outcomes]
    events: list[EditEvent] = []
    # The YAML and the environment may both name Dagster. There is one cursor, so its events are fetched once.
    dagster = next((receiver for receiver in receivers if receiver.to == "dagster"), None)
    if dagster is not None:
        events, place = next_events(dataset.graph, place, dagster.start)
        said.append(f"{graph_id}: {dagster.name}: {len(events)} observed")
    return said, events, place


def _observation(event: EditEvent) -> dg.AssetObservation:
    """Convert an event to an observation of the graph's fork."""
    told = event.to_dict()
    names = ["id", "operation_id", "kind", "about", "user", "time", "coarser_mips_behind"]
    names += ["old_root_ids", "new_root_ids", "old_lvl2_ids", "new_lvl2_ids"]
    shown = {name: told[name] for name in names}
    shown["replaced_supervoxels"] = len(told["replaced_supervoxels"])
    metadata = numbers({name: value for name, value in shown.items() if value is not None})
    metadata["event"] = dg.MetadataValue.json(_for_browsers(told))
    return dg.AssetObservation("fork", str(event), metadata, event.graph_id)


def _for_browsers(value: Any) -> Any:
    """Convert large numbers to text, since JavaScript would round them."""
    if isinstance(value, dict):
        return {name: _for_browsers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_for_browsers(item) for item in value]
    return str(value) if isinstance(value, int) and abs(value) >= 1 << 53 else value
