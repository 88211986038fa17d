"""The URL of a PostgreSQL store: where the server is, and in which schema of the database the store lives."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from synckit_streams.errors import ConfigError

SCHEMA = "synckit"
SCHEMA_BYTES_MAX = 63
"""PostgreSQL cuts a longer name off without an error."""
_HINT = "write postgresql://user:password@host:5432/database, with ?schema=name if one likes"


class Target(NamedTuple):
    """What a URL says.

    Args:
        dsn: For the driver: the URL without what is ours.
        name: For messages: without user and password.
        schema: Of the database, where the store's tables are.
    """

    dsn: str
    name: str
    schema: str


def parse_url(url: str) -> Target:
    """What a URL says.

    Raises:
        ConfigError: it cannot be read. The message does not repeat it: there may be a password in it.
    """
    try:
        parts = urlsplit(url)
        port = parts.port if "," not in parts.netloc else None
        options = parse_qsl(parts.query, keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise ConfigError(f"the URL of the PostgreSQL store cannot be read: {error}", hint=_HINT) from None
    if parts.scheme not in ("postgresql", "postgres") or parts.fragment:
        raise ConfigError("that is not the URL of a PostgreSQL database", hint=_HINT)
    schema = SCHEMA
    rest: list[tuple[str, str]] = []
    for name, value in options:
        if name == "schema":
            schema = value
        else:
            rest.append((name, value))
    check_schema(schema)
    dsn = urlunsplit(("postgresql", parts.netloc, parts.path, urlencode(rest), ""))
    host = parts.netloc.rpartition("@")[2] if port is None else f"{parts.hostname}:{port}"
    return Target(dsn, f"postgresql://{host}{parts.path}, schema {schema}", schema)


def check_schema(schema: str) -> None:
    """Raises ConfigError: PostgreSQL would not take the name, or cut it off."""
    try:
        size = len(schema.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= SCHEMA_BYTES_MAX or "\0" in schema or schema.startswith("pg_"):
        raise ConfigError(
            f"{schema!r:.80} cannot be the name of a schema",
            hint=f"choose 1 to {SCHEMA_BYTES_MAX} bytes that do not begin with pg_",
        )
