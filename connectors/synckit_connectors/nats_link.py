"""The way to the server, over as many connections as it takes, and the streams that are there."""

from __future__ import annotations

import asyncio
import ssl

from synckit_connectors.nats_api import (
    NAME_TAKEN,
    NANO,
    NO_MESSAGE,
    NO_STREAM,
    Answer,
    Stored,
    granted,
    nanoseconds,
)
from synckit_connectors.nats_names import DIGEST_STREAM, subjects
from synckit_connectors.nats_options import Address, NatsOptions
from synckit_connectors.nats_wire import RECONNECT_PAUSE_S, Wire, not_open
from synckit_streams.errors import ConnectorError, Rejected, Unavailable

ANSWER_S = 1.0
"""For an answer on the connection that we have, before `open` makes a new one, or that would only be nice to have."""
OPEN_S = 3.0
"""For `open`, whatever it has to do, and whoever else is trying to connect just then."""
SERVER_VERSION_MIN = (2, 10)
OVERHEAD_BYTES = 256
"""Kept free in each message for what NATS and we add: the header's first line, and `Nats-Msg-Id`."""


class Link:
    """One server, or one cluster: `ready` is a connection to it for whoever needs one."""

    def __init__(self, address: Address, options: NatsOptions, tls: ssl.SSLContext | None) -> None:
        self.address = address
        self.options = options
        self.bytes_max = 1024 * 1024 - OVERHEAD_BYTES
        """Largest message; known once we were connected."""
        self._tls = tls
        self._opened = False
        self._wire: Wire | None = None
        self._attempt: asyncio.Task[Wire] | None = None
        self._refused: asyncio.Future[Unavailable]
        """Why the present try of the attempt has failed."""
        self._made: set[str] = set()

    # ----------------------------------------------------------------------------------------------- open and closed

    async def open(self) -> None:
        """Connect; if we are connected, make sure that the server answers."""
        first = not self._opened
        self._opened = True
        try:
            async with asyncio.timeout(OPEN_S):
                if not first:
                    await self._doubt()
                wire = await self.ready(patient=False)
        except TimeoutError:
            raise Unavailable(f"no connection to {self.address}") from None
        if first:
            self._check_version(wire)
            granted(await wire.ask("INFO"), "JetStream")

    @property
    def opened(self) -> bool:
        return self._opened

    async def _doubt(self) -> None:
        """Give the connection that we have up if nothing answers on it."""
        wire = self._wire
        if wire is None or wire.gone is not None:
            return
        try:
            async with asyncio.timeout(ANSWER_S):
                await wire.ask("INFO")
        except (ConnectorError, TimeoutError):
            wire.end(Unavailable(f"the connection to {self.address} was lost: no answer"))

    def refuse(self) -> None:
        """Nobody gets a connection any more; those who have one may still use it."""
        self._opened = False

    async def close(self) -> None:
        """Let go of everything."""
        self.refuse()
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait({self._attempt})
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close(not_open(self.address))

    async def ready(self, *, patient: bool = True) -> Wire:
        """A connection; a new one if the last was lost, which has `timeout_s` to come back if we are patient."""
        if not self._opened:
            raise not_open(self.address)
        if self._wire is None or self._wire.gone is not None:
            # One attempt for all who want it. Who is cancelled while waiting does not cancel it for the others.
            attempt = self._attempt
            if attempt is None:
                loop = asyncio.get_running_loop()
                self._refused = loop.create_future()
                attempt = self._attempt = loop.create_task(self._connect(patient))
                attempt.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits
            refused = self._refused
            # Who is not patient waits for the present try alone, the others for as many as it takes.
            waits: list[asyncio.Future[Wire] | asyncio.Future[Unavailable]] = [attempt]
            await asyncio.wait(waits if patient else [*waits, refused], return_when=asyncio.FIRST_COMPLETED)
            if not attempt.done():
                raise refused.result()
            if attempt.cancelled():
                raise not_open(self.address)
            return attempt.result()
        return self._wire

    async def _connect(self, patient: bool) -> Wire:
        loop = asyncio.get_running_loop()
        # The first connection has one try, and so has one that did not come back in time.
        until = self._wire.gone_at + self.options.timeout_s if patient and self._wire is not None else 0.0
        try:
            if self._wire is not None:
                await self._wire.close(not_open(self.address))
            while True:
                wire = Wire(self.address, self.options, self._tls)
                try:
                    await wire.connect()
                except Unavailable as error:
                    if loop.time() >= until:
                        raise
                    refused, self._refused = self._refused, loop.create_future()
                    refused.set_result(error)
                    await asyncio.sleep(RECONNECT_PAUSE_S)
                else:
                    break
        finally:
            self._attempt = None
        # Another server may answer now, with other streams.
        self._made.clear()
        self.bytes_max = wire.client.max_payload - OVERHEAD_BYTES
        self._wire = wire
        return wire

    def _check_version(self, wire: Wire) -> None:
        version = wire.client.connected_server_version
        try:
            found = (version.major, version.minor)
        except ValueError:
            return  # a build of somebody's own
        if found < SERVER_VERSION_MIN:
            raise Rejected(
                f"the server at {self.address} is nats-server {found[0]}.{found[1]}",
                hint=f"it has to be {SERVER_VERSION_MIN[0]}.{SERVER_VERSION_MIN[1]} or newer",
            )

    # ------------------------------------------------------------------------------------------------------- streams

    async def ask(self, what: str, body: object = None) -> Answer:
        """Ask the JetStream API; once more if the connection was lost meanwhile, since asking changes nothing."""
        wire = await self.ready()
        try:
            return await wire.ask(what, body)
        except Unavailable:
            if wire.gone is None:
                raise
        return await (await self.ready()).ask(what, body)

    async def stored(self, stream: str, position: int) -> Stored | None:
        """The message at just this position."""
        return await self._message(stream, {"seq": position}, f"message {position}")

    async def stored_from(self, stream: str, position: int) -> Stored | None:
        """The first message at this position or behind it."""
        return await self._message(
            stream, {"seq": position, "next_by_subj": ">"}, f"the message at {position} or behind it"
        )

    async def _message(self, stream: str, which: dict[str, object], what: str) -> Stored | None:
        answer = await self.ask(f"STREAM.MSG.GET.{stream}", which)
        if answer.error is not None and answer.error.err_code in (NO_MESSAGE, NO_STREAM):
            return None
        return granted(answer, f"{what} of {stream}").message

    async def before(self, stream: str, first: int, last: int, at_ns: int) -> int:
        """The position of the last message from `first` to `last` that came before a time; `first - 1` if none did.

        Halving is a question a bit, but it needs nothing of the server but messages and their times. All before `low`
        came before that time; what lies behind `high` came later, or is not there.
        """
        low, high = max(first - 1, 0), last
        while low < high:
            middle = (low + high + 1) // 2
            found = await self.stored_from(stream, middle)
            if found is not None and nanoseconds(found.time) < at_ns:
                low = found.seq
            else:
                high = middle - 1
        return low

    async def made(self, name: str) -> str:
        """A stream's name, once it is there."""
        await self.ready()
        if name not in self._made:
            await self.stream(name)
        return name

    def forget(self, name: str) -> None:
        """Perhaps it is not there any more."""
        self._made.discard(name)

    async def stream(self, name: str) -> Answer:
        """A stream of ours as it is now, made if it was not there."""
        answer = await self.ask(f"STREAM.INFO.{name}")
        if answer.error is not None and answer.error.err_code == NO_STREAM:
            answer = await self.ask(f"STREAM.CREATE.{name}", self._config(name))
            if answer.error is not None and answer.error.err_code == NAME_TAKEN:
                # Somebody else was quicker, with other settings.
                answer = await self.ask(f"STREAM.INFO.{name}")
        granted(answer, f"stream {name}")
        taken = answer.config.subjects if answer.config is not None else []
        if taken != subjects(name):
            raise Rejected(
                f"stream {name} takes {taken}, not {subjects(name)}: it is not one of ours",
                hint="give that stream another name, or the topic",
            )
        self._made.add(name)
        return answer

    def _config(self, name: str) -> dict[str, object]:
        options = self.options
        window_s = options.duplicate_window_s
        limits: dict[str, object] = {"max_msgs_per_subject": 1}
        if name != DIGEST_STREAM:
            window_s = min(window_s, options.max_age_s or window_s)  # the server insists on that
            limits = {"max_bytes": options.max_bytes, "max_age": int(options.max_age_s * NANO)}
        return {
            "name": name,
            "description": "synckit-streams",
            "subjects": subjects(name),
            "retention": "limits",
            "discard": "old",
            "storage": options.storage,
            "num_replicas": options.replicas,
            "duplicate_window": int(window_s * NANO),
            "allow_direct": True,
            **limits,
        }


class Reached:
    """How far a stream was read, and by what we see that it is still the same."""

    def __init__(self, link: Link, stream: str) -> None:
        self._link = link
        self._stream = stream
        self._identity = ""
        self.position = 0
        self.at_ns = 0
        """When the message there was stored, by the server's clock: what it is known by. 0 is unknown."""

    def note(self, identity: str, position: int, at_ns: int) -> None:
        self._identity, self.position, self.at_ns = identity, position, at_ns

    async def changed(self) -> str:
        """Why it is another stream now, or not what it was; "" if it is the same."""
        answer = await self._link.ask(f"STREAM.INFO.{self._stream}")
        if answer.error is not None and answer.error.err_code == NO_STREAM:
            return f"stream {self._stream} was deleted"
        info = granted(answer, self._stream)
        if info.created != self._identity:
            return f"stream {self._stream} was deleted and made anew"
        if info.state is not None and info.state.last_seq < self.position:
            return f"stream {self._stream} was put back: it ends at {info.state.last_seq}, {self.position} was read"
        position, at_ns = self.position, self.at_ns
        stored = await self._link.stored(self._stream, position) if at_ns else None
        if stored is not None and nanoseconds(stored.time) != at_ns:
            return f"stream {self._stream} was put back: message {position} is another one now"
        return ""
