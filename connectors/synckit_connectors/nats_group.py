"""A group: one durable pull consumer, that its members share.

The server keeps which messages were delivered, and delivers again what nobody acknowledged within the consumer's
`ack_wait`. A member asks for no more than it may hold, and numbers its acknowledgements by position: that of a delivery
which came again is the last one's.

An acknowledgement is only a message to the server. The last one of a batch asks for an answer: the server takes those
of a connection in their order (a cluster answers once it has agreed on them), so that the answer is for all of them.
Until it came, everything is told again, over another connection if need be; but first we look whether the log is still
the one that was read. In a log that was put back the same positions are other messages, which nobody has read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from synckit_connectors.nats_api import CONSUMER_TAKEN, NANO, NO_CONSUMER, Answer, Config, granted
from synckit_connectors.nats_link import ANSWER_S, Link, Reached
from synckit_connectors.nats_names import foreign_message, message
from synckit_connectors.nats_pull import PULL_BYTES, Got, Pull
from synckit_connectors.nats_wire import RECONNECT_PAUSE_S, Wire, log
from synckit_streams.errors import ConnectorError, Rejected, Timeout, Unavailable
from synckit_streams.ports.connector import BATCHES_HELD_MAX, Delivery, Message

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

MAX_DELIVERIES = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES"
_ACK, _NAK, _TERM, _EXTEND = b"+ACK", b"-NAK", b"+TERM", b"+WPI"


class _Held(NamedTuple):
    """A delivery that is not acknowledged."""

    reply: str
    until: float
    """When the server takes it from us, by our clock: a little later than by the server's."""


class _Advisory(msgspec.Struct):
    """What the server says when it gives a message up."""

    stream_seq: int = 0
    deliveries: int = 0


class Member(Pull):
    """One of a group; see `synckit_streams.ports.connector.Member`."""

    def __init__(
        self, link: Link, stream: str, identity: str, consumer: str, batch_max: int, *, foreign: bool = False
    ) -> None:
        super().__init__(link, stream, batch_max)
        self._consumer = consumer
        self._foreign = foreign
        self._identity = identity
        self._consumer_created = ""
        self._reached = Reached(link, stream)
        self._reached.note(identity, 0, 0)
        self._held: dict[int, _Held] = {}
        """By position, the oldest delivery first; also what was not handed out yet."""
        self._held_max = BATCHES_HELD_MAX * self._batch_max
        self._ahead_max = 2 * self._batch_max
        self._count_max = self._ahead_max
        self._ack_wait_s = link.options.ack_wait_s
        self._known: Wire | None = None
        """The connection over which we looked whether log and group are still the same."""
        self._deliveries_max = -1
        self._advisories: Subscription | None = None

    def __aiter__(self) -> Member:
        return self

    async def __anext__(self) -> Sequence[Delivery]:
        batch = await self.batch()
        if not batch:
            raise StopAsyncIteration
        return [Delivery(self._message(got), 0, got.position, got.attempt) for got in batch]

    def _message(self, got: Got) -> Message:
        if not self._foreign:
            return message(got.headers, got.body)
        return foreign_message(f"{self._identity}/{got.position}", got.subject, got.headers, got.body)

    # ----------------------------------------------------------------------------------------------- coming and going

    async def join(self, start: int) -> None:
        """Make the group if it is new, and become a member."""
        info = await group_info(self._link, self._stream, self._consumer)
        if info.error is not None and info.error.err_code == NO_CONSUMER:
            info = await self._create(start)
        granted(info, f"group {self._consumer} of {self._stream}")
        config = info.config or Config()
        if why := _unfit(config, foreign=self._foreign):
            raise Rejected(
                f"consumer {self._consumer} of {self._stream} {why}: no group can work with it",
                hint="delete that consumer, and it is made as it has to be",
            )
        self._consumer_created = info.created
        self._ack_wait_s = min([config.ack_wait, *config.backoff]) / NANO
        self._deliveries_max = config.max_deliver
        # What somebody's own consumer allows at a time.
        self._count_max = min(self._count_max, config.max_batch or self._count_max)
        self._bytes_max = config.max_bytes if config.max_bytes > 0 else PULL_BYTES
        if config.max_expires:
            self._expires_s = min(self._expires_s, config.max_expires / NANO)
        if changed := await self._changed():
            raise Unavailable(changed, hint="look at the bounds, and at how far the group has come")
        await self.attach()

    async def _create(self, start: int) -> Answer:
        begin: dict[str, object] = {"deliver_policy": "all"}
        if start > 0:
            begin = {"deliver_policy": "by_start_sequence", "opt_start_seq": start + 1}
        config = {
            "name": self._consumer,
            "durable_name": self._consumer,
            "description": "synckit-streams",
            "ack_policy": "explicit",
            "ack_wait": int(self._ack_wait_s * NANO),
            "max_deliver": -1,
            # Each member bounds what it holds. A bound for all of them together would let the slow ones hold up the
            # others, and what is to come again later hold up everybody.
            "max_ack_pending": -1,
            "replay_policy": "instant",
        }
        answer = await self._link.ask(
            f"CONSUMER.CREATE.{self._stream}.{self._consumer}",
            {"stream_name": self._stream, "action": "create", "config": config | begin},
        )
        if answer.error is not None and answer.error.err_code == CONSUMER_TAKEN:
            return await group_info(self._link, self._stream, self._consumer)  # somebody else was quicker
        return answer

    async def _begin(self, wire: Wire) -> None:
        if self._known is None:
            self._known = wire
        elif wire is not self._known:
            raise Unavailable(f"the connection to {self._link.address} was lost again")
        if self._deliveries_max > 0:
            # One member of the group hears it.
            subject = f"{MAX_DELIVERIES}.{self._stream}.{self._consumer}"
            self._advisories = await wire.subscribe(subject, self._on_advisory, queue=self._consumer)

    async def detach(self) -> None:
        wire, advisories = self._wire, self._advisories
        self._advisories = None
        await super().detach()
        if wire is not None and advisories is not None:
            await wire.unsubscribe(advisories)

    async def leave(self) -> None:
        """Give up what is not acknowledged, at once."""
        self.end()
        wire = self._wire
        # Whatever cannot be told here comes again when its time is over.
        with suppress(ConnectorError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                if wire is not None and wire.gone is None and self._subscription is not None:
                    # When the server says how the group is, it also drops requests that nobody waits for any more. If
                    # it met one with the first message that we give back, that one would come behind the others.
                    await wire.drain(self._subscription, f"CONSUMER.INFO.{self._stream}.{self._consumer}")
                if self._held:
                    known = self._known if self._known is not None and self._known.gone is None else await self._sure()
                    await self._publish(known, [self._held[each].reply for each in self._ours(self._held)], _NAK)
        self._held.clear()
        await self.detach()

    async def _changed(self) -> str:
        """Also: whether it is still the group that we joined, and what of ours it has."""
        wire = await self._link.ready()
        before = list(self._held)
        if changed := await self._reached.changed():
            return changed
        info = await group_info(self._link, self._stream, self._consumer)
        if info.error is not None and info.error.err_code == NO_CONSUMER:
            return f"group {self._consumer} of {self._stream} was deleted: where it stood is lost"
        granted(info, f"group {self._consumer} of {self._stream}")
        if info.created != self._consumer_created:
            return f"group {self._consumer} of {self._stream} was deleted and made anew"
        # A server that was killed may have forgotten its last deliveries. It delivers them again, and does not answer
        # to acknowledgements of what it has not delivered.
        for position in before:
            if position > info.delivered.stream_seq:
                self._held.pop(position, None)
        self._known = wire if wire.gone is None else None
        return ""

    async def _sure(self) -> Wire:
        """A connection over which the log and the group are known to be the same."""
        while True:
            wire = await self._link.ready()
            if wire is self._known:
                return wire
            if changed := await self._changed():
                raise Unavailable(changed, hint="look at the bounds, and at how far the group has come")

    # ---------------------------------------------------------------------------------------------------------- taking

    def _wanted(self) -> int:
        ahead = len(self._got) + self._asked
        if len(self._held) + self._asked >= self._held_max:
            self._let_go()
        count = min(self._ahead_max - ahead, self._held_max - len(self._held) - self._asked, self._count_max)
        # Not a question a message.
        return 0 if self._asked and 2 * count < min(self._batch_max, self._count_max) else count

    def _let_go(self) -> None:
        now = self._loop.time()
        for position in [position for position, held in self._held.items() if held.until <= now]:
            del self._held[position]

    def _patience_s(self) -> float:
        patience_s = super()._patience_s()
        if self._asked or not self._held:
            return patience_s
        # Nothing can come before something that we hold is taken from us.
        due = min(held.until for held in self._held.values())
        return min(max(due - self._loop.time(), 0.001), patience_s)

    def _note(self, got: Got) -> bool:
        self._count(got)
        # Behind the others, also if it was there before: the oldest delivery is the first.
        self._held.pop(got.position, None)
        self._held[got.position] = _Held(got.reply, self._loop.time() + self._ack_wait_s)
        if got.position > self._reached.position:
            self._reached.position, self._reached.at_ns = got.position, got.at_ns
        return True

    async def _ask(self) -> None:
        await super()._ask()
        await self._renew()

    async def _renew(self) -> None:
        """What lay here for a while has its whole time before it when it is handed out."""
        now, wire = self._loop.time(), self._wire
        if wire is None or self._broken:
            return
        for got, _ in zip(self._got, range(self._batch_max), strict=False):
            held = self._held.get(got.position)
            if held is None or held.reply != got.reply or held.until <= now:
                continue
            if held.until - now > 0.75 * self._ack_wait_s:
                break  # those behind it came later
            try:
                await wire.publish(held.reply, _EXTEND)
            except Unavailable as error:
                self.break_off(error.message)
                return
            self._held[got.position] = _Held(held.reply, now + self._ack_wait_s)

    def _cut(self) -> list[Got]:
        now = self._loop.time()
        batch: list[Got] = []
        while self._got and len(batch) < self._batch_max:
            got = self._got[0]
            if batch and got.position <= batch[-1].position:
                break  # it came again
            self._got.popleft()
            self._got_bytes -= len(got.body)
            held = self._held.get(got.position)
            # Neither what was acknowledged, or came once more, while it lay here; nor what others have by now.
            if held is not None and held.reply == got.reply and held.until > now:
                batch.append(got)
        return batch

    # --------------------------------------------------------------------------------------------------------- telling

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See `Member.ack`."""
        # Also what is overdue: it is done, whoever has it now.
        await self._tell([each.position for each in deliveries if each.position in self._held], _ACK)

    async def nack(self, deliveries: Sequence[Delivery], delay_s: float = 0.0) -> None:
        """See `Member.nack`."""
        word = _NAK + b" " + json.dumps({"delay": int(delay_s * NANO)}).encode() if delay_s > 0 else _NAK
        await self._tell(self._ours(each.position for each in deliveries), word)

    async def term(self, deliveries: Sequence[Delivery]) -> None:
        """See `Member.term`."""
        await self._tell(self._ours(each.position for each in deliveries), _TERM)

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """See `Member.extend`."""
        positions, now = self._ours(each.position for each in deliveries), self._loop.time()
        await self._tell(positions, _EXTEND, keep=True)
        for position in positions:
            if (held := self._held.get(position)) is not None:
                self._held[position] = _Held(held.reply, now + self._ack_wait_s)

    async def settled(self) -> bool:
        """See `Member.settled`."""
        info = await group_info(self._link, self._stream, self._consumer)
        granted(info, f"group {self._consumer} of {self._stream}")
        return not info.num_pending and not info.num_ack_pending

    def _ours(self, positions: Iterable[int]) -> list[int]:
        now = self._loop.time()
        return [each for each in positions if (held := self._held.get(each)) is not None and held.until > now]

    async def _tell(self, positions: Iterable[int], word: bytes, *, keep: bool = False) -> None:
        """Return when the server has taken it."""
        told = {each: self._held[each].reply for each in positions}
        until = self._loop.time() + self._link.options.timeout_s
        while told:
            wire = await self._sure()
            # Looking anew may have shown that the server has forgotten some of them.
            told = {position: reply for position, reply in told.items() if position in self._held}
            try:
                await self._publish(wire, list(told.values()), word)
                break
            except (Unavailable, Timeout) as error:
                if self._loop.time() >= until:
                    raise
                log.debug("%s: telling again: %s", self._stream, error.message)
                self._known = None
                await asyncio.sleep(RECONNECT_PAUSE_S)
        if not keep:
            for position, reply in told.items():
                # What was given back may have come again before we were told that it was.
                if (held := self._held.get(position)) is not None and (held.reply == reply or word is _ACK):
                    del self._held[position]
            self._woken.set()  # there is room for more

    async def _publish(self, wire: Wire, replies: Sequence[str], word: bytes) -> None:
        if replies:
            for reply in replies[:-1]:
                await wire.publish(reply, word)
            # A connection that carries nothing any more is found out in time to tell it over another one.
            await wire.request(replies[-1], word, patience_s=self._link.options.timeout_s / 4)

    async def _on_advisory(self, msg: Msg) -> None:
        with suppress(msgspec.MsgspecError):
            said = msgspec.json.decode(msg.data, type=_Advisory)
            log.warning(
                "message %d of stream %s was delivered %d times to group %s and never acknowledged: the server delivers"
                " it no more, because somebody set the consumer's max_deliver; it is still in the stream",
                said.stream_seq,
                self._stream,
                said.deliveries,
                self._consumer,
            )


async def group_info(link: Link, stream: str, consumer: str) -> Answer:
    """What the server says about a group."""
    return await link.ask(f"CONSUMER.INFO.{stream}.{consumer}")


def _unfit(config: Config, *, foreign: bool) -> str:
    """Why a consumer that is there already cannot be shared by a group; "" if it can."""
    if config.deliver_subject:
        return "pushes its messages"
    if config.ack_policy != "explicit":
        return f"has the acknowledgement policy {config.ack_policy!r}"
    if config.headers_only:
        return "delivers headers only"
    if config.priority_groups:
        return "has priority groups"
    if not foreign and (config.filter_subject or config.filter_subjects):
        return "delivers only some subjects"
    return ""
