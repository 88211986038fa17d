"""What the Redis connector says to the server: where it is, its entries, its scripts, and its errors as ours."""

from __future__ import annotations

import math
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import msgspec

from synckit_streams.errors import (
    ConfigError,
    MissingDependency,
    Rejected,
    TooLarge,
    Unauthorised,
    Unavailable,
)
from synckit_streams.ports.connector import ID_CHARS_MAX, Announced, Message

BYTES_MAX = 4 * 1024 * 1024
"""Of a message. The server would take half a gigabyte."""

ACK_WAIT_S_MAX = 12 * 3600.0
"""What was given back counts as idle for twice as long, so that everybody claims it at once."""

_POSITION_MAX = 2**63 - 1
"""What a store can keep. No stream of ours comes near it."""

BODY, ID, KEY = b"data", b"sk-id", b"sk-key"
_BODY, _ID, _KEY = BODY.decode(), ID.decode(), KEY.decode()
_RESERVED = {_BODY, _ID, _KEY}

# The stream's identity, its length, its first, last and last given id. A stream that is not there is made, and whoever
# makes one draws a new identity.
LOOK = """
local made = redis.call('EXISTS', KEYS[1]) == 0
if made then
  redis.call('XGROUP', 'CREATE', KEYS[1], 'synckit', '0', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', KEYS[1], 'synckit')
end
if made or not redis.call('GET', KEYS[2]) then redis.call('SET', KEYS[2], ARGV[1]) end
local info, found = redis.call('XINFO', 'STREAM', KEYS[1]), {}
for at = 1, #info, 2 do found[info[at]] = info[at + 1] end
local first, last = found['first-entry'], found['last-entry']
return {redis.call('GET', KEYS[2]), found['length'], first and first[1] or '', last and last[1] or '',
        found['last-generated-id']}
"""
# A digest is kept with the time by the server's clock.
ANNOUNCE = """
local node, body = ARGV[1], ARGV[2]
if body == '' then redis.call('HDEL', KEYS[1], node)
else
  local now = redis.call('TIME')
  redis.call('HSET', KEYS[1], node, string.format('%s.%06d ', now[1], now[2]) .. body)
end
redis.call('PUBLISH', KEYS[1], string.format('%d ', #node) .. node .. body)
"""
DIGESTS = "return {redis.call('TIME'), redis.call('HGETALL', KEYS[1])}"

_FOR_NOW = ("MISCONF ", "NOREPLICAS ", "UNBLOCKED ", "BUSY ")
"""What a server says first that cannot answer or write just now."""


class RedisOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a Redis connector, in the URL's query or as keywords.

    Args:
        timeout_s: For how long a connection that was lost may take to come back.
        ack_wait_s: After so long a group delivers again what a member has neither acknowledged nor extended.
        max_length: A stream is cut to so many entries, oldest first, whoever has not read them; 0 for never. What a
            node has not read then has to come from its peers, by way of their digests.
        tls_ca: File with the certificates to trust (`rediss://`), instead of the system's.
        tls_cert: File with our certificate, when the server asks for one.
        tls_key: Its key, if not in the same file.
    """

    timeout_s: float = 10.0
    ack_wait_s: float = 30.0
    max_length: int = 0
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""


class Address(NamedTuple):
    """Where a server is. `secrets` has what must not be shown."""

    host: str
    port: int
    database: int
    tls: bool
    secrets: dict[str, Any]

    def __str__(self) -> str:
        return f"redis{'s' if self.tls else ''}://{self.host}:{self.port}/{self.database}"

    def __repr__(self) -> str:
        return str(self)  # never the password: this stands in errors and logs


def read_url(url: str, options: Mapping[str, Any]) -> tuple[Address, RedisOptions]:
    """Where the server is, and the options of the URL and the keywords.

    Raises:
        ConfigError: one of them is wrong, or a certificate cannot be read.
    """
    try:
        parts = urlsplit(url)
        port, database = parts.port or 6379, int(parts.path.strip("/") or 0)
    except ValueError:
        raise ConfigError(
            f"{_shown(url)} has a port or a database that is no number", hint="redis://host:6379/0"
        ) from None
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or not 0 <= database < 1_000_000:
        raise ConfigError(f"{_shown(url)} is not the URL of a Redis server", hint="redis://127.0.0.1:6379")
    try:
        given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        read = msgspec.convert({**given, **options}, RedisOptions, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(
            f"{_shown(url)}: {error}", hint=f"options are {', '.join(RedisOptions.__struct_fields__)}"
        ) from error
    waits = 0 < read.timeout_s < math.inf and 0 < read.ack_wait_s <= ACK_WAIT_S_MAX
    if not waits or read.max_length < 0:
        raise ConfigError(
            f"{_shown(url)}: timeout_s={read.timeout_s:g}, ack_wait_s={read.ack_wait_s:g}, "
            f"max_length={read.max_length}",
            hint=f"timeout_s and ack_wait_s are above 0, ack_wait_s up to {ACK_WAIT_S_MAX:g}; max_length is 0 or more",
        )
    secrets = {
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
    }
    address = Address(parts.hostname, port, database, parts.scheme == "rediss", secrets)
    if address.tls:
        _check_certificates(read, address)
    return address, read


def _check_certificates(options: RedisOptions, address: Address) -> None:
    """Read them now, so that a file that is not there is an error where the connector is made."""
    try:
        context = ssl.create_default_context(cafile=options.tls_ca or None)
        if options.tls_cert:
            context.load_cert_chain(options.tls_cert, options.tls_key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the certificates for {address} cannot be read: {error}") from error


def translate(raised: Exception, address: Address) -> Exception:
    """A driver's error as one of ours."""
    from redis import exceptions as driver

    said = str(raised)
    if isinstance(raised, driver.AuthenticationError | driver.NoPermissionError):
        return Unauthorised(f"{address} refuses us: {said}")
    if isinstance(raised, driver.ConnectionError | driver.TimeoutError | OSError):
        return Unavailable(f"no connection to {address}: {said}")
    if isinstance(raised, driver.AskError):  # MOVED is one of these
        return Rejected(
            f"{address} is one of several nodes of a Redis Cluster, and sends us to another: {said}",
            hint="name a server that has every slot: a cluster of one node, or a server without a cluster",
        )
    if isinstance(raised, driver.ClusterDownError):
        return Unavailable(
            f"{address} is in a Redis Cluster that does not work just now: {said}",
            hint="look at CLUSTER INFO; a node without slots has to be given all of them",
        )
    for_now = driver.ReadOnlyError | driver.OutOfMemoryError | driver.TryAgainError
    if isinstance(raised, for_now) or said.startswith(_FOR_NOW):
        return Unavailable(f"{address} does not work just now: {said}", hint="look at the server; nothing is lost here")
    if isinstance(raised, driver.RedisError):
        return Rejected(f"{address} refused: {said}")
    return raised


# --- names and messages ----------------------------------------------------------------------------------------------


OURS = "sk:{"
"""What the key of each topic's stream begins with."""


def stream_of(topic: str) -> str:
    """The key of a topic's stream; what stands in the braces decides the slot of a cluster."""
    return f"{OURS}{quote(topic, safe='')}}}"


def position(id: bytes, topic: str) -> int:
    time, _, number = id.partition(b"-")
    if time != b"0" or int(number) > _POSITION_MAX:
        raise not_ours(stream_of(topic))
    return int(number)


def not_ours(stream: str) -> Rejected:
    return Rejected(
        f"{stream} has entries of another writer, under ids that are not ours",
        hint="give the topic another name, or rename that stream",
    )


def entry(message: Message) -> tuple[list[bytes], int]:
    """The fields of an entry, in pairs, and how many bytes its headers and its body have.

    Raises:
        Rejected: an id or a header that not every broker could carry.
        TooLarge: more than `BYTES_MAX`.
    """
    headers = message.headers
    known = tuple(headers)
    names = _carriers.get(known)
    values = "".join(headers.values())
    told = message.id + values
    good = told.isascii() and told.isprintable() and " " not in told and len(message.id) <= ID_CHARS_MAX
    if names is None or not good:
        names = _check(message)  # one by one
        if len(_carriers) < NAMES_KNOWN:
            _carriers[known] = names
    size = len(message.body) + len(values) + sum(map(len, names))
    if size > BYTES_MAX:
        raise TooLarge(f"message {message.id!r} has {size} bytes; a Redis stream of ours takes {BYTES_MAX}")
    fields = [ID, message.id.encode(), KEY, message.partition_key.encode()]
    for name, value in zip(names, headers.values(), strict=True):
        fields += (name, value.encode())
    fields += (BODY, message.body)
    return fields, size


def _check(message: Message) -> list[bytes]:
    """The names of the headers, if all of it can be carried."""
    if len(message.id) > ID_CHARS_MAX or not _carried(message.id):
        raise Rejected(f"message id {message.id[:ID_CHARS_MAX]!r} is too long or not printable ASCII")
    for name, value in message.headers.items():
        if not _carried(value) or not name or not _carried(name) or name in _RESERVED:
            raise Rejected(
                f"message {message.id!r} has a header {name!r} that cannot be carried",
                hint="printable ASCII without blanks around it",
            )
    return [name.encode() for name in message.headers]


def _carried(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip()


def message(fields: dict[bytes, bytes]) -> Message:
    """What an entry says. Its fields are used up."""
    body = fields.pop(BODY, b"")
    try:
        headers = {_names[name]: value.decode() for name, value in fields.items()}
    except (KeyError, UnicodeDecodeError):
        return _unknown(fields, body)
    return Message(headers.pop(_ID, ""), headers.pop(_KEY, ""), headers, body)


def _unknown(fields: Mapping[bytes, bytes], body: bytes) -> Message:
    """Of an entry with names that we have not met, or one that somebody else wrote, with whatever bytes in it."""
    if len(_names) < NAMES_KNOWN:
        _names.update((name, name.decode(errors="replace")) for name in fields)
    headers = {
        name.decode(errors="replace"): value.decode(errors="replace")
        for name, value in fields.items()
        if name not in (ID, KEY)
    }
    return Message(
        fields.get(ID, b"").decode(errors="replace"),
        fields.get(KEY, b"").decode(errors="replace"),
        headers,
        body,
    )


NAMES_KNOWN = 1_000
_names: dict[bytes, str] = {}
"""Of headers: they are the same ones in message after message."""
_carriers: dict[tuple[str, ...], list[bytes]] = {}
"""The header names of messages that passed."""


def announced(data: bytes) -> Announced | None:
    """A digest as it was published; None if somebody else published there."""
    try:
        length, _, rest = data.partition(b" ")
        size = int(length)
        return Announced(rest[:size].decode(), rest[size:], 0.0)
    except ValueError:
        return None


def kept(node: bytes, value: bytes, now: float) -> Announced | None:
    """A digest as it is kept; None if somebody else put something there."""
    try:
        since, _, body = value.partition(b" ")
        age_s = now - float(since)
        return Announced(node.decode(), body, max(0.0, age_s)) if math.isfinite(age_s) else None
    except ValueError:
        return None


def _shown(url: str) -> str:
    """A URL without its password."""
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://…@{tail}" if at else url


def require_redis() -> None:
    try:
        import redis.asyncio  # noqa: F401 - only whether it is there
    except ImportError as missing:
        raise MissingDependency(
            "the Redis connector needs redis-py", hint="pip install 'synckit-streams[redis]'"
        ) from missing
