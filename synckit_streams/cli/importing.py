"""`synckit import`: a file's records into a store, as many times as one likes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from synckit_streams.cli.access import ConnectorUrl, NodeName, StoreUrl, Writer, writing
from synckit_streams.cli.records import Record, Table, csv_rows, json_lines
from synckit_streams.cli.terminal import (
    JsonFlag,
    carry_out,
    note,
    plain_markup,
    plural,
    progress,
    results,
    show_json,
    working,
)
from synckit_streams.errors import ConfigError, IdReused, Invalid, SyncKitError, TooLarge
from synckit_streams.model.event import Draft

BATCH_EVENTS = 1_000
BAD_SHOWN_MAX = 20
BAD_KEPT_MAX = 1_000
ABOUT_A_DRAFT = (IdReused, Invalid, TooLarge)
"""What a store says of a record and not of itself."""


def import_file(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON Lines of CloudEvents, or CSV; - reads standard input")
    ],
    store: StoreUrl,
    topic: Annotated[
        str | None,
        typer.Option("--topic", help="Where to write them. Exported events have their own.", show_default=False),
    ] = None,
    aggregate_column: Annotated[
        str, typer.Option("--aggregate-column", metavar="NAME", help="CSV: the column that says what a row is about")
    ] = "",
    type: Annotated[str, typer.Option("--type", metavar="NAME", help="CSV: the type of the events")] = "",
    id_column: Annotated[
        str, typer.Option("--id-column", metavar="NAME", help="CSV: the column with ids; without, ids are derived")
    ] = "",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Report bad records, and import the others.")] = False,
    node: NodeName = None,
    connector: ConnectorUrl = None,
    json: JsonFlag = False,
) -> None:
    """Write the records of a file into a store. Importing a file again changes nothing.

    Records are written 1,000 in one durable commit. The first bad record ends it, before its commit, and the error says
    which line it was; put it right and import again, or pass it over with --skip-bad. With --connector the node syncs
    at the end. While a node has the store open, that node does the work.

    [bold]Examples[/bold]

      $ synckit import events.jsonl --store sqlite:///till.db --topic orders
      $ synckit import airports.csv --store sqlite:///till.db --topic airports --aggregate-column iata --type recorded
      $ cat events.jsonl | synckit import - --store sqlite:///till.db --topic orders --skip-bad
    """
    table = _table(file, topic, aggregate_column, type, id_column)
    work = Import(str(file), table, topic, skip_bad=skip_bad, quiet=json)
    carry_out(lambda: work.run(store, node, connector), json=json)


def _table(file: Path, topic: str | None, aggregate_column: str, type: str, id_column: str) -> Table | None:
    """How to read a CSV; None when the file is JSON Lines."""
    if file.suffix.lower() not in (".csv", ".tsv") and not aggregate_column:
        if type or id_column:
            raise typer.BadParameter("--type and --id-column are for CSV, with --aggregate-column")
        return None
    missing = [
        option
        for option, given in (("--aggregate-column", aggregate_column), ("--type", type), ("--topic", topic))
        if not given
    ]
    if missing:
        raise typer.BadParameter(f"a CSV needs {' and '.join(missing)}")
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    return Table(topic or "", type, aggregate_column, id_column, delimiter)


class Import:
    """One run of the command: what was read, and what became of it."""

    def __init__(self, name: str, table: Table | None, topic: str | None, *, skip_bad: bool, quiet: bool) -> None:
        self.name = "standard input" if name == "-" else name
        self.read = 0
        self.fresh = 0
        self.known = 0
        self.bad: list[tuple[int, SyncKitError]] = []
        self.bad_count = 0
        self._path = name
        self._table = table
        self._topic = topic
        self._skip_bad = skip_bad
        self._quiet = quiet
        self._topics: set[str] = set()

    async def run(self, store: str, node: str | None, connector: str | None) -> None:
        """See `import_file`."""
        started = time.perf_counter()
        with ExitStack() as stack:
            file, size = stack.enter_context(self._open())
            records = self._records(file)  # a header that is wrong is said before there is a store
            bar = stack.enter_context(
                progress(f"importing {plain_markup(self.name)}", size, unit="bytes", quiet=self._quiet)
            )
            # Which topics there are, only the file knows: the sync at the end is a meeting of its own.
            async with writing(store, node=node, quiet=self._quiet) as writer:
                await self._write_all(writer, records, lambda: bar.to(file.tell()) if size else None)
        if not self.read:
            note(f"[yellow]{plain_markup(self.name)} is empty[/yellow]", quiet=self._quiet)
        complete = None
        if connector and self._topics:
            async with writing(
                store, node=node, topics=sorted(self._topics), connectors=[connector] if connector else [], quiet=True
            ) as writer:
                with working("meeting the others", quiet=self._quiet):
                    complete = (await writer.sync(timeout_s=30.0)).complete
        self._report(writer.node_id, time.perf_counter() - started, complete)

    @contextmanager
    def _open(self) -> Iterator[tuple[BinaryIO, int | None]]:
        """The file, and its size if that is known."""
        if self._path == "-":
            yield sys.stdin.buffer, None
            return
        try:
            with Path(self._path).open("rb") as file:
                yield file, os.fstat(file.fileno()).st_size or None
        except OSError as error:
            raise ConfigError(f"cannot read {self.name}: {error.strerror}") from error

    def _records(self, file: BinaryIO) -> Iterator[Record]:
        return csv_rows(file, self._table) if self._table is not None else json_lines(file, topic=self._topic)

    async def _write_all(self, writer: Writer, records: Iterator[Record], advance: Callable[[], None]) -> None:
        batch: list[tuple[int, Draft]] = []
        for record in records:
            self.read += 1
            if record.draft is None:
                assert record.error is not None
                self._reject(record.line, record.error)
                continue
            batch.append((record.line, record.draft))
            if len(batch) >= BATCH_EVENTS:
                await self._write(writer, batch)
                batch = []
                advance()
        await self._write(writer, batch)

    async def _write(self, writer: Writer, batch: list[tuple[int, Draft]]) -> None:
        if not batch:
            return
        try:
            receipt = await writer.append([draft for _, draft in batch])
        except ABOUT_A_DRAFT as error:
            if len(batch) == 1:
                self._reject(batch[0][0], error)
                return
            if not self._skip_bad:
                self._reject(_blamed(batch, error), error)
            # Which one it is, halving tells; what was written already is not written twice.
            middle = len(batch) // 2
            await self._write(writer, batch[:middle])
            await self._write(writer, batch[middle:])
            return
        self.fresh += receipt.fresh
        self.known += receipt.events - receipt.fresh
        self._topics.update(draft.topic for _, draft in batch)

    def _reject(self, line: int | None, error: SyncKitError) -> None:
        self.bad_count += 1
        if len(self.bad) < BAD_KEPT_MAX and line is not None:
            self.bad.append((line, error))
        if not self._skip_bad:
            where = f"line {line} of {self.name}" if line is not None else f"a record of {self.name}"
            done = f"{plural(self.fresh, 'event')} of the lines before {'is' if self.fresh == 1 else 'are'} imported"
            raise error.__class__(
                f"{where}: {error.message}",
                hint=f"{error.hint + '; ' if error.hint else ''}{done}, nothing of its batch and after it; "
                "put it right and import again, or pass bad records over with --skip-bad",
            )

    def _report(self, node_id: str, duration_s: float, complete: bool | None) -> None:
        if self._quiet:
            bad = [{"line": line, "code": error.code, "message": error.message} for line, error in self.bad]
            answer: dict[str, Any] = {
                "node": node_id,
                "read": self.read,
                "imported": self.fresh,
                "already_there": self.known,
                "skipped": self.bad_count,
                "bad": bad,
                "duration_s": round(duration_s, 3),
            }
            show_json(answer if complete is None else {**answer, "complete": complete})
            return
        for line, error in self.bad[:BAD_SHOWN_MAX]:
            note(f"[yellow]skipped[/yellow] line {line}: [red]{error.code}[/red] {plain_markup(error.message)}")
        if self.bad_count > BAD_SHOWN_MAX:
            note(f"[yellow]skipped[/yellow] … and {self.bad_count - BAD_SHOWN_MAX:,} more; --json lists them")
        said = f"[green]✓[/green] imported [bold]{plural(self.fresh, 'event')}[/bold] into {plain_markup(node_id)}"
        if self.known:
            said += f", {self.known:,} {'was' if self.known == 1 else 'were'} there already"
        if self.bad_count:
            said += f", [yellow]skipped {self.bad_count:,}[/yellow]"
        said += f" [dim]({duration_s:.1f} s)[/dim]"
        if complete is not None:
            said += "; synced" if complete else "; synced, and not complete yet: see `synckit sync`"
        results().print(said)


def _blamed(batch: list[tuple[int, Draft]], error: SyncKitError) -> int | None:
    """The line of the draft that an error names; None if it names none."""
    for line, draft in batch:
        if draft.id is not None and repr(draft.id) in error.message:
            return line
    return None
