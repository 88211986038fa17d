"""What cannot be delivered, as records of their own: the error, how often it was tried, and the original."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NamedTuple

from synckit_streams.connect.record import Record, Unreadable, derived_id
from synckit_streams.errors import SyncKitError, TooLarge
from synckit_streams.model.codec import encode_payload

DEAD_TYPE = "connect.dead"
RAW_BYTES_MAX = 64 * 1024
"""So much is kept of an original with which the letter would be too large for an event."""


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
    try:
        payload = encode_payload(_said(dead, pipeline, None))
    except TooLarge:
        payload = encode_payload(_said(dead, pipeline, RAW_BYTES_MAX))
    content = dead.item.raw if isinstance(dead.item, Unreadable) else dead.item.payload
    return Record(
        # By its content as well: a producer may give one id to two records.
        id=derived_id("dead", pipeline, dead.item.id, sha256(content).hexdigest()),
        type=DEAD_TYPE,
        aggregate_id=pipeline,
        payload=payload,
        metadata={"at": now.astimezone(UTC).isoformat(timespec="milliseconds")},
    )


def _said(dead: Dead, pipeline: str, most: int | None) -> dict[str, Any]:
    """What a letter says; `most`: so many bytes of its original."""
    item, error = dead.item, dead.error
    original: dict[str, Any] = {"id": item.id}
    if isinstance(item, Record):
        original |= {"type": item.type, "aggregate_id": item.aggregate_id, "topic": item.topic}
        original["metadata"] = dict(item.metadata)
    return {
        "pipeline": pipeline,
        "error": {"code": error.code, "message": error.message, "hint": error.hint},
        "attempts": dead.attempts,
        "original": original | _text(item.raw if isinstance(item, Unreadable) else item.payload, most),
    }


def _text(raw: bytes, most: int | None) -> dict[str, Any]:
    """Bytes as text where they are text; what is cut off says how long it was."""
    cut = {} if most is None or len(raw) <= most else {"bytes": len(raw)}
    raw = raw[:most]
    try:
        return {"raw": raw.decode(), **cut}
    except UnicodeDecodeError:
        return {"raw_base64": b64encode(raw).decode(), **cut}
