"""The URL of a SQLite store: a path, and what one may say about the store."""

from __future__ import annotations

from pathlib import Path

from synckit_streams.errors import ConfigError
from synckit_streams.stores.file_url import parse_path

_HINT = "write sqlite:///till.db, or sqlite:////var/lib/till.db for an absolute path"


def parse_url(url: str) -> tuple[Path, dict[str, str]]:
    """The path in a URL, and its options.

    Raises:
        ConfigError: it names no file, or has an option that is unknown.
    """
    path, options = parse_path(url, {"durability": "full"}, hint=_HINT)
    if path.is_dir():
        raise ConfigError(f"{url!r} names a folder", hint=_HINT)
    return path, options
