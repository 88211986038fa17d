"""Reading a stream by asking for a bounded number of messages and bytes at a time.

There is no task of its own: whoever waits for a batch does the work, and a reader that does not ask is not sent
anything. What was asked for may never come, because the connection, the consumer or the server is gone; a missing
heartbeat tells, and the reader goes on over another connection, if the log is still the one that it read.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from synckit_connectors.nats_api import NANO, description_of, status_of
from synckit_connectors.nats_link import Link
from synckit_connectors.nats_options import HEARTBEAT_S_MAX
from synckit_connectors.nats_wire import RECONNECT_PAUSE_S, Wire, log
from synckit_streams.errors import Timeout, Unavailable

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

PULL_BYTES = 4 * 1024 * 1024
PULL_EXPIRES_S = 2 * HEARTBEAT_S_MAX  # the server insists on two heartbeats at least
LINGER_S = 0.02
"""How long a batch that is not full waits for messages that the server has ready."""


class Got(NamedTuple):
    """A message as it came from a stream."""

    position: int
    at_ns: int
    subject: str
    headers: dict[str, str]
    body: bytes
    consumer: str
    number: int
    """As the consumer counts."""
    attempt: int
    reply: str
    """Where it is acknowledged."""
    behind: int
    """How many messages the server has ready behind it."""


class Pull:
    """Batches from a consumer.

    `break_off` says that what was asked for will not come; the next `batch` then attaches anew.
    """

    def __init__(self, link: Link, stream: str, batch_max: int) -> None:
        self._link = link
        self._stream = stream
        self._consumer = ""
        self._batch_max = max(batch_max, 1)
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._got: deque[Got] = deque()
        self._got_bytes = 0
        self._asked = 0
        self._asked_last = 0
        self._bytes_max = PULL_BYTES
        self._expires_s = PULL_EXPIRES_S
        self._behind = 0
        self._heard_at = 0.0
        self._broken = ""
        self._breaks = 0
        """How often it broke since something came."""
        self._ended = False
        self._wire: Wire | None = None
        self._subscription: Subscription | None = None
        self._inbox = ""

    async def _begin(self, wire: Wire) -> None:
        """Before anything is asked for on a connection."""
        raise NotImplementedError

    async def _changed(self) -> str:
        """Why we cannot go on where we stopped; "" if we can."""
        return ""

    def _wanted(self) -> int:
        """How many messages to ask for now."""
        raise NotImplementedError

    def _note(self, got: Got) -> bool:
        """A message came; False if it is not wanted."""
        return True

    def _patience_s(self) -> float:
        """How long to wait at most before we look again, though nothing came."""
        return 2.5 * self._link.options.heartbeat_s

    async def attach(self) -> None:
        """Be ready to ask, over the connection that there is now."""
        wire = await self._link.ready()
        await self.detach()
        self._wire = wire
        self._asked, self._broken = 0, ""
        # A subject of its own each time, so that nothing that was asked for before is counted now.
        self._inbox = wire.client.new_inbox()
        wire.watchers.add(self.break_off)
        self._subscription = await wire.subscribe(self._inbox, self._on_message)
        await self._begin(wire)

    async def detach(self) -> None:
        """Ask no more over the connection that we had."""
        wire, subscription = self._wire, self._subscription
        self._wire = self._subscription = None
        if wire is not None:
            wire.watchers.discard(self.break_off)
            if subscription is not None:
                await wire.unsubscribe(subscription)

    async def batch(self) -> list[Got]:
        """1 to `batch_max` messages; none only after `end`."""
        while not self._ended:
            if self._broken and not self._got:
                await self._attach_anew()
            await self._ask()
            full = len(self._got) >= self._batch_max
            if (full or (self._got and (not self._behind or not self._asked or self._broken))) and (
                batch := self._cut()
            ):
                return batch
            if await self._wait(LINGER_S if self._got else self._patience_s()):
                continue
            if self._got:
                if batch := self._cut():
                    return batch
            elif self._asked and self._loop.time() - self._heard_at >= Pull._patience_s(self):
                self._silent()
        return []

    async def _wait(self, patience_s: float) -> bool:
        self._woken.clear()
        self._heard = self._wire.heard if self._wire is not None else 0
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                return await self._woken.wait()
        return False

    def _silent(self) -> None:
        wire = self._wire
        self.break_off("the server sends no heartbeats")
        if wire is not None and wire.heard == self._heard:
            wire.end(Unavailable(f"nothing comes from {self._link.address}, not even heartbeats"))

    def break_off(self, why: str) -> None:
        """What was asked for will not come."""
        self._broken = why
        self._woken.set()

    def end(self) -> None:
        """The next `batch` is empty."""
        self._ended = True
        self._woken.set()

    async def leave(self) -> None:
        """Let go of everything."""
        self.end()
        await self.detach()

    async def _attach_anew(self) -> None:
        log.debug("%s: reading anew: %s", self._stream, self._broken)
        until = self._loop.time() + self._link.options.timeout_s
        if self._breaks:
            await asyncio.sleep(min(0.05 * 2**self._breaks, 2.0))
        self._breaks += 1
        while not self._ended:
            await self._link.ready()
            try:
                changed = await self._changed()
                if not changed:
                    await self.attach()
                    return
            except (Unavailable, Timeout) as error:
                # The connection is back before JetStream is, after a restart or while a leader is elected.
                if self._loop.time() >= until:
                    raise Unavailable(f"reading {self._stream} could not go on: {error.message}") from error
                await asyncio.sleep(RECONNECT_PAUSE_S)
            else:
                raise Unavailable(changed, hint="look at the bounds, and begin from there")

    async def _ask(self) -> None:
        wire = self._wire
        if wire is None or self._broken or self._got_bytes >= PULL_BYTES:
            return
        count = self._wanted()
        if count <= 0:
            return
        if not self._asked:
            self._heard_at = self._loop.time()  # nobody sends heartbeats to a reader that asks for nothing
        request = {
            "batch": count,
            "max_bytes": self._bytes_max,
            "expires": int(self._expires_s * NANO),
            "idle_heartbeat": int(min(self._link.options.heartbeat_s, self._expires_s / 2) * NANO),
        }
        try:
            await wire.publish(
                f"{self._link.options.api}.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                json.dumps(request).encode(),
                reply=self._inbox,
            )
        except Unavailable as error:
            self.break_off(error.message)
        else:
            self._asked += count
            self._asked_last = count

    def _cut(self) -> list[Got]:
        batch = [self._got.popleft() for _ in range(min(self._batch_max, len(self._got)))]
        self._got_bytes -= sum(len(got.body) for got in batch)
        return batch

    async def _on_message(self, msg: Msg) -> None:
        if not msg.reply:
            self._on_status(msg)
            return
        # $JS.ACK.stream.consumer.deliveries.position.number.time.behind; newer servers may put a domain and an account
        # before the stream, and a token behind.
        parts = msg.reply.split(".")
        _, consumer, attempt, position, number, at_ns, behind = parts[2:9] if len(parts) == 9 else parts[4:11]
        got = Got(
            int(position),
            int(at_ns),
            msg.subject,
            msg.headers or {},
            msg.data,
            consumer,
            int(number),
            int(attempt),
            msg.reply,
            int(behind),
        )
        if not self._note(got):
            return
        self._got.append(got)
        self._got_bytes += len(got.body)
        # The first one starts the clock for a batch that is not full; the full batch and the last one end it.
        if len(self._got) in (1, self._batch_max) or not self._behind or not self._asked:
            self._woken.set()

    def _count(self, got: Got) -> None:
        """One of those came that we asked for."""
        self._heard_at = self._loop.time()
        self._asked -= 1
        self._breaks = 0
        self._behind = got.behind

    def _on_status(self, msg: Msg) -> None:
        if msg.subject != self._inbox:
            return
        self._heard_at = self._loop.time()
        status, text = status_of(msg), description_of(msg)
        if status == "100":  # a heartbeat
            self._breaks = 0
            return
        unsent = int((msg.headers or {}).get("Nats-Pending-Messages", 0))
        if status in ("404", "408") or text.startswith(("Message Size Exceeds", "Batch Completed")):
            # That request is over; so much of it was not sent.
            self._asked = max(self._asked - unsent, 0)
            if status == "409" and unsent >= self._asked_last:
                self._bytes_max *= 2  # not even one message fitted
            self._woken.set()
        else:
            self.break_off(f"{status} {text}")
