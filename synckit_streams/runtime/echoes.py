"""A node reads its own messages back, which is how it knows that the log holds them. What comes back byte for byte as
it was sent need not be decoded, hashed and looked up once more: where it lies is all that is new.

Kept in memory, up to a limit and to the end of a session. What is not found here takes the long way, and comes to the
same.
"""

from __future__ import annotations

from synckit_streams.ports.connector import Message
from synckit_streams.runtime.envelope import Parcel

ECHO_BYTES_MAX = 16 * 1024 * 1024
MESSAGE_BYTES = 2_000
"""What a message takes beside its body, roughly."""


class Echoes:
    """Messages that were sent and not yet read back, the oldest given up first.

    Args:
        bytes_max: How much of them is kept.
    """

    def __init__(self, bytes_max: int = ECHO_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._sent: dict[str, Parcel] = {}

    def expect(self, parcel: Parcel) -> None:
        """This is about to be sent."""
        message = parcel.message
        if not message.id or message.id in self._sent:
            return
        self._sent[message.id] = parcel
        self._bytes += len(message.body) + MESSAGE_BYTES
        while self._bytes > self._bytes_max:
            self._forget(next(iter(self._sent)))

    def take(self, message: Message, topic: str) -> Parcel | None:
        """What is in a message that was read, if it is one of ours and unchanged; known once."""
        found = self._sent.get(message.id)
        if found is None:
            return None
        self._forget(message.id)
        sent = found.message
        # The id alone proves nothing: whoever can write to the broker can use it too.
        if found.first.topic != topic or sent.body != message.body or sent.headers != message.headers:
            return None
        return found

    def _forget(self, id: str) -> None:
        message = self._sent.pop(id).message
        self._bytes -= len(message.body) + MESSAGE_BYTES
