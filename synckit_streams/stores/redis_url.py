"""The URL of a Redis store: where the server is, and under which name the store lives there."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import msgspec

from synckit_streams.errors import ConfigError

NAME = "synckit"
NAME_BYTES_MAX = 200
CLAIM_S_MIN = 0.1
CLAIM_S_MAX = 3600.0
_HINT = "write redis://host:6379/0?name=till-7; options are name, durability, claim_s, tls_ca, tls_cert and tls_key"


class RedisStoreOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands in the query of a URL.

    Args:
        name: Of the store on the server.
        durability: "full": a server that could lose an append which it has acknowledged is refused. "server": it is
            taken, with a warning.
        claim_s: For how long a process may be silent, its machine asleep for instance, before another one can take its
            store. One that was killed keeps the next one waiting for so long.
        tls_ca: File with the certificates to trust (`rediss://`), instead of the system's.
        tls_cert: File with our certificate, when the server asks for one.
        tls_key: Its key, if not in the same file.
    """

    name: str = NAME
    durability: str = "server"
    claim_s: float = 10.0
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""


class Target(NamedTuple):
    """Where a store is. `secrets` has what must not be shown."""

    host: str
    port: int
    database: int
    tls: bool
    options: RedisStoreOptions
    secrets: Mapping[str, Any]

    def __str__(self) -> str:
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{self.host}:{self.port}/{self.database}, store {self.options.name}"

    def __repr__(self) -> str:
        return str(self)  # never the password: this stands in errors and logs

    def key(self, what: str = "") -> str:
        """The key of a part of the store; what stands in the braces decides the slot of a cluster, so it is one."""
        return f"sk-store:{{{quote(self.options.name, safe='')}}}{what and ':'}{what}"


def parse_url(url: str) -> Target:
    """What a URL says.

    Raises:
        ConfigError: it cannot be read, or a certificate cannot. The message does not repeat it: there may be a password
            in it.
    """
    try:
        parts = urlsplit(url)
        port, database = parts.port or 6379, int(parts.path.strip("/") or 0)
        given = dict(parse_qsl(parts.query, keep_blank_values=True, errors="strict", strict_parsing=bool(parts.query)))
        options = msgspec.convert(given, RedisStoreOptions, strict=False)
        name_bytes = len(options.name.encode())
    except (ValueError, msgspec.ValidationError) as error:
        raise ConfigError(f"the URL of the Redis store cannot be read: {error}", hint=_HINT) from None
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or parts.fragment or not 0 <= database < 1_000_000:
        raise ConfigError("that is not the URL of a store on a Redis server", hint=_HINT)
    if not 0 < name_bytes <= NAME_BYTES_MAX:
        raise ConfigError(
            f"{options.name!r:.80} cannot be the name of a store", hint=f"choose 1 to {NAME_BYTES_MAX} bytes"
        )
    check_promises(options.durability, options.claim_s)
    target = Target(
        parts.hostname,
        port,
        database,
        parts.scheme == "rediss",
        options,
        {
            "username": unquote(parts.username) if parts.username else None,
            "password": unquote(parts.password) if parts.password else None,
        },
    )
    if target.tls:
        _check_certificates(target)
    return target


def check_promises(durability: str, claim_s: float) -> None:
    """Raises ConfigError: there is no such durability, or a claim cannot hold for so long."""
    if durability not in ("server", "full"):
        raise ConfigError(f"durability={durability} is unknown", hint="write durability=server or durability=full")
    if not CLAIM_S_MIN <= claim_s <= CLAIM_S_MAX:
        raise ConfigError(f"claim_s={claim_s:g}", hint=f"choose {CLAIM_S_MIN:g} to {CLAIM_S_MAX:g} seconds")


def _check_certificates(target: Target) -> None:
    """Read them now, so that a file that is not there is an error where the store is made."""
    options = target.options
    try:
        context = ssl.create_default_context(cafile=options.tls_ca or None)
        if options.tls_cert:
            context.load_cert_chain(options.tls_cert, options.tls_key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the certificates for {target} cannot be read: {error}") from error
