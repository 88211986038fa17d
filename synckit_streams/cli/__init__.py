"""The command line: `synckit`, one file a command."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and exit with its status.

    Args:
        arguments: What follows `synckit`; None takes the process's own.
    """
    # Only here: whoever imports this package for its entry point pays for no terminal library.
    from synckit_streams.cli.root import run

    run(arguments)
