"""`synckit export`: a store's events as JSON Lines of CloudEvents."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from synckit_streams.cli.access import StoreUrl
from synckit_streams.cli.terminal import JsonFlag, carry_out, notes, plain_markup, plural, progress, show_json
from synckit_streams.errors import ConfigError, Invalid
from synckit_streams.model.cloudevent import to_structured
from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Offset, Stored
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.ownership import reading

PAGE_EVENTS = 1_000


def export(
    store: StoreUrl,
    topic: Annotated[str | None, typer.Option("--topic", help="Only this one.", show_default=False)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write here, and not to standard output.", show_default=False
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write a store's events as JSON Lines of CloudEvents 1.0, in the order of its log.

    The store is only read, also while a node writes to it; what is written after the start is left out. A fact that two
    nodes wrote under one id is given once. `synckit import` takes the result. With --json the summary is one line of
    JSON, on standard error where the events go to standard output.

    [bold]Examples[/bold]

      $ synckit export --store sqlite:///till.db -o till.jsonl
      $ synckit export --store sqlite:///till.db --topic orders | gzip > orders.jsonl.gz
    """

    async def work() -> None:
        count = 0
        async with reading(store) as opened:
            end = (await opened.end()).position
            with (
                _output(output) as file,
                progress("exporting", end, quiet=json or (output is None and sys.stdout.isatty())) as bar,
            ):
                async for page in pages(opened, topic, end):
                    file.writelines(_line(stored) for stored in page if not stored.twin)
                    count += sum(not stored.twin for stored in page)
                    bar.to(page[-1].position)
        if json:
            summary = {"exported": count, "file": None if output is None else str(output)}
            if output is None:
                show_json(summary, file=sys.stderr)
            else:
                show_json(summary)
        elif output is not None:
            notes().print(
                f"[green]✓[/green] exported [bold]{plural(count, 'event')}[/bold] to {plain_markup(str(output))}"
            )

    carry_out(work, json=json)


async def pages(store: EventStore, topic: str | None, end: int) -> AsyncIterator[list[Stored]]:
    """The log up to a position, page by page."""
    after: Offset | None = None
    while page := [each for each in await store.log(topic, after=after, limit=PAGE_EVENTS) if each.position <= end]:
        yield page
        after = page[-1].offset


def _line(stored: Stored) -> bytes:
    try:
        return to_structured(stored.event, event_hash(stored.event)) + b"\n"
    except Invalid as error:
        raise Invalid(f"position {stored.position}: {error.message}", hint=error.hint) from error


@contextmanager
def _output(path: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that is there only when it is whole."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            part.unlink()
