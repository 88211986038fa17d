"""The URL of a SQLite store: a path, and what one may say about the store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from synckit_streams.errors import ConfigError


def parse_url(url: str) -> tuple[Path, dict[str, str]]:
    """The path in a URL, and its options.

    Raises:
        ConfigError: it names no file, or has an option that is unknown.
    """
    hint = "write sqlite:///till.db, or sqlite:////var/lib/till.db for an absolute path"
    try:
        parts = urlsplit(url)
        path = unquote(parts.path[1:], errors="strict")
        path.encode()
    except ValueError as error:
        raise ConfigError(f"{url!r} is not the URL of a file: {error}", hint=hint) from None
    if parts.netloc or not path.strip("/") or "\0" in path:
        raise ConfigError(f"{url!r} names no file", hint=hint)
    if parts.fragment or url.endswith("#"):
        raise ConfigError(f"{url!r} has a '#'", hint="write %23 for a '#' in the path, %3F for a '?', %25 for a '%'")
    options = {"durability": "full"}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in options:
            raise ConfigError(
                f"unknown option {name!r} in {url!r}", hint="durability is known; write %3F for a '?' in the path"
            )
        options[name] = value
    found = Path(path)
    try:
        folder = found.is_dir()
    except OSError as error:
        raise ConfigError(f"{url!r}: {error.strerror}", hint="choose another path") from None
    if folder:
        raise ConfigError(f"{url!r} names a folder", hint=hint)
    return found, options
