"""Somebody else's Redis stream, as our groups read it: what an entry is called, and what of it is what."""

from __future__ import annotations

import hashlib
import json
import secrets
from base64 import b64encode
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from synckit_connectors.redis_member import Source
from synckit_streams.errors import Rejected
from synckit_streams.ports.connector import Message

if TYPE_CHECKING:
    from synckit_connectors.redis_line import Line

SERVER_ID = "sk:id"
"""The key that names a database: it lives and dies with the streams in it, whatever the server is called."""
BODY_FIELDS = (b"data", b"body", b"payload", b"value")
"""The fields that are a message's body, the first that there is."""
SOURCE_CHARS_MAX = 120
"""Of a stream's name in a message's id; a longer one is hashed."""

NUMBER_BITS = 20
_TIME_MAX = 2 ** (63 - NUMBER_BITS) - 1
_NUMBER_MAX = 2**NUMBER_BITS - 1
_NUMBER_LAST = 2**64 - 1


class Tapped(Source):
    """A stream whose ids are times: `ms-number`.

    A position has the milliseconds above `NUMBER_BITS` bits for the number: with that it ascends, can be turned back,
    and fits into what a store keeps, until the year 2248 and with a million entries in a millisecond.
    """

    def __init__(self, line: Line, stream: str, at_ms: int | None) -> None:
        super().__init__(line, "", 0)
        self.stream = stream
        # Every id of an earlier millisecond is before this one.
        self._start_id = f"{at_ms - 1}-{_NUMBER_LAST}" if at_ms and at_ms > 0 else "0-0"
        self._place = ""

    @property
    def keys(self) -> list[str]:
        """Nothing lies beside it that names it: whoever deletes it deletes its groups."""
        return [self.stream]

    async def join(self, group: bytes) -> None:
        """Make the group if it is not there, and never the stream."""
        try:
            await self.line.ask(lambda client: client.xgroup_create(self.stream, group, self._start_id))
        except Rejected as error:
            if "BUSYGROUP" not in error.message:
                raise self._absent(error) from error
        server: Any = await self.line.ask(
            lambda client: client.set(SERVER_ID, secrets.token_hex(16), nx=True, get=True)
        ) or await self.line.ask(lambda client: client.get(SERVER_ID))
        name = quote(self.stream, safe="")
        if len(name) > SOURCE_CHARS_MAX:
            name = hashlib.sha256(self.stream.encode()).hexdigest()
        self._place = f"{server.decode()}/{name}"

    def _absent(self, error: Rejected) -> Rejected:
        if "WRONGTYPE" in error.message:
            return Rejected(f"{self.stream!r} on {self.line.address} is no stream", hint="a tap reads streams only")
        if "requires the key to exist" in error.message:
            return Rejected(
                f"there is no stream {self.stream!r} on {self.line.address}", hint="its producer has to make it"
            )
        return error

    def position(self, id: bytes) -> int:
        """Of an entry's id."""
        time, _, number = id.partition(b"-")
        if int(time) > _TIME_MAX or int(number) > _NUMBER_MAX:
            raise Rejected(
                f"entry {id.decode()} of {self.stream!r} has an id that is no time",
                hint="a tap reads streams whose entries have the ids that Redis gives: XADD key *",
            )
        return int(time) << NUMBER_BITS | int(number)

    def id(self, position: int) -> bytes:
        """Of the entry at a position."""
        return b"%d-%d" % (position >> NUMBER_BITS, position & _NUMBER_MAX)

    def message(self, id: bytes, fields: dict[bytes, bytes]) -> Message:
        """The one field's value, or that of the one that is called like a body, or all fields as a JSON object."""
        place = f"{self._place}/{id.decode()}"
        if len(fields) == 1:
            return Message(place, "", {}, *fields.values())
        for name in BODY_FIELDS:
            if name in fields:
                headers = {
                    key: text
                    for field, value in fields.items()
                    if field != name and (key := _text(field)) is not None and (text := _text(value)) is not None
                }
                return Message(place, "", headers, fields[name])
        told = {field.decode(errors="replace"): _told(value) for field, value in fields.items()}
        return Message(place, "", {}, json.dumps(told, ensure_ascii=False).encode())


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _told(value: bytes) -> str:
    """JSON has only text."""
    text = _text(value)
    return b64encode(value).decode() if text is None else text
