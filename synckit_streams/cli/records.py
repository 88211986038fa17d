"""The records of a file, one after another: lines of CloudEvents, or rows of a table; each a draft, or why it is none.

A file is read as it is written to the store, so its size does not matter. A bad record costs nothing but itself: the
reader says which line it was and goes on, and whoever reads decides what becomes of the rest.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import BinaryIO, NamedTuple

import msgspec

from synckit_streams.cli.terminal import plural
from synckit_streams.errors import ConfigError, Invalid, SyncKitError, TooLarge
from synckit_streams.model.cloudevent import STRUCTURED_BYTES_MAX, draft_from_structured
from synckit_streams.model.codec import PAYLOAD_BYTES_MAX, check_draft, encode_payload
from synckit_streams.model.event import Draft

_encode = msgspec.json.Encoder().encode
BOM = b"\xef\xbb\xbf"
LINE_BYTES_MAX = 4 * PAYLOAD_BYTES_MAX
"""Of a line of a CSV."""


class Record(NamedTuple):
    """One record of a file.

    Args:
        line: Its number, from 1; of a row over several lines, the last one.
        draft: What it says; None if it cannot be taken.
        error: Why it cannot.
    """

    line: int
    draft: Draft | None
    error: SyncKitError | None


def json_lines(file: BinaryIO, *, topic: str | None) -> Iterator[Record]:
    """CloudEvents 1.0 in structured mode, one a line; empty lines are passed over.

    Args:
        file: Open for reading bytes.
        topic: Where they are to be written; None takes the topic of events that were exported by us.
    """
    number = 0
    while line := file.readline(STRUCTURED_BYTES_MAX + 2):
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        if len(line) > STRUCTURED_BYTES_MAX and not line.endswith(b"\n"):
            _skip_line(file)
            yield Record(number, None, TooLarge(f"the line is longer than {STRUCTURED_BYTES_MAX} bytes"))
        elif text := line.strip():
            try:
                yield Record(number, draft_from_structured(text, topic=topic), None)
            except SyncKitError as error:
                yield Record(number, None, error)


class Table(NamedTuple):
    """How the rows of a CSV become events.

    Args:
        topic: Where they are written.
        type: What happened, for every row.
        aggregate_column: Says to what it happened.
        id_column: Holds each event's id; "" derives one from the row.
        delimiter: Between two fields.
    """

    topic: str
    type: str
    aggregate_column: str
    id_column: str = ""
    delimiter: str = ","


def csv_rows(file: BinaryIO, table: Table) -> Iterator[Record]:
    """The rows of a CSV with a header, in UTF-8: the data of each is an object of its columns, as text.

    Without an id column, the id of a row is a hash of all that it says, and of how many rows before it said the same:
    the same row gets the same id wherever it stands, so importing a file again, grown or sorted, adds what is new.

    Raises:
        ConfigError: at once: a column is missing, or two have one name; the message names those that there are.
    """
    csv.field_size_limit(PAYLOAD_BYTES_MAX)
    lines = _Lines(file)
    rows = csv.reader(lines, delimiter=table.delimiter, strict=True)
    return _rows(lines, rows, _header(rows, table), table)


def _rows(lines: _Lines, rows: Iterator[list[str]], columns: list[str], table: Table) -> Iterator[Record]:
    aggregate_at = columns.index(table.aggregate_column)
    id_at = columns.index(table.id_column) if table.id_column else -1
    derived = DerivedIds(table, columns)
    while True:
        try:
            row = next(rows, None)
            if row is None:
                return
            if not row:
                continue
            if len(row) != len(columns):
                raise Invalid(f"the row has {plural(len(row), 'field')}, the header has {len(columns)}")
            if not row[aggregate_at]:
                raise Invalid(f"the column {table.aggregate_column!r} is empty")
            id = row[id_at] if id_at >= 0 else derived.next(row)
            if not id:
                raise Invalid(f"the column {table.id_column!r} is empty")
            payload = encode_payload(dict(zip(columns, row, strict=True)))
            draft = Draft(topic=table.topic, type=table.type, aggregate_id=row[aggregate_at], data=payload, id=id)
            check_draft(draft)
        except SyncKitError as error:
            yield Record(lines.number, None, error)
        except csv.Error as error:
            yield Record(lines.number, None, Invalid(f"not a row of a CSV: {error}"))
        except UnicodeDecodeError as error:
            yield Record(lines.number, None, Invalid(f"not UTF-8: {error.reason} at byte {error.start} of the line"))
        else:
            yield Record(lines.number, draft, None)


class _Lines:
    """The lines of a file as text, their ends kept. One that cannot be read raises; the next call goes on."""

    def __init__(self, file: BinaryIO) -> None:
        self.number = 0
        self._file = file

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(LINE_BYTES_MAX + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > LINE_BYTES_MAX and not line.endswith(b"\n"):
            _skip_line(self._file)
            raise csv.Error(f"the line is longer than {LINE_BYTES_MAX} bytes")
        return (line.removeprefix(BOM) if self.number == 1 else line).decode()


def _skip_line(file: BinaryIO) -> None:
    """Read on to the end of the line."""
    while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
        pass


def _header(rows: Iterator[list[str]], table: Table) -> list[str]:
    try:
        columns = next(rows, None)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"the first line is not the header of a CSV: {error}") from error
    if not columns:
        raise ConfigError("the CSV is empty", hint="its first line names the columns")
    there = ", ".join(columns)
    for option, wanted in (("--aggregate-column", table.aggregate_column), ("--id-column", table.id_column)):
        if wanted and wanted not in columns:
            raise ConfigError(f"there is no column {wanted!r}", hint=f"{option} names one of: {there}")
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise ConfigError(f"the CSV has two columns {twice[0]!r}", hint=f"its columns are: {there}")
    return columns


class DerivedIds:
    """Ids of rows that have none: see `csv_rows`. The order of the columns says nothing, so it changes nothing."""

    def __init__(self, table: Table, columns: Sequence[str]) -> None:
        self._order = sorted(range(len(columns)), key=lambda at: columns[at])
        self._start = sha256(_encode([table.topic, table.type, *sorted(columns)]))
        self._seen: set[bytes] = set()
        self._again: dict[bytes, int] = {}

    def next(self, row: Sequence[str]) -> str:
        """The id of this row, if it is the next one of the file."""
        found = self._start.copy()
        found.update(_encode([row[at] for at in self._order]))
        short = found.digest()[:10]  # two rows that share it would only be counted together
        if short in self._seen:
            self._again[short] = times = self._again.get(short, 0) + 1
            found.update(b"%d" % times)
        self._seen.add(short)
        return f"csv:{found.hexdigest()[:40]}"
