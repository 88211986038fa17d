"""The records of a file: lines of JSON, rows of a CSV, lines of CloudEvents. Where they lie, `file_reader` knows."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable
from pathlib import Path

from synckit_streams.connect.file_reader import FileReader, Piece
from synckit_streams.connect.record import Portion, Record, Unreadable, derived_id
from synckit_streams.connect.shape import Shape
from synckit_streams.connect.spec import FileSource as Spec
from synckit_streams.errors import Invalid, SyncKitError
from synckit_streams.model.cloudevent import draft_from_structured
from synckit_streams.model.codec import PAYLOAD_BYTES_MAX, encode_payload
from synckit_streams.model.event import Offset

LOOK_S = 0.2
BOM = b"\xef\xbb\xbf"


class FileSource:
    """See the module's text.

    Args:
        spec: What the pipeline's file says.
        path: The file.
        pipeline: Part of the ids of records without one of their own.
        once: It ends with the file: a last line without an end is one.
    """

    def __init__(self, spec: Spec, path: Path, pipeline: str, *, once: bool) -> None:
        csv.field_size_limit(PAYLOAD_BYTES_MAX)
        self._spec = spec
        self._pipeline = pipeline
        self._shape = Shape(spec.type or "", spec.aggregate_id or "", spec.id)
        self._record: Callable[[Piece, str], Record | None]
        self._record = {"jsonl": self._of_json, "csv": self._of_row, "cloudevents": self._of_cloudevent}[spec.format]
        self._reader = FileReader(
            path, rotated=spec.rotated, flips=_has_odd_quotes if spec.format == "csv" else _never, whole=once
        )
        self.name = str(path)

    async def open(self, position: Offset | None) -> None:
        """See `Source`."""
        self._reader.go_to(position)

    async def read(self, limit: int) -> Portion | None:
        """See `Source`."""
        pieces = self._reader.read(limit)
        if not pieces:
            return None
        items = [item for piece in pieces if (item := self._item(piece)) is not None]
        return Portion(items, self._reader.position)

    async def wait(self) -> None:
        """See `Source`."""
        await asyncio.sleep(LOOK_S)

    async def done(self, portion: Portion) -> None:
        """The position says it."""

    async def lag(self) -> int | None:
        """0, or not known: nobody counts lines that were not read."""
        return None if self._reader.bytes_left() else 0

    async def close(self) -> None:
        """See `Source`."""
        self._reader.close()

    def _item(self, piece: Piece) -> Record | Unreadable | None:
        """None for what says nothing: an empty line, the header."""
        id = derived_id(self._pipeline, piece.log, piece.start)
        if piece.error is not None:
            return Unreadable(id, piece.raw, piece.error)
        if piece.start == 0:
            piece = piece._replace(raw=piece.raw.removeprefix(BOM))
        try:
            return self._record(piece, id) if piece.raw.strip() else None
        except SyncKitError as error:
            return Unreadable(id, piece.raw, error)

    def _of_json(self, piece: Piece, id: str) -> Record:
        return self._shape.record(piece.raw.strip(), id)

    def _of_cloudevent(self, piece: Piece, id: str) -> Record:
        draft = draft_from_structured(piece.raw.strip(), topic="any")
        return Record(
            id=draft.id or id,
            type=draft.type,
            aggregate_id=draft.aggregate_id,
            payload=encode_payload(draft.data),
            metadata=draft.metadata,
        )

    def _of_row(self, piece: Piece, id: str) -> Record | None:
        if piece.start == 0:
            return None
        columns = self._fields(self._reader.header.removeprefix(BOM).rstrip(b"\r\n"))
        fields = self._fields(piece.raw)
        if len(fields) != len(columns):
            raise Invalid(f"the row has {len(fields)} fields, the header has {len(columns)}")
        data = dict(zip(columns, fields, strict=True))
        return self._shape.record_of(data, encode_payload(data), id)

    def _fields(self, raw: bytes) -> list[str]:
        try:
            # One text, and not its lines: a field in quotes may go over several.
            return next(csv.reader([raw.decode()], delimiter=self._spec.delimiter, strict=True), [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise Invalid(f"not a row of a CSV: {error}") from error


def _never(line: bytes) -> bool:
    return False


def _has_odd_quotes(line: bytes) -> bool:
    return line.count(b'"') % 2 == 1
