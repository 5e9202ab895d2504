"""Commands for stuck operations: list, show, recover, abandon."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from sv_pipeline.cli.kinds import UNFINISHED, CommandGroup, graph_argument, unfinished_operation_argument
from sv_pipeline.cli.output import json_option, print_json
from sv_pipeline.cli.stopping import CONTINUE, if_stopped
from sv_pipeline.edits.requests import user_or_default
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.operations.ownership import beat_seconds
from sv_pipeline.recovery import (
    FinishedError,
    NotStuckError,
    RecoveryReport,
    Unfinished,
    abandon,
    list_stuck,
    recover_all,
    release_orphans,
)
from sv_pipeline.recovery.dry_run import DryRun, dry_run
from sv_pipeline.recovery.durations import parse_duration
from sv_pipeline.registry import open_dataset
from sv_pipeline.wording import counted

__all__ = ["stuck"]


class _Duration(click.ParamType):  # type: ignore[type-arg]
    name = "duration"

    def convert(self, value: Any, parameter: Any, context: Any) -> float:
        try:
            return value if isinstance(value, float) else parse_duration(str(value))
        except SvPipelineError as error:
            self.fail(str(error), parameter, context)


_min_age = click.option(
    "--min-age",
    type=_Duration(),
    default="10m",
    show_default=True,
    help="Leave out operations younger than this: 90s, 10m, 1h.",
)


_take_locks = click.option(
    "--take-locks",
    is_flag=True,
    help="Restore locks that were removed, where no edit was made since then; refused where one was.",
)


@click.group(cls=CommandGroup)
def stuck() -> None:
    """Find and recover edits whose process died.

    \b
      sv-pipeline stuck list GRAPH               list unfinished operations
      sv-pipeline stuck show GRAPH OP            show all that is known of one operation
      sv-pipeline stuck recover GRAPH OP         roll it back, make the edit again, release its locks
      sv-pipeline stuck recover GRAPH --all      recover all operations that are older than --min-age
      sv-pipeline stuck abandon GRAPH OP         roll it back, release its locks, do not make the edit again
    """


@stuck.command("list", short_help="List unfinished operations.")
@graph_argument
@_min_age
@click.option("--deep", is_flag=True, help="Also search all rows for locks of finished operations.")
@json_option
@click.pass_obj
def list_(home: str, graph: str, min_age: float, *, deep: bool, as_json: bool) -> None:
    """List unfinished operations of GRAPH: user, age, status, locks, and what a recovery would do."""
    found = list_stuck(open_dataset(graph, home).graph, min_age=min_age, deep=deep)
    if as_json:
        print_json([_as_dict(one) for one in found])
        return
    if not found:
        more = "; --min-age 0 also lists younger operations" if min_age else ""
        click.echo(f"nothing is stuck in {graph} (older than {min_age:g} s{more})")
        return
    click.echo(
        f"{'op':>8}  {'user':16} {'kind':8} {'age':>8}  {'status':14} {'chunks':>6} {'roots':>5} {'beats':>5}  would"
    )
    for one in found:
        scope, owner = one.scope, one.owner
        click.echo(
            f"{one.operation_id:>8}  {one.user[:16]:16} {one.kind:8} {_age(one):>8}  {one.status:14} "
            f"{len(scope.chunks) if scope else 0:>6} {len(scope.roots) if scope else 0:>5} "
            f"{'' if owner is None else owner.beats:>5}  {one.outlook}"
        )
        if one.damage:
            click.echo(f"          it cannot be recovered: {one.damage}")
        if one.progress.error:
            click.echo(f"          {one.progress.attempts} recoveries failed, the last one with: {one.progress.error}")


@stuck.command(short_help="Show all that is known of one operation.")
@graph_argument
@unfinished_operation_argument
@json_option
@click.pass_obj
def show(home: str, graph: str, operation: int, *, as_json: bool) -> None:
    """Show what OPERATION of GRAPH holds, and what a recovery would do now. Nothing is changed."""
    plan = dry_run(open_dataset(graph, home).graph, operation)
    _say_plan(plan, as_json=as_json)


@stuck.command("recover", short_help="Roll an operation back, make the edit again, release its locks.")
@graph_argument
@click.argument("operation", type=UNFINISHED, required=False)
@click.option("--all", "every", is_flag=True, help="Recover all operations that are older than --min-age.")
@_min_age
@click.option("--deep", is_flag=True, help="Also release locks of finished operations; this reads all rows.")
@_take_locks
@click.option("--dry-run", "only_say", is_flag=True, help="Only show what would be done.")
@json_option
@click.pass_obj
@if_stopped(CONTINUE)
def recover_(
    home: str,
    graph: str,
    operation: int | None,
    min_age: float,
    *,
    every: bool,
    deep: bool,
    take_locks: bool,
    only_say: bool,
    as_json: bool,
) -> None:
    """Recover OPERATION of GRAPH, or --all.

    A recovery makes sure that the owner is dead, rolls back what it wrote, makes the edit again and releases its locks.
    """
    if (operation is None) is not every:
        raise click.UsageError("name one operation, or give --all.")
    opened = open_dataset(graph, home).graph
    every_one = [] if operation is not None else list_stuck(opened, min_age=min_age, deep=deep, note=not only_say)
    wanted = [operation] if operation is not None else [one.id for one in every_one]
    failed: dict[int, str] = {}
    if only_say:
        for one in wanted:
            _say_plan(dry_run(opened, one), as_json=as_json)
        return
    for one, done in recover_all(opened, wanted, progress=_waiting, take_locks=take_locks):
        if isinstance(done, RecoveryReport):
            _say(done, as_json=as_json)
        elif isinstance(done, NotStuckError):
            released = release_orphans(opened, one) if deep else 0
            click.echo(f"operation {one}: {counted(released, 'lock')} released" if released else str(done), err=True)
        elif not every:
            raise done
        else:
            failed[one] = str(done)
            click.echo(f"operation {one}: {done}", err=True)
    if every and not wanted:
        click.echo("nothing is stuck", err=True)
    if failed:
        raise SvPipelineError(f"the recovery of {len(failed)} of {len(wanted)} failed: {', '.join(map(str, failed))}.")


@stuck.command("abandon", short_help="Roll an operation back, and do not make the edit again.")
@graph_argument
@unfinished_operation_argument
@click.option("--reason", required=True, help="Reason why the edit is given up, for its user; it is stored in the log.")
@click.option("--user", help="User who decides this, for the log. Default: the user of this machine.")
@_take_locks
@click.option("--dry-run", "only_say", is_flag=True, help="Only show the present state.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
@if_stopped("Run the same command again to continue.")
def abandon_(
    home: str,
    graph: str,
    operation: int,
    reason: str,
    user: str | None,
    *,
    take_locks: bool,
    only_say: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Give up OPERATION of GRAPH: roll back what it wrote, release its locks, and log the reason.

    This is for an operation whose recovery always fails. The edit is lost: its user has to make it again.
    """
    opened = open_dataset(graph, home).graph
    try:
        plan = dry_run(opened, operation)
    except FinishedError as error:
        if error.complete or only_say:
            raise
        click.echo(str(error), err=True)
        return
    if only_say:
        _say_plan(plan, as_json=as_json)
        return
    if not yes:
        _say_plan(plan, as_json=False)
        click.confirm("Roll this operation back, without making it again?", abort=True, err=True)
    try:
        report = abandon(
            opened,
            operation,
            user=user_or_default(user),
            reason=reason,
            progress=_waiting,
            take_locks=take_locks,
        )
    finally:
        click.echo(err=True)
    _say(report, as_json=as_json)


def _waiting(left: float) -> None:
    click.echo(f"\rwatching whether the owner is alive, {left:3.0f} s left ", nl=False, err=True)
    if left <= beat_seconds() / 2:
        click.echo(err=True)


def _say(report: RecoveryReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo(str(report))


def _say_plan(plan: DryRun, *, as_json: bool) -> None:
    if as_json:
        print_json(plan.to_dict())
        return
    for name, value in plan.to_dict().items():
        click.echo(f"{name.replace('_', ' '):24} {value}")


def _age(one: Unfinished) -> str:
    seconds = one.age()
    if seconds is None:
        return "?"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _as_dict(one: Unfinished) -> dict[str, Any]:
    scope = one.scope
    return {
        "operation": one.operation_id,
        "user": one.user,
        "kind": one.kind,
        "status": one.status,
        "began": None if one.began is None else datetime.fromtimestamp(one.began / 1000, UTC).isoformat(),
        "age_seconds": one.age(),
        "chunks": list(scope.chunks) if scope else [],
        "roots": list(scope.roots) if scope else [],
        "owner": None if one.owner is None else one.owner.token,
        "beats": None if one.owner is None else one.owner.beats,
        "foreign": one.foreign,
        "would": one.outlook,
        "recoveries": one.progress.attempts,
        "error": one.damage or one.progress.error,
    }
