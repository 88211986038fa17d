"""Which commands there are. A command's module is imported when that command is asked for, and not before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version as version_of
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from synckit_streams.cli.terminal import INTERRUPTED, show

# In the order in which a new user meets them: command, module, function.
COMMANDS = (
    ("demo", "synckit_streams.cli.demo", "demo"),
    ("import", "synckit_streams.cli.importing", "import_file"),
    ("ingest", "synckit_streams.cli.ingesting", "ingest"),
    ("export", "synckit_streams.cli.exporting", "export"),
    ("log", "synckit_streams.cli.log", "log"),
    ("run", "synckit_streams.cli.running", "run"),
    ("dlq", "synckit_streams.cli.dead_letters", "dlq"),
    ("projection", "synckit_streams.cli.projections", "projection"),
    ("sync", "synckit_streams.cli.syncing", "sync"),
    ("connect", "synckit_streams.cli.connecting", "connect"),
    ("status", "synckit_streams.cli.status", "status"),
    ("migrate", "synckit_streams.cli.migrating", "migrate"),
    ("backup", "synckit_streams.cli.backing", "backup"),
    ("restore", "synckit_streams.cli.backing", "restore"),
    ("verify", "synckit_streams.cli.verifying", "verify"),
    ("asyncapi", "synckit_streams.cli.describing", "describe"),
    ("simulate", "synckit_streams.cli.simulate", "simulate"),
    ("doctor", "synckit_streams.cli.doctor", "doctor"),
)


def _say_version(asked: bool) -> None:
    if asked:
        show(f"synckit-streams {version_of('synckit-streams')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Say the version, and end.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Write events anywhere, also offline; let nodes meet over a broker and agree.

    A first look: [bold]synckit demo[/bold]. Each command has --help with examples, and --json for programs.
    """


def application(only: str | None = None) -> typer.Typer:
    """The commands as a typer application.

    Args:
        only: The command that will run. The others are then left out, and not imported.
    """
    made = typer.Typer(
        name="synckit",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_root)
    for name, module, function in COMMANDS:
        if (only is None or name == only) and find_spec(module) is not None:
            command: Callable[..., Any] = getattr(import_module(module), function)
            made.command(name)(command)
    return made


def run(arguments: Sequence[str] | None) -> None:
    """See `synckit_streams.cli.main`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # What ends before any command needs none; whatever is not known gets all, for the help and for suggestions.
    known = {name for name, _, _ in COMMANDS} | {"--version"}
    only = given[0] if given and given[0] in known else None
    try:
        application(only)(given, prog_name="synckit")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
