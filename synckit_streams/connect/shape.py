"""How somebody's JSON becomes a record: what is its type, what is it about, and has it an id of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from synckit_streams.connect.record import Record
from synckit_streams.errors import Invalid
from synckit_streams.model.codec import check_draft
from synckit_streams.model.event import Draft
from synckit_streams.model.pointer import point


class Shape(NamedTuple):
    """Where in the data what stands. What begins with a slash is a JSON pointer.

    Args:
        type: A pointer, or the same for all.
        aggregate_id: A pointer.
        id: A pointer; "" derives it from where the record lies.
    """

    type: str
    aggregate_id: str
    id: str = ""

    def record(self, payload: bytes, place_id: str) -> Record:
        """The record in some JSON.

        Args:
            payload: The JSON.
            place_id: Its id, if it has none of its own.

        Raises:
            Invalid, TooLarge: it cannot become an event.
        """
        try:
            data = msgspec.json.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(f"not JSON: {error}") from error
        return self.record_of(data, payload, place_id)

    def record_of(self, data: Any, payload: bytes, place_id: str) -> Record:
        """Likewise, where the JSON is decoded already."""
        made = Record(
            id=_text(data, "id", self.id) if self.id else place_id,
            type=_text(data, "type", self.type) if self.type.startswith("/") else self.type,
            aggregate_id=_text(data, "aggregate_id", self.aggregate_id),
            payload=payload,
        )
        check_draft(Draft(topic="any", type=made.type, aggregate_id=made.aggregate_id, data=payload, id=made.id))
        return made


def _text(data: Any, what: str, pointer: str) -> str:
    value = point(data, pointer)
    if isinstance(value, int) and abs(value) >= 1 << 64:
        raise Invalid(f"{what}: the number at {pointer} is beyond 64 bits")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise Invalid(f"{what}: what stands at {pointer} is neither text nor a whole number")
    return str(value)
