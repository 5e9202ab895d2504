"""The command ``sv-pipeline``: it parses, calls the rooms below, and prints. Each error is one message."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from typing import Any

import click

from sv_pipeline.defects import DefectError, traceback_of
from sv_pipeline.errors import SvPipelineError, notes_of
from sv_pipeline.redaction import redacted, remember

__all__ = ["COMMANDS", "DEFECT_EXIT_CODE", "cli", "main"]

DEBUG_VARIABLE = "SV_PIPELINE_DEBUG"
DEFECT_EXIT_CODE = 70
"""Of a command that met an error which nobody has foreseen."""

COMMANDS = {
    "demo": ("sv_pipeline.cli.demo:demo", "Take a volume through the whole pipeline, and show the result."),
    "ingest": ("sv_pipeline.cli.ingest:ingest", "Build a graph, as far as it is not built yet."),
    "purge-layer": ("sv_pipeline.cli.ingest:purge_layer", "Undo a layer and those above, to build them again."),
    "attach": ("sv_pipeline.cli.graphs:attach", "Make a graph known whose table exists already."),
    "list": ("sv_pipeline.cli.graphs:list_graphs", "Show which graphs are known."),
    "status": ("sv_pipeline.cli.inspect:status", "Show how far an ingest is."),
    "roots": ("sv_pipeline.cli.inspect:roots", "Look up the neurons of supervoxels or points."),
    "info": ("sv_pipeline.cli.inspect:info", "Show what a graph is and how to read it."),
    "merge": ("sv_pipeline.cli.edits:merge", "Make one object of two."),
    "split": ("sv_pipeline.cli.edits:split", "Cut an object between two sets of points."),
    "preview": ("sv_pipeline.cli.edits:preview", "Show what a split would do; nothing is written."),
    "undo": ("sv_pipeline.cli.edits:undo", "Take an operation back."),
    "redo": ("sv_pipeline.cli.edits:redo", "Make an undone operation again."),
    "picture": ("sv_pipeline.cli.edits:picture", "Draw an operation, before and after it."),
    "ops": ("sv_pipeline.cli.edits:operations", "Show the operation log."),
    "change-log": ("sv_pipeline.cli.history:change_log", "Show the edits of objects or of a user, with roots."),
    "rollback": ("sv_pipeline.cli.history:rollback", "Take back what a user has edited; a dry run at first."),
    "events": ("sv_pipeline.cli.events:events", "Show finished edits as they come; deliver them to receivers."),
    "stuck": ("sv_pipeline.cli.stuck:stuck", "Find and recover edits whose process died."),
    "lag": ("sv_pipeline.cli.pyramid:lag", "Show how far coarser mips are behind."),
    "downsample": ("sv_pipeline.cli.pyramid:downsample", "Let coarser mips catch up with edits."),
    "mend": ("sv_pipeline.cli.mend:mend", "Bring what other software wrote into our form."),
    "verify": ("sv_pipeline.cli.inspect:verify", "Prove that a graph and its segmentation are sound."),
}
"""Where each command is, and its line in the list of commands; loaded when it is called, so that help is instant."""


class _Commands(click.Group):
    """Knows the commands by name, loads one when it is called."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Names, in the order in which an operator meets them."""
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """The command, loaded; None if there is none of this name."""
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(self, context: click.Context, arguments: list[str]) -> Any:
        """As click does, but naming the commands that there are."""
        name = arguments[0]
        if not name.startswith("-") and name not in COMMANDS:
            context.fail(f"there is no command {name!r}; there are {', '.join(COMMANDS)}.")
        return super().resolve_command(context, arguments)

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--home",
    metavar="FOLDER",
    help="Where registered graphs live (a folder or a kvstore URL). "
    "Default: $SV_PIPELINE_HOME, else ./.sv_pipeline if it is there, else ~/.sv_pipeline.",
)
@click.option("-v", "--verbose", is_flag=True, help="Also log what happens inside.")
@click.option("--debug", is_flag=True, help="Also show where an error was raised.")
@click.version_option(package_name="sv_pipeline")
@click.pass_context
def cli(context: click.Context, home: str | None, *, verbose: bool, debug: bool) -> None:
    """Take a segmentation from a volume in a bucket to a chunked graph that can be proofread.

    \b
    A graph is described by one YAML file and known by its graph id:
      sv-pipeline ingest my_graph.yaml     build everything that is missing
      sv-pipeline status my_graph          how far each layer is
      sv-pipeline verify my_graph          prove that the result is sound
      sv-pipeline info my_graph            what a reader needs to open it
    """
    # Imported here: what these load takes a second, and --help does without.
    from rich.console import Console
    from rich.logging import RichHandler

    from sv_pipeline.places import parse_folder
    from sv_pipeline.registry import HOME_VARIABLE, default_home

    context.obj = parse_folder(home).text if home else default_home()
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    remember([value for name, value in os.environ.items() if name.lower().endswith(("_webhook", "_proxy"))])
    # Worker processes, and Dagster's resources, find the same home.
    os.environ[HOME_VARIABLE] = context.obj
    # A program that reads the output gets one line for each message; a terminal gets it folded.
    on_screen = sys.stderr.isatty()
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s" if on_screen else "%(levelname)s: %(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)] if on_screen else None,
    )


def main() -> None:
    """Entry point."""
    # Asked to end, as by Ctrl-C: so that the last line says what was left.
    signal.signal(signal.SIGTERM, lambda *_: _stop())
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        said = error.format_message()
        if redacted(said) == said:
            error.show()
        else:
            click.echo(f"Error: {redacted(said)}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The process that reads our output has seen enough; Python would complain about it once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt) as stop:
        notes = notes_of(stop) or notes_of(stop.__context__)
        left = notes or ["What was finished stays finished, run the same command to go on."]
        click.echo("\n".join(["stopped.", *left]), err=True)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the last wall: whatever it is, a person gets one message
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """One message about an error that has ended a command, and the exit code."""
    if not isinstance(error, SvPipelineError):
        # Imported here: what these load takes a second, and --help does without.
        from sv_pipeline.storage.wall import our_error

        ours = our_error(error)
    else:
        ours = error
    if os.environ.get(DEBUG_VARIABLE):
        click.echo(traceback_of(error), err=True)
    if ours is not None:
        click.secho(f"error ({ours.kind}): ", fg="red", nl=False, err=True)
        click.echo(str(ours), err=True)
        return 1
    click.secho("error (defect): ", fg="red", nl=False, err=True)
    click.echo("\n".join([str(DefectError(error)), *notes_of(error)]), err=True)
    return DEFECT_EXIT_CODE


def _stop() -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
