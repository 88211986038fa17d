"""What cannot be delivered, as records of their own: the error, how often it was tried, and the original."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from synckit_streams.connect.record import Record, Unreadable, derived_id
from synckit_streams.errors import SyncKitError
from synckit_streams.model.codec import encode_payload

DEAD_TYPE = "connect.dead"
RAW_BYTES_MAX = 64 * 1024
"""So much is kept of what could not be read, and of a payload."""


class Dead(NamedTuple):
    """One that did not make it.

    Args:
        item: As it came from the source.
        error: Why.
        attempts: How often it was tried.
    """

    item: Record | Unreadable
    error: SyncKitError
    attempts: int


def letters(dead: Sequence[Dead], pipeline: str, now: datetime) -> list[Record]:
    """The records that are written; the same one of the same original, however often it comes.

    Args:
        dead: What did not make it.
        pipeline: Whose it is.
        now: When.
    """
    return [_letter(each, pipeline, now) for each in dead]


def _letter(dead: Dead, pipeline: str, now: datetime) -> Record:
    item, error = dead.item, dead.error
    data = {
        "pipeline": pipeline,
        "error": {"code": error.code, "message": error.message, "hint": error.hint},
        "attempts": dead.attempts,
        "at": now.astimezone(UTC).isoformat(timespec="milliseconds"),
        "original": _unread(item) if isinstance(item, Unreadable) else _record(item),
    }
    return Record(
        id=derived_id("dead", pipeline, item.id), type=DEAD_TYPE, aggregate_id=pipeline, payload=encode_payload(data)
    )


def _text(raw: bytes) -> dict[str, Any]:
    """Bytes as text where they are text; what is too long is cut off, and it says so."""
    cut = {"bytes": len(raw)} if len(raw) > RAW_BYTES_MAX else {}
    raw = raw[:RAW_BYTES_MAX]
    try:
        return {"raw": raw.decode(), **cut}
    except UnicodeDecodeError:
        return {"raw_base64": b64encode(raw).decode(), **cut}


def _unread(item: Unreadable) -> dict[str, Any]:
    return {"id": item.id, **_text(item.raw)}


def _record(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "type": record.type,
        "aggregate_id": record.aggregate_id,
        "topic": record.topic,
        "metadata": dict(record.metadata),
        **_text(record.payload),
    }
