"""One connection to a NATS server: asking the JetStream API, and publishing until everything is acknowledged.

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
import math
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec

from synckit_streams.errors import (
    ConfigError,
    ConnectorError,
    MissingDependency,
    Rejected,
    SyncKitError,
    Timeout,
    TooLarge,
    Unauthorised,
    Unavailable,
)

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

log = logging.getLogger("synckit_connectors.nats_jetstream")

CONNECT_S = 2.8
"""For one attempt to connect, all servers of the URL together."""
RECONNECT_PAUSE_S = 0.25
WINDOW_MESSAGES = 512
WINDOW_BYTES = 4 * 1024 * 1024
"""What may be published and not yet acknowledged."""
HEARTBEAT_S_MAX = 15.0
NANO = 1_000_000_000
_CREDS_MARKS = (b"BEGIN NATS USER JWT", b"BEGIN USER NKEY SEED")

# Codes of the JetStream API, from nats-server's errors.json.
NO_STREAM, NO_MESSAGE, NAME_TAKEN = 10059, 10037, 10058
_TOO_LARGE, _NOT_ENABLED = 10054, {10039, 10076}
# A cluster without a leader, or a stream without its servers. The code 503 alone also stands for a stream that is full.
_TRANSIENT = {10003, 10008, 10009, 10118}


class NatsOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a NATS connector, in the URL's query or as keywords.

    Args:
        replicas: Servers that hold each stream that we make, 1 to 5.
        max_age_s: For how long streams that we make keep a message; 0 is for ever.
        max_bytes: How large they may grow before the oldest messages go; -1 is without limit.
        storage: `file` or `memory`.
        duplicate_window_s: For how long the server remembers message ids.
        timeout_s: Longest time without progress, and for the connection to come back.
        heartbeat_s: How often the server tells an idle reader that it is still there.
        tls_ca: File with the certificates to trust, instead of the system's.
        tls_cert: File with our certificate, when the server asks for one.
        tls_key: Its key, if not in the same file.
        creds: File with a user's JWT and NKey seed.
        token: Token to authenticate with.
        domain: JetStream domain, for a leaf node that uses its hub's streams.
        inbox_prefix: Where answers come to, for users who may not subscribe to `_INBOX`.
    """

    replicas: int = 1
    max_age_s: float = 0.0
    max_bytes: int = -1
    storage: Literal["file", "memory"] = "file"
    duplicate_window_s: float = 120.0
    timeout_s: float = 10.0
    heartbeat_s: float = 5.0
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    creds: str = ""
    token: str = ""
    domain: str = ""
    inbox_prefix: str = "_INBOX"

    @property
    def api(self) -> str:
        """The first part of the subjects of the JetStream API."""
        return f"$JS.{self.domain}.API" if self.domain else "$JS.API"


class Address(NamedTuple):
    servers: list[str]
    tls: bool
    user: str | None
    password: str | None

    def __str__(self) -> str:
        # Never the user's name or password: this stands in errors and logs.
        return ",".join(self.servers)


class ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class State(msgspec.Struct):
    messages: int = 0
    first_seq: int = 0
    last_seq: int = 0


class StreamConfig(msgspec.Struct):
    subjects: list[str] = []
    storage: str = "file"


class Stored(msgspec.Struct):
    subject: str = ""
    seq: int = 0
    hdrs: bytes = b""
    data: bytes = b""
    time: str = ""


class Answer(msgspec.Struct):
    """What we read of the JetStream API's answers, all kinds in one; bytes are base64 in JSON, which msgspec undoes."""

    error: ApiError | None = None
    created: str = ""
    ts: str = ""
    config: StreamConfig | None = None
    state: State | None = None
    message: Stored | None = None
    num_pending: int = 0


class Ack(msgspec.Struct):
    """The answer to a publish."""

    error: ApiError | None = None
    seq: int = 0
    duplicate: bool = False


_decode_answer = msgspec.json.Decoder(Answer).decode
_decode_ack = msgspec.json.Decoder(Ack).decode

_T = TypeVar("_T")
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

    async def request(self, subject: str, body: bytes = b"", *, headers: dict[str, str] | None = None) -> Msg:
        """Ask, and wait for the answer."""
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
            await self.publish(subject, body, reply=self.inbox + token, headers=headers)
            async with asyncio.timeout(self._options.timeout_s):
                msg = await answer
        except TimeoutError:
            error: ConnectorError = Timeout(
                f"no answer from {self._address} to {subject} within {self._options.timeout_s:g} s"
            )
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
        msg = await self.request(f"{self._options.api}.{what}", payload)
        return _decode(_decode_answer, msg.data, what)

    async def subscribe(self, subject: str, on_message: Callable[[Msg], Any]) -> Subscription:
        """Hear a subject; ended by `unsubscribe`, or with the connection."""
        try:
            subscription = await self.client.subscribe(subject, cb=on_message)
        except _nats_errors().Error as error:
            raise _translate(error, f"could not subscribe at {self._address}") from error
        self._subscriptions.add(subscription)
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Hear it no more."""
        self._subscriptions.discard(subscription)
        with suppress(_nats_errors().Error):
            await subscription.unsubscribe()


class Outgoing(NamedTuple):
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
            ack = _decode(_decode_ack, answer.data, message.subject)
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


# ---------------------------------------------------------------------------------------------------- URL and options


def read_url(url: str) -> tuple[Address, dict[str, object]]:
    scheme, separator, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    userinfo, at, hosts = rest.rstrip("/").rpartition("@")
    if not separator or scheme not in ("nats", "tls") or not hosts:
        raise ConfigError("not a URL of the NATS connector", hint="write nats://HOST:PORT, or tls://HOST:PORT")
    user, colon, password = userinfo.partition(":")
    options: dict[str, object] = dict(parse_qsl(query, keep_blank_values=True))
    if at and not colon:
        options.setdefault("token", unquote(user))
    servers = []
    for host in hosts.split(","):
        # The port is behind the last colon, unless that belongs to an IPv6 address.
        port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else "4222"
        name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
        if not name or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"{host!r} is not HOST:PORT")
        servers.append(f"{scheme}://{name}:{port}")
    return Address(
        servers, scheme == "tls", unquote(user) if colon else None, unquote(password) if colon else None
    ), options


def read_options(given: dict[str, object]) -> NatsOptions:
    try:
        options = msgspec.convert(given, NatsOptions, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"a wrong option for the NATS connector: {error}") from None
    if not 1 <= options.replicas <= 5:
        raise ConfigError(f"replicas={options.replicas}: from 1 to 5 are possible")
    if not all(map(math.isfinite, (options.max_age_s, options.duplicate_window_s, options.timeout_s))):
        raise ConfigError("a time for ever, or none at all: leave the option out")
    if not 0.1 <= options.heartbeat_s <= HEARTBEAT_S_MAX:
        raise ConfigError(f"heartbeat_s={options.heartbeat_s:g}: from 0.1 to {HEARTBEAT_S_MAX:g} s are possible")
    if options.timeout_s <= 0 or options.max_age_s < 0 or options.duplicate_window_s < 0:
        raise ConfigError("timeout_s has to be above 0, max_age_s and duplicate_window_s not below")
    for field in ("tls_ca", "tls_cert", "tls_key", "creds"):
        path = getattr(options, field)
        if path and not Path(path).is_file():
            raise ConfigError(f"{field}={path!r}: there is no such file")
    # nats-py looks for these lines to the end of the file, and then for ever.
    if options.creds and not all(mark in Path(options.creds).read_bytes() for mark in _CREDS_MARKS):
        raise ConfigError(f"creds={options.creds!r} holds no user's JWT and seed", hint="see nsc generate creds")
    return options


def wants_tls_context(address: Address, options: NatsOptions) -> bool:
    return address.tls or bool(options.tls_ca or options.tls_cert)


def tls_context(options: NatsOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.tls_ca or None)
        if options.tls_cert:
            context.load_cert_chain(options.tls_cert, options.tls_key or None)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"tls_ca, tls_cert or tls_key: {error}") from error
    return context


# ---------------------------------------------------------------------------------------------------- bytes and errors


def status_of(msg: Msg) -> str:
    return "" if msg.data or not msg.headers else msg.headers.get("Status", "")


def description_of(msg: Msg) -> str:
    return (msg.headers or {}).get("Description", "").strip()


def nanoseconds(text: str) -> int:
    """An RFC 3339 time of the server, which counts nanoseconds, since 1970."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    at = datetime.fromisoformat(f"{seconds}+00:00")
    return int(at.timestamp()) * NANO + int(fraction.ljust(9, "0")[:9])


def granted(answer: Answer, what: str) -> Answer:
    if answer.error is not None:
        raise refusal(answer.error, what)
    return answer


def refusal(error: ApiError, what: str) -> SyncKitError:
    text = f"{what}: {error.description} ({error.err_code})"
    if error.err_code in _NOT_ENABLED:
        return Rejected(text, hint="start the server with JetStream: nats-server -js")
    if error.err_code == _TOO_LARGE:
        return TooLarge(text, hint="raise the stream's max_msg_size")
    return Unavailable(text) if error.err_code in _TRANSIENT else Rejected(text)


def _decode(decoder: Callable[[bytes], _T], raw: bytes, what: str) -> _T:
    try:
        return decoder(raw)
    except msgspec.MsgspecError as error:
        raise Rejected(f"{what}: the server's answer cannot be read: {error}") from error


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


def _new_client(note_encryption: Callable[[], None]) -> Client:
    from nats.aio import client

    class NotingClient(client.Client):
        @property
        def ssl_context(self) -> ssl.SSLContext:
            # Read just before the connection is encrypted, and only then.
            note_encryption()
            return super().ssl_context

    return NotingClient()
