"""Publishing until everything is acknowledged, over as many connections as it takes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from synckit_connectors.nats_api import decode, decode_ack, refusal, status_of
from synckit_connectors.nats_link import Link
from synckit_connectors.nats_options import NatsOptions
from synckit_connectors.nats_wire import RECONNECT_PAUSE_S, Wire, log
from synckit_streams.errors import ConnectorError, Rejected, SyncKitError, Timeout, Unavailable

if TYPE_CHECKING:
    from nats.aio.msg import Msg

WINDOW_MESSAGES = 512
WINDOW_BYTES = 4 * 1024 * 1024
"""What may be published and not yet acknowledged."""


class Outgoing(NamedTuple):
    """A message as it is published."""

    id: str
    subject: str
    headers: dict[str, str]
    body: bytes
    size: int


class Sending:
    """The messages of one `send`, each until it is acknowledged. Survives connections."""

    def __init__(self, messages: Sequence[Outgoing], options: NatsOptions) -> None:
        self._loop = asyncio.get_running_loop()
        self._messages = messages
        self._timeout_s = options.timeout_s
        # A few transmissions fit into the time-out.
        self._patience_s = options.timeout_s / 4
        self._queue = deque(range(len(messages)))
        self._flying: dict[str, tuple[int, float]] = {}
        """Token -> (which, until when an answer is awaited), the oldest first."""
        self._flying_bytes = 0
        self._transmissions = [0] * len(messages)
        self._woken = asyncio.Event()
        self._stop: ConnectorError | None = None
        """Why this connection, or this stream, is of no more use."""
        self._progress_at = self._loop.time()
        self.last = 0
        """Greatest position that was acknowledged."""
        self.refused: SyncKitError | None = None
        """The first thing that the broker refused; the other messages go on."""

    @property
    def done(self) -> bool:
        return not self._queue and not self._flying

    @property
    def stuck(self) -> bool:
        """Whether nothing was acknowledged for `timeout_s`."""
        return self._loop.time() - self._progress_at >= self._timeout_s

    async def run(self, wire: Wire) -> None:
        """Publish until all are acknowledged, or raise why connection and stream have to be looked at again."""
        self._stop = None
        try:
            while not self.done:
                await self._fill(wire)
                self._woken.clear()
                oldest = next(iter(self._flying.values()))[1]
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(oldest):
                        await self._woken.wait()
                if self._stop is not None:
                    raise self._stop
                self._send_late_again(wire)
        finally:
            for token in self._flying:
                wire.forget(token)
            self._queue.extendleft(which for which, _ in reversed(self._flying.values()))
            self._flying.clear()
            self._flying_bytes = 0

    async def _fill(self, wire: Wire) -> None:
        until = self._loop.time() + self._patience_s
        while self._queue and len(self._flying) < WINDOW_MESSAGES and self._flying_bytes < WINDOW_BYTES:
            which = self._queue[0]
            message = self._messages[which]
            token = wire.expect(self._on_ack)
            # Flying before it is published: when the connection turns out to be lost just then, it is told so.
            self._queue.popleft()
            self._flying[token] = (which, until)
            self._flying_bytes += message.size
            await wire.publish(message.subject, message.body, reply=wire.inbox + token, headers=message.headers)
            self._transmissions[which] += 1

    def _on_ack(self, token: str, answer: Msg | ConnectorError) -> None:
        which, _ = self._flying.pop(token)
        message = self._messages[which]
        self._flying_bytes -= message.size
        if isinstance(answer, ConnectorError):
            self._again(which, answer)
        elif status_of(answer) == "503":
            self._again(which, Unavailable(f"no stream takes {message.subject!r}", hint="was it deleted just now?"))
        else:
            self._judge(which, answer)
        # Half a window is worth a wake-up, one acknowledgement is not.
        if self._stop is not None or len(self._flying) <= (WINDOW_MESSAGES // 2 if self._queue else 0):
            self._woken.set()

    def _again(self, which: int, why: ConnectorError) -> None:
        self._stop = why
        self._queue.append(which)

    def _judge(self, which: int, answer: Msg) -> None:
        message = self._messages[which]
        refused: SyncKitError | None = None
        try:
            ack = decode(decode_ack, answer.data, message.subject)
            if ack.error is not None:
                refused = refusal(ack.error, f"message {message.id!r}")
            elif ack.duplicate and self._transmissions[which] == 1:
                refused = Rejected(
                    f"message {message.id!r} is a duplicate to the server, but was sent only now",
                    hint="it was not stored; a message that is published again needs a new id",
                )
            self.last = max(self.last, ack.seq)
            self._progress_at = self._loop.time()
        except ConnectorError as error:
            refused = error
        self.refused = self.refused or refused

    def _send_late_again(self, wire: Wire) -> None:
        now = self._loop.time()
        late = [token for token, (_, until) in self._flying.items() if until <= now]
        for token in late:
            wire.forget(token)
            which, _ = self._flying.pop(token)
            self._flying_bytes -= self._messages[which].size
            self._queue.append(which)
        if late and self.stuck:
            raise Timeout(f"{len(late)} messages were not acknowledged within {self._timeout_s:g} s")


async def publish(link: Link, stream: str, messages: Sequence[Outgoing]) -> int:
    """Return the greatest position when the stream has all of them."""
    sending = Sending(messages, link.options)
    while not sending.done:
        wire = await link.ready()
        try:
            await link.made(stream)
            await sending.run(wire)
        except Unavailable as error:
            if sending.stuck:
                raise
            log.debug("%s: publishing again: %s", stream, error.message)
            link.forget(stream)
            await asyncio.sleep(RECONNECT_PAUSE_S)
    if sending.refused is not None:
        raise sending.refused
    return sending.last
