"""A node reads its own messages back, which is how it knows that the log holds them. What comes back byte for byte as
it was sent need not be decoded, hashed and looked up once more: where it lies is all that is new.

Kept in memory, up to a limit and to the end of a session. What is not found here takes the long way, and comes to the
same.
"""

from __future__ import annotations

from typing import NamedTuple

from synckit_streams.model.event import Event
from synckit_streams.ports.connector import Message

ECHO_BYTES_MAX = 16 * 1024 * 1024
MESSAGE_BYTES = 2_000
"""What a message takes beside its body, roughly."""


class Echo(NamedTuple):
    """Our own message: which events are in it, consecutive ones of one origin."""

    topic: str
    origin: str
    first: int
    events: int


class Echoes:
    """Messages that were sent and not yet read back, the oldest given up first.

    Args:
        bytes_max: How much of them is kept.
    """

    def __init__(self, bytes_max: int = ECHO_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._sent: dict[str, tuple[Message, Echo]] = {}

    def expect(self, message: Message, first: Event, events: int) -> None:
        """This is about to be sent: so many events, from this one on."""
        if not message.id or message.id in self._sent:
            return
        self._sent[message.id] = (message, Echo(first.topic, first.origin, first.seq, events))
        self._bytes += len(message.body) + MESSAGE_BYTES
        while self._bytes > self._bytes_max:
            self._forget(next(iter(self._sent)))

    def take(self, message: Message, topic: str) -> Echo | None:
        """What is in a message that was read, if it is one of ours and unchanged; known once."""
        found = self._sent.get(message.id)
        if found is None:
            return None
        sent, echo = found
        self._forget(message.id)
        # The id alone proves nothing: whoever can write to the broker can use it too.
        if echo.topic != topic or sent.body != message.body or sent.headers != message.headers:
            return None
        return echo

    def _forget(self, id: str) -> None:
        message, _ = self._sent.pop(id)
        self._bytes -= len(message.body) + MESSAGE_BYTES
