"""What the Kafka connector says to the brokers: where they are, its records, its topics' names, and errors as ours."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import re
import ssl
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote
from zlib import crc32

import msgspec

from synckit_streams.errors import (
    ConfigError,
    MissingDependency,
    Rejected,
    TooLarge,
    Unauthorised,
    Unavailable,
)
from synckit_streams.model.cloudevent import KAFKA_PREFIX, PREFIX
from synckit_streams.model.cloudevent.attributes import from_header_value, to_header_value
from synckit_streams.ports.connector import ID_CHARS_MAX, Message

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord
    from aiokafka.admin import AIOKafkaAdminClient

BYTES_MAX = 4 * 1024 * 1024
"""Of a message. Our topics are made for it; Kafka's own default is 1 MiB."""
FRAME_BYTES = BYTES_MAX + 64 * 1024
"""With what Kafka adds to it."""
ID_HEADER = "sk-id"
CONTENT_TYPE = "content-type"
TYPE_ATTRIBUTE = f"{PREFIX}datacontenttype"
KEY_CHARS_MAX = 200
TAP_NAME_CHARS = 100
"""Of a tapped topic's name in an id, which must not get too long; a longer one by its hash."""

HANDOVER_S_MAX = 600.0
IDLE_S_MAX = 1_000_000.0

_MEMBER = re.compile(r"[A-Za-z0-9_-]{1,200}")
_UNEVEN = re.compile(r'[ %"]')
"""What is written in another way in a CloudEvent, or must not stand around a value."""
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")
_PORT = 9092
_SILENT = logging.NullHandler()
METADATA_PAUSE_S = 0.1
WHY_S = 2.0
"""For an attempt to find out what is wrong with our login."""

NEXT, LAST = "next", "last"
"""What a group's note at its position is about: the message that comes next, or the one that was last."""

Record = tuple[bytes, bytes | None, list[tuple[str, bytes]]]


class KafkaOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a Kafka connector, in the URL's query or as keywords.

    Args:
        partitions: Of the topics that we make, and have to be there. The same on every node.
        replicas: Brokers that hold each of them.
        min_insync: Of these, how many have to have a message before it counts as sent.
        retention_ms: For how long topics that we make keep a message; -1 is for ever.
        timeout_s: Longest time without progress, and for a connection to come back.
        tls: Encrypt, and check the broker's certificate.
        tls_ca: File with the certificates to trust, instead of the system's.
        tls_cert: File with our certificate, when the broker asks for one.
        tls_key: Its key, if not in the same file.
        sasl: How to authenticate the user of the URL.
        ack_wait_s: After so long a group delivers again what was not acknowledged.
        member: This worker's name in its groups, by which a restart within `session_s` finds its partitions again.
        session_s: After so long without a sign of life a member of a group counts as dead.
        heartbeat_s: How often it gives one, and is told that somebody came or went.
        idle_s: After so long without taking, acknowledging or extending anything, a member's caller counts as dead.
        handover_s: How long a member may still work on what it has when its partitions are to go to others.
    """

    partitions: int = 1
    replicas: int = 1
    min_insync: int = 1
    retention_ms: int = -1
    timeout_s: float = 10.0
    tls: bool = False
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    ack_wait_s: float = 30.0
    member: str = ""
    session_s: float = 20.0
    heartbeat_s: float = 1.0
    idle_s: float = 300.0
    handover_s: float = 5.0


class Address(NamedTuple):
    """Where the brokers are. `secrets` has what must not be shown."""

    servers: tuple[str, ...]
    secrets: dict[str, Any]

    def client(self) -> dict[str, Any]:
        """What every client of aiokafka is told."""
        return {"bootstrap_servers": list(self.servers), **self.secrets}

    def __str__(self) -> str:
        return f"kafka://{','.join(self.servers)}"

    def __repr__(self) -> str:
        return str(self)  # never the password: this stands in errors and logs


def read_url(url: str, options: Mapping[str, Any]) -> tuple[Address, KafkaOptions]:
    """Where the brokers are, and the options of the URL and the keywords.

    Raises:
        ConfigError: one of them is wrong, or a certificate cannot be read.
    """
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    login, at, hosts = rest.rstrip("/").rpartition("@")
    # Whatever stands before the last @ may be part of a password, also one with a sign in it that ends a login.
    shown = f"{scheme}://…@{url.rpartition('@')[2]}" if "@" in url else f"{scheme}://{hosts}"
    servers: list[str] = []
    for host in hosts.split(","):
        name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        name, port = (name, port) if colon else (host, str(_PORT))
        if not name or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
            raise ConfigError(f"{shown} does not name Kafka brokers", hint="kafka://127.0.0.1:9092,127.0.0.2:9092")
        servers.append(f"{name}:{port}")
    try:
        given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        read = msgspec.convert({**given, **options}, KafkaOptions, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        known = ", ".join(KafkaOptions.__struct_fields__)
        raise ConfigError(f"{shown}: {error}", hint=f"options are {known}") from error
    if not 0 < read.timeout_s < math.inf or read.retention_ms < -1:
        raise ConfigError(
            f"{shown}: timeout_s={read.timeout_s:g}, retention_ms={read.retention_ms}",
            hint="timeout_s is above 0; retention_ms is a time, or -1 for ever",
        )
    if not 0 < read.partitions <= 1000 or read.replicas < 1 or not 0 < read.min_insync <= read.replicas:
        raise ConfigError(
            f"{shown}: {read.partitions} partitions, {read.replicas} replicas of which {read.min_insync} in sync",
            hint="1 to 1000 partitions; min_insync is at most replicas",
        )
    _check_group_options(read, shown)
    secrets: dict[str, Any] = {}
    if read.tls:
        secrets["ssl_context"] = _tls(read, shown)
    if at:
        user, _, password = login.partition(":")
        secrets |= {
            "sasl_mechanism": read.sasl,
            "sasl_plain_username": unquote(user),
            "sasl_plain_password": unquote(password),
        }
    if secrets:
        secrets["security_protocol"] = f"{'SASL_' if at else ''}{'SSL' if read.tls else 'PLAINTEXT'}"
    return Address(tuple(servers), secrets), read


def _check_group_options(read: KafkaOptions, shown: str) -> None:
    if not 0 < read.ack_wait_s <= IDLE_S_MAX or not 0 <= read.handover_s <= HANDOVER_S_MAX:
        raise ConfigError(
            f"{shown}: ack_wait_s={read.ack_wait_s:g}, handover_s={read.handover_s:g}",
            hint=f"ack_wait_s is above 0, and at most {IDLE_S_MAX:g}; handover_s is from 0 to {HANDOVER_S_MAX:g}",
        )
    if not 0 < read.idle_s <= IDLE_S_MAX:
        raise ConfigError(f"{shown}: idle_s={read.idle_s:g}", hint=f"above 0, and at most {IDLE_S_MAX:g}")
    if not 0 < read.heartbeat_s <= read.session_s / 2 or not read.session_s <= IDLE_S_MAX:
        raise ConfigError(
            f"{shown}: session_s={read.session_s:g}, heartbeat_s={read.heartbeat_s:g}",
            hint="a session is at least two heartbeats long; brokers allow 6 s to 30 minutes",
        )
    if read.member and not _MEMBER.fullmatch(read.member):
        raise ConfigError(f"{shown}: member={read.member!r}", hint="1 to 200 of the characters A-Z a-z 0-9 _ -")


def _tls(options: KafkaOptions, shown: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.tls_ca or None)
        if options.tls_cert:
            context.load_cert_chain(options.tls_cert, options.tls_key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the certificates for {shown} cannot be read: {error}") from error
    return context


def translate(raised: Exception, address: Address) -> Exception:
    """A driver's error as one of ours."""
    from aiokafka import errors as driver

    said = str(raised) or type(raised).__name__
    refused = (
        driver.AuthenticationFailedError,
        driver.SaslAuthenticationFailed,
        driver.TopicAuthorizationFailedError,
        driver.ClusterAuthorizationFailedError,
        driver.GroupAuthorizationFailedError,
        driver.UnsupportedSaslMechanismError,
        driver.IllegalSaslStateError,
    )
    if isinstance(raised, refused):
        return Unauthorised(f"{address} refuses us: {said}")
    if isinstance(raised, driver.MessageSizeTooLargeError | driver.RecordTooLargeError):
        return TooLarge(f"{address} does not take a message of this size: {said}", hint="raise max.message.bytes")
    gone = (
        driver.KafkaConnectionError,
        driver.KafkaTimeoutError,
        driver.KafkaUnavailableError,
        driver.NodeNotReadyError,
        driver.ConsumerStoppedError,
        driver.OffsetOutOfRangeError,
        driver.NoOffsetForPartitionError,
    )
    if isinstance(raised, gone) or (isinstance(raised, driver.KafkaError) and raised.retriable):
        return Unavailable(f"{address} does not answer: {said}")
    if isinstance(raised, driver.KafkaError):
        # Also an idempotent producer that lost count, after which only a new one goes on.
        if "Sequence" in type(raised).__name__ or "Producer" in type(raised).__name__:
            return Unavailable(f"{address} lost count of what was sent: {said}")
        return Rejected(f"{address} refused: {said}")
    if isinstance(raised, OSError | TimeoutError):
        return Unavailable(f"no connection to {address}: {said}")
    return raised


# --- names and records -----------------------------------------------------------------------------------------------


def log_of(topic: str) -> str:
    """The Kafka topic of a topic."""
    return f"sk-{topic}" if _SAFE_NAME.fullmatch(topic) else f"skh-{_hash(topic)}"


def digests_of(topic: str) -> str:
    """The Kafka topic with the digests of a topic."""
    return f"skd-{topic}" if _SAFE_NAME.fullmatch(topic) else f"skdh-{_hash(topic)}"


def group_of(topic: str, group: str) -> str:
    """The Kafka group of a group. Each topic has its own: who reads one is not rebalanced with who reads another.

    The separators are in no topic's name, so two pairs never share a group.
    """
    return f"{log_of(topic)}.{group}" if _SAFE_NAME.fullmatch(group) else f"{log_of(topic)}~{_hash(group)}"


def tap_of(source: str, group: str) -> str:
    """The Kafka group of a group that taps somebody's topic, which has no slash in its name."""
    return f"sk-tap/{source}/{group}" if _SAFE_NAME.fullmatch(group) else f"sk-tap/{source}~{_hash(group)}"


def _hash(text: str) -> str:
    return base64.b32encode(sha256(text.encode()).digest())[:26].decode()


def checked(message: Message) -> Record:
    """Key, value and headers of a message.

    Raises:
        Rejected: an id or a header that not every broker could carry.
        TooLarge: more than `BYTES_MAX`.
    """
    values = message.headers.values()
    told = message.id + "".join(values)
    # Nearly all have the same few headers, and nothing in them that would be written in another way: one look at all.
    if told.isascii() and told.isprintable() and not _UNEVEN.search(told) and len(message.id) <= ID_CHARS_MAX:
        try:
            names, names_bytes = _names_of(tuple(message.headers))
        except Rejected:
            _one_by_one(message)
            raise
        headers = [(ID_HEADER, message.id.encode())]
        headers += zip(names, [value.encode() for value in values], strict=True)
        size = len(message.body) + len(told) - len(message.id) + names_bytes
    else:
        headers, size = _one_by_one(message)
    if size > BYTES_MAX:
        raise TooLarge(f"message {message.id!r} has {size} bytes; a Kafka topic of ours takes {BYTES_MAX}")
    key = message.partition_key
    # The key decides the partition; a long one by its hash, since Kafka would keep it with every record.
    return (key if len(key) <= KEY_CHARS_MAX else _hash(key)).encode(), message.body, headers


@lru_cache(maxsize=1000)
def _names_of(names: tuple[str, ...]) -> tuple[list[str], int]:
    """Kafka's names of headers whose values have nothing special in them, and how many bytes ours take."""
    empty = Message("", "", dict.fromkeys(names, ""), b"")
    headers, size = _one_by_one(empty)
    return [name for name, _ in headers[1:]], size


def _one_by_one(message: Message) -> tuple[list[tuple[str, bytes]], int]:
    if len(message.id) > ID_CHARS_MAX or not _carried(message.id):
        raise Rejected(f"message id {message.id[:ID_CHARS_MAX]!r} is too long or not printable ASCII")
    headers = [(ID_HEADER, message.id.encode())]
    size = len(message.body)
    for name, value in message.headers.items():
        if not _carried(value) or not name or not _carried(name) or name == ID_HEADER:
            raise Rejected(
                f"message {message.id!r} has a header {name!r} that cannot be carried",
                hint="printable ASCII without blanks around it",
            )
        headers.append(_as_kafka(message, name, value))
        size += len(name) + len(value)
    return headers, size


@lru_cache(maxsize=10_000)
def partition_of(key: bytes, partitions: int) -> int:
    """By murmur2, as Kafka's own producer: whoever else writes there keeps the order of an aggregate."""
    from aiokafka.partitioner import murmur2

    hashed: int = murmur2(key)
    return (hashed & 0x7FFFFFFF) % partitions


def _as_kafka(message: Message, name: str, value: str) -> tuple[str, bytes]:
    """A CloudEvents attribute as the Kafka binding wants it: `ce_`, in UTF-8; the media type under its usual name."""
    if not name.startswith(PREFIX) or f"{PREFIX}specversion" not in message.headers:
        return name, value.encode()
    try:
        text = from_header_value(value) if "%" in value else value
    except ValueError:
        text = ""
    if to_header_value(text) != value:
        raise Rejected(f"message {message.id!r} has a header {name!r} that is not percent-encoded as it should be")
    if name == TYPE_ATTRIBUTE:
        return CONTENT_TYPE, text.encode()
    return f"{KAFKA_PREFIX}{name.removeprefix(PREFIX)}", text.encode()


def _carried(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip()


def message_of(record: ConsumerRecord) -> Message:
    """Also of a record that somebody else wrote, with whatever bytes in it."""
    try:
        values = [value.decode() for _, value in record.headers]
        key = record.key.decode()
    except (AttributeError, UnicodeDecodeError):  # not there, or not text
        return _with_care(record)
    told = "".join(values)
    if not (told.isascii() and told.isprintable()) or _UNEVEN.search(told):
        return _with_care(record)
    names = _our_names_of(tuple([name for name, _ in record.headers]))
    if names is None:
        return _with_care(record)
    return Message(values[0], key, dict(zip(names, values[1:], strict=True)), record.value or b"")


@lru_cache(maxsize=1000)
def _our_names_of(names: tuple[str, ...]) -> list[str] | None:
    """Our names of a record's headers, the id left out; None if it is not one as we write them."""
    if not names or names[0] != ID_HEADER or len(set(names)) < len(names):
        return None
    if f"{KAFKA_PREFIX}specversion" not in names:
        return list(names[1:])
    ours = [
        TYPE_ATTRIBUTE
        if name == CONTENT_TYPE
        else f"{PREFIX}{name.removeprefix(KAFKA_PREFIX)}"
        if name.startswith(KAFKA_PREFIX)
        else name
        for name in names[1:]
    ]
    return ours if len(set(ours)) == len(ours) else None


def _with_care(record: ConsumerRecord) -> Message:
    texts = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
    id = texts.pop(ID_HEADER, "")
    if f"{KAFKA_PREFIX}specversion" in texts:
        headers = {
            f"{PREFIX}{name.removeprefix(KAFKA_PREFIX)}": to_header_value(value)
            for name, value in texts.items()
            if name.startswith(KAFKA_PREFIX)
        }
        headers |= {
            TYPE_ATTRIBUTE if name == CONTENT_TYPE else name: value
            for name, value in texts.items()
            if not name.startswith(KAFKA_PREFIX)
        }
    else:
        headers = texts
    return Message(id, (record.key or b"").decode(errors="replace"), headers, record.value or b"")


def tapped(record: ConsumerRecord, cluster: str) -> Message:
    """A record of somebody else's, known by where it lies, and when it came: a topic may be made anew."""
    topic = record.topic if len(record.topic) <= TAP_NAME_CHARS else _hash(record.topic)
    id = f"{cluster}/{topic}/{record.partition}/{record.offset}@{record.timestamp}"
    headers = {name: text for name, value in record.headers if (text := _text(value)) is not None}
    return Message(id, _text(record.key) or "", headers, record.value or b"")


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def mark_of(timestamp: int, body: bytes) -> str:
    """By which a record is known again, at the place where it lies."""
    return f"{timestamp}.{crc32(body):08x}"


async def say_why(address: Address) -> None:
    """Raise what is wrong with our login, of which aiokafka only says that it could not connect."""
    from aiokafka.conn import create_conn

    for server in address.servers if address.secrets else ():
        host, _, port = server.rpartition(":")
        connection = await create_conn(host, int(port), request_timeout_ms=int(WHY_S * 1000), **address.secrets)
        connection.close()


async def described(admin: AIOKafkaAdminClient, name: str) -> dict[str, Any]:
    """What a broker knows of a topic. `describe_topics` would make one, as the broker makes them by itself."""
    from aiokafka.protocol.metadata import MetadataRequest

    answer = await admin._send_request(MetadataRequest([name], allow_auto_topic_creation=False))
    found: dict[str, Any] = answer.to_object()["topics"][0]
    return found


def paced(client: Any) -> None:
    """Give a client of aiokafka a pause after each attempt to learn about the cluster that failed.

    While the brokers are away, a client whose topics have changed asks again at once, thousands of times a second.
    """
    inner = getattr(client, "client", None) or client._client
    update = inner._metadata_update

    async def slowly(*given: Any) -> bool:
        updated: bool = await update(*given)
        if not updated:
            await asyncio.sleep(METADATA_PAUSE_S)
        return updated

    inner._metadata_update = slowly


def require_kafka() -> None:
    """Raises MissingDependency without aiokafka."""
    try:
        import aiokafka  # noqa: F401 - only whether it is there
    except ImportError as missing:
        raise MissingDependency(
            "the Kafka connector needs aiokafka", hint="pip install 'synckit-streams[kafka]'"
        ) from missing
    # It warns of each attempt to reconnect. Where nobody configured logging, that would all go to standard error.
    logging.getLogger("aiokafka").addHandler(_SILENT)
