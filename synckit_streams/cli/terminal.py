"""What a command says, where it says it, and with which status it ends.

Results go to standard output, everything about them (progress, notes, errors) to standard error, so that a pipe gets
results alone. Colours and progress bars are for terminals only; `NO_COLOR` is obeyed. The status is 0, 1 for an error
of ours (its code, message and hint are said, never a traceback), 2 for a wrong call, 130 for Ctrl-C, 143 for SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, TextIO

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from synckit_streams.errors import SyncKitError

PIPED_COLUMNS = 100
"""How wide results for people are where no terminal says."""
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
PIPE_CLOSED = 128 + signal.SIGPIPE

_encode = msgspec.json.Encoder(enc_hook=str).encode

JsonFlag = Annotated[bool, typer.Option("--json", help="For programs: one line of JSON.", show_default=False)]


class _Results(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `carry_out`; rich would end the process with a status of its own."""
        raise BrokenPipeError


def results() -> Console:
    """Where results are printed for people."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return _Results(highlight=False, width=PIPED_COLUMNS if piped else None)


def notes() -> Console:
    """Where everything else is said."""
    return Console(stderr=True, highlight=False)


def show(line: str) -> None:
    """One line of a result, as it is: never wrapped, never coloured."""
    sys.stdout.write(line + "\n")


def show_json(value: Any, *, file: TextIO | None = None) -> None:
    """One line of JSON, on standard output unless told otherwise."""
    file = file or sys.stdout
    file.write(_encode(value).decode() + "\n")
    file.flush()


def note(text: str | Text, *, quiet: bool = False) -> None:
    """Something to know beside the result.

    Args:
        text: What.
        quiet: Say nothing (with `--json`).
    """
    if not quiet:
        notes().print(text, soft_wrap=True)


def complain(error: SyncKitError, *, json: bool) -> None:
    """An error, with its code and what to do about it."""
    if json:
        trouble = {"code": error.code, "message": error.message, "hint": error.hint, "retryable": error.retryable}
        show_json({"error": trouble}, file=sys.stderr)
        return
    said = Text.assemble(("error ", "bold red"), (error.code, "red"), "  ", _lines(error.message))
    if error.hint:
        said.append("\n hint  ", "bold yellow")
        said.append(_lines(error.hint))
    notes().print(said, soft_wrap=True)


def _lines(text: str) -> str:
    return "\n".join(map(plain, text.split("\n")))


def carry_out(work: Callable[[], Coroutine[Any, Any, int | None]], *, json: bool) -> None:
    """Run what a command does on an event loop of its own, and end the command with the right status.

    Args:
        work: Gives the status, None for 0. When the user interrupts, it is cancelled, and closes what it has open.
        json: Whether an error is said as JSON.

    Raises:
        typer.Exit: with the status, unless it is 0.
    """
    told: list[signal.Signals] = []

    async def cancellable() -> int | None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def end(by: signal.Signals) -> None:
            told.append(by)
            task.cancel()
            loop.remove_signal_handler(by)  # whoever cannot wait asks again, and Python ends it at once

        # By the loop, not by Python's own handler, which cancels between any two instructions: also in the middle of
        # handing a thread's result over. Elsewhere than in the main thread signals are not ours to take.
        with suppress(ValueError, RuntimeError, NotImplementedError):
            for by in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(by, end, by)
        return await work()

    try:
        status = asyncio.run(cancellable()) or 0
        sys.stdout.flush()
    except SyncKitError as error:
        complain(error, json=json)
        status = 1
    except KeyboardInterrupt:
        status = INTERRUPTED
    except asyncio.CancelledError:
        if not told:
            raise
        status = INTERRUPTED if told[0] is signal.SIGINT else TERMINATED
    except BrokenPipeError:
        # Whoever read our output has had enough. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = PIPE_CLOSED
    if status:
        raise typer.Exit(status)


class Advance:
    """Moves a progress bar; `to` where it stands now."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def to(self, done: float) -> None:
        """So much of the whole is done."""
        self._progress.update(self._task, completed=done)

    def of(self, done: float, total: float) -> None:
        """So much is done, of so much."""
        self._progress.update(self._task, completed=done, total=total)


@contextmanager
def progress(what: str, total: float | None, *, unit: str = "events", quiet: bool = False) -> Iterator[Advance]:
    """A progress bar on standard error while something takes long; nothing where that is no terminal.

    Args:
        what: What is being done.
        total: How much there is to do; None if nobody knows.
        unit: "bytes", or what is counted.
        quiet: Show nothing (with `--json`).
    """
    count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        count,
        TextColumn("" if unit == "bytes" else unit),
        TimeRemainingColumn(),
        console=notes(),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )
    with bar:
        yield Advance(bar, bar.add_task(what, total=total))


@contextmanager
def working(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Something moves on standard error while nobody knows how long it takes; nothing where that is no terminal."""
    console = notes()
    if quiet or not console.is_interactive:
        yield
        return
    with console.status(f"[dim]{what}[/dim]"):
        yield


_unsafe = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]").sub


def plain(text: str) -> str:
    """Text from elsewhere, made harmless: what would move the cursor, turn the writing round or end the line is shown.

    An event may come from anybody; it must not be able to repaint the screen of whoever looks at it.
    """
    return _unsafe(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain_markup(text: str) -> str:
    """`plain`, where rich would read markup."""
    return escape(plain(text))


def plural(count: int, noun: str, many: str = "") -> str:
    """`1 event`, `2,000 events`."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"
