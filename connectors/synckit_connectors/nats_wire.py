"""One connection to a NATS server: publishing, hearing, and asking the JetStream API.

nats-py carries bytes; its JetStream layer costs two tasks a message and hides what has to be known, above all what was
sent twice. Here all answers come to *one* inbox: a reply subject is the inbox and a token, and whoever waits for an
answer is found by the token. When the connection is lost, all of them are told at once; a publish then goes out again
under the same `Nats-Msg-Id`, over the next connection.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from synckit_connectors.nats_api import Answer, decode, decode_answer, status_of
from synckit_connectors.nats_options import Address, NatsOptions
from synckit_streams.errors import (
    ConnectorError,
    MissingDependency,
    Timeout,
    Unauthorised,
    Unavailable,
)

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

log = logging.getLogger("synckit_connectors.nats_jetstream")

CONNECT_S = 2.8
"""For one attempt to connect, all servers of the URL together."""
RECONNECT_PAUSE_S = 0.25
ASKED_TIMES = 5
"""How often a question is asked within `timeout_s` until it is answered."""

_BLANKS = " \t\n\r\x0b\x0c"  # of bytes; to a text there are more
_ODD_NAME = re.compile(r"[^\x00-\x7f]|\s")

_OnAnswer: TypeAlias = "Callable[[str, Msg | ConnectorError], None]"


class Wire:
    """One connection, with all that waits for an answer on it. Once it is gone it does not come back: make another.

    nats-py's own reconnection is not used. It keeps what was published meanwhile, and sends it later without telling;
    and it leaks a socket for each attempt at which the server answers but does not let it in.
    """

    def __init__(self, address: Address, options: NatsOptions, tls: ssl.SSLContext | None) -> None:
        self._address = address
        self._options = options
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, _OnAnswer] = {}
        self._tokens = itertools.count()
        self._subscriptions: set[Subscription] = set()
        self._cause: Exception | None = None
        self._failures = 0
        self._failed = self._loop.create_future()
        self._encrypted = False
        """Whether the present attempt to connect came to an encrypted connection."""
        self._ending: asyncio.Task[None] | None = None
        self.client = _new_client(self._note_encryption)
        self.inbox = ""
        self.gone: ConnectorError | None = None
        self.gone_at = 0.0
        self.watchers: set[Callable[[str], None]] = set()
        """Told why it is gone."""

    # ------------------------------------------------------------------------------------------------ coming and going

    async def connect(self) -> None:
        """Connect to one of the servers, within `CONNECT_S`."""
        attempt = self._loop.create_task(self.client.connect(**self._settings()))
        try:
            # nats-py alone would try for ever; one failure of each server is enough to know.
            await asyncio.wait({attempt, self._failed}, timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
            if attempt.done():
                attempt.result()
            # A server that hangs up in the middle of the handshake is told apart only by the second.
            if not attempt.done() or not self.client.is_connected:
                raise self._unavailable("no connection")
            if self._address.tls and not self._encrypted:
                raise _no_tls(self._address)
            self.inbox = self.client.new_inbox() + "."
            await self.subscribe(self.inbox + "*", self._on_answer)
        except BaseException as error:
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)
            await self.close(self._unavailable("no connection"))
            if isinstance(error, ConnectorError) or not isinstance(error, Exception):
                raise
            raise _translate(error, f"no connection to {self._address}") from error

    def _settings(self) -> dict[str, Any]:
        options = self._options
        settings: dict[str, Any] = {
            "servers": self._address.servers,
            "name": "synckit-streams",
            "error_cb": self._on_error,
            "disconnected_cb": self._on_down,
            "closed_cb": self._on_down,
            "connect_timeout": max(1, int(CONNECT_S) // len(self._address.servers)),
            "reconnect_time_wait": RECONNECT_PAUSE_S,
            "max_reconnect_attempts": -1,
            "ping_interval": 20,
            # Far above our window: nats-py swallows a cancellation that meets it while it waits for its own buffer.
            "pending_size": 256 * 1024 * 1024,
            "inbox_prefix": options.inbox_prefix,
            # We make all of them ourselves, and what is a caller's in them is hashed or was looked at.
            "skip_subject_validation": True,
        }
        if self._tls is not None:
            settings["tls"] = self._tls
        if options.creds:
            settings["user_credentials"] = options.creds
        elif options.token:
            settings["token"] = lambda: self._secret(options.token)
        elif self._address.user is not None:
            settings["user"] = lambda: self._secret(self._address.user or "")
            settings["password"] = lambda: self._address.password or ""
        return settings

    def _secret(self, secret: str) -> str:
        # nats-py encrypts only when the server asks for it, tls:// or not; and it wants the secret after that.
        if self._address.tls and not self._encrypted:
            raise _nats_errors().SecureConnWantedError
        return secret

    def _note_encryption(self) -> None:
        self._encrypted = True

    async def close(self, why: ConnectorError) -> None:
        """End it, and return when nothing of it is left."""
        self.end(why)
        if self._ending is not None:
            await asyncio.wait({self._ending})

    def end(self, why: ConnectorError) -> None:
        """It is gone, and everybody who waits is told why."""
        if self.gone is not None:
            return
        self.gone = why
        self.gone_at = self._loop.time()
        self._ending = self._loop.create_task(self._close_client())
        self._tell(why)
        for tell in list(self.watchers):
            tell(why.message)

    @property
    def heard(self) -> int:
        """How many messages came. When none did, a connection that should bring some looks open and is not."""
        count: int = self.client.stats["in_msgs"]
        return count

    async def _close_client(self) -> None:
        # Ours first: when the socket is already dead, nats-py's close stops half-way and would leave their tasks.
        for subscription in list(self._subscriptions):
            await self.unsubscribe(subscription)
        with suppress(Exception):
            await self.client.close()
        for _ in range(3):  # its cancelled tasks end in the next rounds of the loop
            await asyncio.sleep(0)

    def _tell(self, error: ConnectorError) -> None:
        """Everybody who waits for an answer gets this one."""
        waiting, self._waiting = self._waiting, {}
        for token, on_answer in waiting.items():
            on_answer(token, error)

    def _unavailable(self, what: str) -> ConnectorError:
        return _translate(self._cause, f"{what} to {self._address}")

    async def _on_error(self, error: Exception) -> None:
        log.debug("%s: %s", self._address, error)
        # A server that does not let us in may also just hang up at the next try; the first says more.
        if not isinstance(self._unavailable("no connection"), Unauthorised):
            self._cause = error
        self._encrypted = False
        self._failures += 1
        if self._failures >= len(self._address.servers) and not self._failed.done():
            self._failed.set_result(None)
        if "permissions violation" in str(error).lower():
            # It does not say whose request that was, so everyone who waits hears it.
            self._tell(_translate(error, f"not allowed at {self._address}"))

    async def _on_down(self) -> None:
        # Lost, or closed by the server with an error that nats-py does not come back from.
        self._cause = self.client.last_error or self._cause
        self.end(Unavailable(f"the connection to {self._address} was lost: {self._cause or 'closed'}"))

    # ------------------------------------------------------------------------------------------- asking and answering

    def expect(self, on_answer: _OnAnswer) -> str:
        """A token for a reply subject, at which one answer is expected: `inbox + token`."""
        token = f"{next(self._tokens):x}"
        self._waiting[token] = on_answer
        return token

    def forget(self, token: str) -> None:
        """No longer expect it."""
        self._waiting.pop(token, None)

    async def _on_answer(self, msg: Msg) -> None:
        token = msg.subject[len(self.inbox) :]
        on_answer = self._waiting.pop(token, None)
        if on_answer is not None:
            on_answer(token, msg)

    async def publish(
        self, subject: str, body: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Hand one message to the connection. It never waits."""
        if not self.client.is_connected:
            # nats-py calls back a little later than it changes its state, and not at all if its close fails half-way.
            self.end(Unavailable(f"the connection to {self._address} was lost"))
        if self.gone is not None:
            raise self.gone
        try:
            await self.client.publish(subject, body, reply=reply, headers=headers)
        except _nats_errors().Error as error:
            raise _translate(error, f"could not publish at {self._address}") from error

    async def request(self, subject: str, body: bytes = b"", *, patience_s: float | None = None, times: int = 1) -> Msg:
        """Ask, and wait for the answer; for `timeout_s` if not told otherwise, and asking so many times meanwhile."""
        patience_s = self._options.timeout_s if patience_s is None else patience_s
        answer: asyncio.Future[Msg] = self._loop.create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # when publish raises, nobody waits

        def on_answer(token: str, msg: Msg | ConnectorError) -> None:
            if not answer.done():
                if isinstance(msg, ConnectorError):
                    answer.set_exception(msg)
                else:
                    answer.set_result(msg)

        token = self.expect(on_answer)
        heard = self.heard
        try:
            async with asyncio.timeout(patience_s):
                for _ in range(times):
                    await self.publish(subject, body, reply=self.inbox + token)
                    await asyncio.wait({answer}, timeout=patience_s / times)
                    if answer.done():
                        break
                msg = await answer
        except TimeoutError:
            error: ConnectorError = Timeout(f"no answer from {self._address} to {subject} within {patience_s:g} s")
            if self.heard == heard:
                self.end(error)
            raise error from None
        finally:
            self.forget(token)
        if status_of(msg) == "503":
            raise Unavailable(
                f"JetStream does not answer at {self._address}", hint="start the server with JetStream: nats-server -js"
            )
        return msg

    async def ask(self, what: str, body: object = None) -> Answer:
        """Ask the JetStream API. An error in the answer is the caller's to judge."""
        payload = b"" if body is None else json.dumps(body).encode()
        # A cluster that has no leader just then does not answer at all. It may be asked again: asking twice does no
        # more than asking once, also where something is made.
        msg = await self.request(f"{self._options.api}.{what}", payload, times=ASKED_TIMES)
        return decode(decode_answer, msg.data, what)

    async def subscribe(self, subject: str, on_message: Callable[[Msg], Any], *, queue: str = "") -> Subscription:
        """Hear a subject, until `unsubscribe` or the connection's end; of a queue, only one hears each message."""
        try:
            subscription: Subscription = await self.client.subscribe(subject, queue=queue, cb=on_message)
        except _nats_errors().Error as error:
            raise _translate(error, f"could not subscribe at {self._address}") from error
        self._subscriptions.add(subscription)
        return subscription

    async def drain(self, subscription: Subscription, what: str) -> None:
        """Hear it no more, once everything has come that the server had sent; `what` is asked to know when."""
        await self.client.send_unsubscribe(subscription)
        await self.ask(what)  # the answer comes behind it
        while subscription.pending_msgs and self.gone is None:  # noqa: ASYNC110 - nats-py has no event for it
            await asyncio.sleep(0)
        await self.unsubscribe(subscription)

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Hear it no more."""
        self._subscriptions.discard(subscription)
        with suppress(_nats_errors().Error):
            await subscription.unsubscribe()


# ------------------------------------------------------------------------------------------------------------- errors


def _translate(error: Exception | None, what: str) -> ConnectorError:
    """One of ours for one of nats-py's, or of the socket's."""
    text = f"{what}: {str(error or '') or 'no answer'}"  # a timeout says nothing
    said = str(error).lower()
    if isinstance(error, ssl.SSLError):
        return Unauthorised(text, hint="tls_ca names the certificates to trust, tls_cert and tls_key are our own")
    if isinstance(error, _nats_errors().SecureConnWantedError):
        return Unauthorised(text, hint="the server does not offer TLS; nothing secret was sent")
    if any(word in said for word in ("authorization", "authentication", "credentials", "permissions violation")):
        return Unauthorised(text)
    return Unavailable(text)


def _no_tls(address: Address) -> Unauthorised:
    return Unauthorised(f"the connection to {address} is not encrypted", hint="write nats:// if that is wanted")


def not_open(address: Address) -> ConnectorError:
    return ConnectorError(
        f"the connector to {address} is not open", hint="call open() first, and nothing but open() after close()"
    )


# ------------------------------------------------------------------------------------------------------------- nats-py


def require_nats() -> None:
    try:
        import nats.aio.client  # noqa: F401
    except ModuleNotFoundError:
        raise MissingDependency(
            "the NATS connector needs nats-py", hint="pip install 'synckit-streams[nats]'"
        ) from None


@cache
def _nats_errors() -> Any:
    from nats import errors

    return errors


def _new_client(note_encryption: Callable[[], None]) -> Any:
    from nats.aio import client

    class NotingClient(client.Client):
        @property
        def ssl_context(self) -> ssl.SSLContext:
            # Read just before the connection is encrypted, and only then.
            note_encryption()
            return super().ssl_context

        @staticmethod
        def _parse_header_lines(raw: bytes) -> dict[str, str]:
            # nats-py looks at each character of each name: half of what receiving costs. Nothing depends on that this
            # one is called; its own does the same.
            found: dict[str, str] = {}
            for line in raw.decode(errors="replace").split("\r\n"):
                name, colon, value = line.partition(":")
                if colon and not _ODD_NAME.search(name := name.strip(_BLANKS)):
                    found[name] = value.strip(_BLANKS)
            return found

        async def send_unsubscribe(self, subscription: Subscription) -> None:
            # nats-py's `unsubscribe` throws away what is on its way; its `drain` waits for the answer to a ping that
            # overtakes the UNSUB, which still waits to be written.
            await self._send_unsubscribe(subscription._id)

    return NotingClient()
