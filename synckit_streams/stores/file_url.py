"""The URL of a store that is a file or a folder: a path, and what one may say about the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from synckit_streams.errors import ConfigError


def parse_path(url: str, options: Mapping[str, str], *, hint: str) -> tuple[Path, dict[str, str]]:
    """The path in a URL, and its options.

    Args:
        url: `scheme:///path`.
        options: Those that are known, with their defaults.
        hint: What to write instead of a wrong one.

    Raises:
        ConfigError: it names no path, or has an option that is unknown.
    """
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
    given = dict(options)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in given:
            raise ConfigError(
                f"unknown option {name!r} in {url!r}",
                hint=f"{' and '.join(options)} is known; write %3F for a '?' in the path",
            )
        given[name] = value
    found = Path(path)
    try:
        found.is_dir()
    except OSError as error:
        raise ConfigError(f"{url!r}: {error.strerror}", hint="choose another path") from None
    return found, given
