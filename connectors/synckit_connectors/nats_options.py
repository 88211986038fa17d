"""The URL and the options of a NATS connector."""

from __future__ import annotations

import math
import ssl
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote

import msgspec

from synckit_streams.errors import ConfigError

HEARTBEAT_S_MAX = 15.0
ACK_WAIT_S_MAX = 86_400.0
_CREDS_MARKS = (b"BEGIN NATS USER JWT", b"BEGIN USER NKEY SEED")


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
        ack_wait_s: After so long a group that is new to the server delivers again what was not acknowledged.
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
    ack_wait_s: float = 30.0
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
    """Where the servers are, and who we are there."""

    servers: list[str]
    tls: bool
    user: str | None
    password: str | None

    def __str__(self) -> str:
        # Never the user's name or password: this stands in errors and logs.
        return ",".join(self.servers)


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
    if not 0.001 <= options.ack_wait_s <= ACK_WAIT_S_MAX:
        raise ConfigError(f"ack_wait_s={options.ack_wait_s:g}: from 0.001 s to a day are possible")
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
