"""The command ``sv-pipeline``: it parses arguments, calls the library and prints. Each error is one message."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys

import click
from click.shell_completion import CompletionItem

from sv_pipeline.cli.kinds import HOME_IS_NAMED, CommandGroup
from sv_pipeline.defects import DefectError, traceback_of
from sv_pipeline.errors import SvPipelineError, notes_of
from sv_pipeline.redaction import redacted, remember

__all__ = ["COMMANDS", "DEFECT_EXIT_CODE", "cli", "main"]

DEBUG_VARIABLE = "SV_PIPELINE_DEBUG"
COMPLETION_VARIABLE = "_SV_PIPELINE_COMPLETE"
DEFECT_EXIT_CODE = 70
"""Exit code of a command that ended with an unexpected error."""

COMMANDS = {
    "demo": ("sv_pipeline.cli.demo:demo", "Take a volume through the whole pipeline, and show the result."),
    "plan": ("sv_pipeline.cli.plan:plan", "Forecast time, memory, bytes and costs of an ingest."),
    "ingest": ("sv_pipeline.cli.ingest:ingest", "Build everything that is missing of a graph."),
    "work": ("sv_pipeline.cli.work:work", "Run one batch of a work plan, as pods of Kubernetes do."),
    "requeue": ("sv_pipeline.cli.ingest:requeue", "Build one chunk, or write it again."),
    "purge-layer": ("sv_pipeline.cli.ingest:purge_layer", "Remove a layer and those above, to build them again."),
    "attach": ("sv_pipeline.cli.graphs:attach", "Register a graph whose table exists already."),
    "list": ("sv_pipeline.cli.graphs:list_graphs", "List the registered graphs."),
    "status": ("sv_pipeline.cli.inspect:status", "Show the progress of an ingest."),
    "roots": ("sv_pipeline.cli.inspect:roots", "Look up the neurons of supervoxels or points."),
    "info": ("sv_pipeline.cli.inspect:info", "Show how to read a graph."),
    "view": ("sv_pipeline.cli.view:view", "Show a graph in a browser, and edit it there."),
    "merge": ("sv_pipeline.cli.edits:merge", "Merge two objects into one."),
    "split": ("sv_pipeline.cli.edits:split", "Split an object between two sets of points."),
    "preview": ("sv_pipeline.cli.edits:preview", "Show what a split would do; nothing is written."),
    "undo": ("sv_pipeline.cli.edits:undo", "Undo an operation."),
    "redo": ("sv_pipeline.cli.edits:redo", "Redo an operation that was undone."),
    "picture": ("sv_pipeline.cli.edits:picture", "Draw a picture before and after an operation."),
    "ops": ("sv_pipeline.cli.edits:operations", "Show the operation log."),
    "change-log": ("sv_pipeline.cli.history:change_log", "Show the edits of objects or of a user, with roots."),
    "rollback": ("sv_pipeline.cli.history:rollback", "Undo the edits of a user; a dry run by default."),
    "events": ("sv_pipeline.cli.events:events", "Show finished edits, or deliver them to receivers."),
    "stuck": ("sv_pipeline.cli.stuck:stuck", "Find and recover edits whose process died."),
    "lag": ("sv_pipeline.cli.pyramid:lag", "Show how far coarser mips are behind."),
    "downsample": ("sv_pipeline.cli.pyramid:downsample", "Bring coarser mips up to date with edits."),
    "mend": ("sv_pipeline.cli.mend:mend", "Convert what other software wrote to our form."),
    "garbage": ("sv_pipeline.cli.garbage:garbage", "Show what a graph's voxels store; delete what nothing uses."),
    "backup": ("sv_pipeline.cli.backup:backup", "Copy a graph to another place while edits go on."),
    "restore": ("sv_pipeline.cli.backup:restore", "Make a graph from a backup."),
    "reconcile": (
        "sv_pipeline.cli.backup:reconcile",
        "Make a table and a fork fit; a dry run by default.",
    ),
    "retire": ("sv_pipeline.cli.retire:retire", "Remove a graph; a dry run by default."),
    "retire-base": ("sv_pipeline.cli.retire:retire_base", "Remove the base of a watershed; a dry run by default."),
    "verify": ("sv_pipeline.cli.inspect:verify", "Prove that a graph and its segmentation are sound."),
}
"""Place and summary of each command; a command is loaded when it is called, so that help is instant."""


class _Commands(CommandGroup):
    """A group that knows its commands by name, and loads a command when it is called."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the names of the commands, in the order in which an operator needs them."""
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Load a command; returns None if there is none of this name."""
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def shell_complete(self, _context: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the commands, without loading any; or the options, after a dash."""
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, _context, incomplete)
        return [CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)]

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--home",
    metavar="FOLDER",
    help="Home with the registered graphs (a folder or a kvstore URL). "
    "Default: $SV_PIPELINE_HOME, else ./.sv_pipeline if it exists, else ~/.sv_pipeline.",
)
@click.option("-v", "--verbose", is_flag=True, help="Also print log messages of level INFO.")
@click.option("--debug", is_flag=True, help="Also print the traceback of an error.")
@click.version_option(package_name="sv_pipeline")
@click.pass_context
def cli(context: click.Context, home: str | None, *, verbose: bool, debug: bool) -> None:
    """Take a segmentation from a volume in a bucket to a chunked graph that can be proofread.

    \b
    A graph is described by one YAML file and known by its graph id:
      sv-pipeline plan my_graph.yaml       forecast what it will take
      sv-pipeline ingest my_graph.yaml     build everything that is missing
      sv-pipeline status my_graph          show the progress of each layer
      sv-pipeline verify my_graph          prove that the result is sound
      sv-pipeline info my_graph            show what a reader needs to open it
    """
    # Imported here, since these modules take a second to load, and --help does not need them.
    from rich.console import Console
    from rich.logging import RichHandler

    from sv_pipeline.places import parse_folder
    from sv_pipeline.registry import HOME_VARIABLE, default_home

    context.meta[HOME_IS_NAMED] = bool(home or os.environ.get(HOME_VARIABLE))
    context.obj = parse_folder(home).text if home else default_home()
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    remember([value for name, value in os.environ.items() if name.lower().endswith(("_webhook", "_proxy"))])
    # With this variable, worker processes and Dagster's resources find the same home.
    os.environ[HOME_VARIABLE] = context.obj
    # A program that reads the output gets one line for each message; a terminal gets it folded.
    on_screen = sys.stderr.isatty()
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s" if on_screen else "%(levelname)s: %(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)] if on_screen else None,
    )


def main() -> None:
    """Run the command line and exit with its exit code."""
    # SIGTERM ends the command in the same way as Ctrl-C, so that the last line says what was left.
    signal.signal(signal.SIGTERM, lambda *_: _stop())
    if os.environ.get(COMPLETION_VARIABLE, "").endswith("_complete"):
        # Whatever a library says while a shell waits for completions would be printed into the command line.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    try:
        cli(standalone_mode=False, complete_var=COMPLETION_VARIABLE)
    except click.ClickException as error:
        said = error.format_message()
        if redacted(said) == said:
            error.show()
        else:
            click.echo(f"Error: {redacted(said)}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has closed it. Without this, Python would report the error again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt) as stop:
        if isinstance(stop, click.Abort) and stop.__cause__ is None:
            # A question was not answered with yes; commands ask before they begin.
            click.echo("not confirmed: nothing was changed.", err=True)
            sys.exit(1)
        click.echo("\n".join(["stopped.", *(notes_of(stop) or notes_of(stop.__cause__))]), err=True)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - at the last wall, every error becomes one message for the user
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """Print one message about the error that has ended a command, and return the exit code."""
    if not isinstance(error, SvPipelineError):
        # Imported here, since it takes a second to load, and --help does not need it.
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
