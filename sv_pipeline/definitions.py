"""The Dagster code location: all definitions in one object."""

from __future__ import annotations

import dagster as dg

__all__ = ["defs"]


@dg.definitions
def defs() -> dg.Definitions:
    """Return all assets, checks, jobs, sensors and resources; they are built when a Dagster process asks for them."""
    from sv_pipeline.defs import (
        assets,
        backup,
        built,
        checks,
        edit_failures,
        edits,
        events,
        garbage,
        jobs,
        layers,
        planning,
        pyramid,
        pyramid_sensor,
        rebuild,
        recovery,
        registration,
        retirement,
        sensors,
        verification,
        verification_by_parts,
    )
    from sv_pipeline.defs.executors import executor_from_environment
    from sv_pipeline.defs.resources import resources_from_environment

    return dg.Definitions(
        assets=[
            planning.ingest_plan,
            assets.watershed,
            assets.base_ocdbt,
            layers.chunked_graph,
            layers.layer,
            assets.fork,
            assets.reader_contract,
            pyramid.pyramid,
            garbage.fork_files,
        ],
        asset_checks=[checks.invariants, checks.layer_complete, checks.watershed_unchanged, pyramid.pyramid_keeps_up],
        jobs=[
            registration.register_graph_job,
            jobs.purge_layer_job,
            built.check_layers_job,
            planning.requeue_chunk_job,
            verification.verify_job,
            verification_by_parts.verify_by_parts_job,
            edits.split_job,
            edits.preview_split_job,
            edits.merge_job,
            edits.undo_job,
            edits.redo_job,
            pyramid.downsample_job,
            rebuild.rebuild_mip_job,
            garbage.garbage_report_job,
            garbage.collect_garbage_job,
            retirement.retire_graph_job,
            backup.backup_job,
            recovery.recover_operation_job,
            recovery.abandon_operation_job,
            recovery.mend_job,
        ],
        sensors=[
            sensors.registered_graphs_sensor,
            built.built_in_a_terminal_sensor,
            pyramid_sensor.downsample_sensor,
            recovery.stuck_operations_sensor,
            events.edit_events_sensor,
            recovery.dead_recoveries_sensor,
            edit_failures.failed_edits_sensor,
            edit_failures.canceled_edits_sensor,
        ],
        schedules=[
            verification.verify_nightly_schedule,
            verification.verify_changes_schedule,
            garbage.garbage_report_schedule,
            garbage.collect_garbage_schedule,
            backup.backup_schedule,
        ],
        resources=resources_from_environment(),
        executor=executor_from_environment(),
    )
