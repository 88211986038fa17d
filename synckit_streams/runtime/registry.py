"""URLs to classes: connectors and stores are found by their scheme, ours and third parties' alike."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import urlsplit

from synckit_streams.errors import ConfigError, ConnectorNotFound, StoreNotFound
from synckit_streams.ports.connector import Connector
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.settings import CONNECTOR, STORE, check_part

# Connectors named in the mission, and not there yet: the error says so instead of guessing at a spelling mistake.
_COMING = {"http", "https"}


def _scheme(url: str, what: str) -> str:
    scheme, colon, _ = url.partition(":")
    if not colon or not scheme:
        raise ConfigError(
            f"{url!r} is not the URL of a {what}", hint=f"it begins with a scheme, as in {_example(what)}"
        )
    try:
        urlsplit(url)
        url.encode()
    except ValueError as error:
        # Not the URL itself: there may be a password in it.
        raise ConfigError(f"the URL of the {what} cannot be read: {error}", hint=f"write {_example(what)}") from None
    return scheme.lower()


def _example(what: str) -> str:
    return "nats://127.0.0.1:4222" if what == "connector" else "sqlite:///node.db"


def _find(group: str, scheme: str) -> tuple[Callable[..., Any] | None, list[str]]:
    found = entry_points(group=group)
    known = sorted({each.name for each in found})
    for each in found:
        if each.name == scheme:
            loaded: Callable[..., Any] = each.load()
            return loaded, known
    return None, known


def connector_for(url: str | Connector, **options: Any) -> Connector:
    """A connector by URL; one that is made already is given back.

    Raises:
        ConnectorNotFound: no connector is registered for the scheme.
        MissingDependency: its client library is not installed.
        ConfigError: it is no URL.
    """
    if not isinstance(url, str):
        check_part("a connector", url, CONNECTOR)
        return url
    scheme = _scheme(url, "connector")
    cls, known = _find("synckit_streams.connectors", scheme)
    if cls is None:
        later = " (it comes with a later release)" if scheme in _COMING else ""
        raise ConnectorNotFound(f"no connector for {scheme}://{later}", hint=f"known: {', '.join(known)}")
    connector: Connector = cls(url, **options)
    return connector


def store_for(url: str | EventStore, **options: Any) -> EventStore:
    """A store by URL; one that is made already is given back.

    Raises:
        StoreNotFound: no store is registered for the scheme.
        StoreInUse: another node has it.
        ConfigError: it is no URL, or an option is wrong.
    """
    if not isinstance(url, str):
        check_part("a store", url, STORE)
        return url
    scheme = _scheme(url, "store")
    cls, known = _find("synckit_streams.stores", scheme)
    if cls is None:
        raise StoreNotFound(f"no store for {scheme}:", hint=f"known: {', '.join(known)}")
    store: EventStore = cls(url, **options)
    return store
