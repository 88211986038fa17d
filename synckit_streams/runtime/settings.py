"""What a node is told, and what is refused before anything is opened.

A wrong setting is a `ConfigError` where the node is made: one that is found out at the first sync, or that silently
means something else (`lease_s` in milliseconds, `resolver=LastWriteWins` without the brackets), is found by a customer.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import msgspec

from synckit_streams.errors import ConfigError, FeatureUnsupported, SyncKitError
from synckit_streams.model.codec import check_node_id, check_topic
from synckit_streams.ports.connector import Connector
from synckit_streams.ports.projection import AnyProjection
from synckit_streams.runtime.envelope import PACKINGS

LIMITS_PAGE: Final = "see docs/reference/limits.md"
CONNECTOR_EXAMPLE: Final = 'for example connectors=["nats://127.0.0.1:4222"]'

RESOLVER: Final = ("name", "version", "resolve")
STORE: Final = ("open", "append", "log", "close")
CONNECTOR: Final = ("open", "bounds", "send", "receive", "close")
OBSERVER: Final = ("operation", "observe")
PROJECTION: Final = ("name", "topics", "types", "resolved", "apply", "reset")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a node is told, checked; see `SyncNode` for the meaning of each."""

    node: str
    topics: tuple[str, ...]
    resolver: tuple[str, int]
    outlets: tuple[str, ...] = ()
    packing: str = "event"
    push_only: bool = False
    pull_only: bool = False
    group: str = ""
    trim: bool = False
    bridge: bool = False
    held_max: int = 10_000
    clock_leap_ms_max: int = 600_000
    lease_s: float = 90.0
    batch_events: int = 1_000
    spread_ms: int = 1_000


def check_names(node_id: str, topics: Sequence[str]) -> None:
    """That a node's id and topics are allowed.

    Raises:
        ConfigError: one is not; the hint says where the limits stand.
    """
    check_list("topics", topics, '["orders"]')
    try:
        check_node_id(node_id)
        for topic in topics:
            check_topic(topic)
    except SyncKitError as error:
        raise ConfigError(error.message, hint=LIMITS_PAGE) from error


def check_list(name: str, given: Any, example: str) -> None:
    """That it is several, and not one: a text would be taken for its letters.

    Raises:
        ConfigError: it is text, or nothing that can be gone through.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Collection):
        raise ConfigError(f"{name} is a list, not {given!r:.80}", hint=f"write {name}={example}")


def check_known(whose: str, given: Iterable[str], known: Collection[str]) -> None:
    """That there are options of these names.

    Raises:
        ConfigError: there is none of one; the hint names the one that was meant, or all there are.
    """
    for name in given:
        if name not in known:
            meant = difflib.get_close_matches(name, known, n=1)
            there = f"did you mean {meant[0]}?" if meant else f"there are {', '.join(sorted(known))}"
            raise ConfigError(f"{whose} has no option {name!r:.80}", hint=there)


def check_part(what: str, part: Any, members: Sequence[str]) -> None:
    """That an object has what it is asked for, and is an object: a class has the same names.

    Raises:
        ConfigError: it lacks one, or is a class.
    """
    if isinstance(part, type):
        raise ConfigError(f"{part.__name__} is a class, not {what}", hint=f"write {part.__name__}(…)")
    lacking = [member for member in members if not hasattr(part, member)]
    if lacking:
        raise ConfigError(f"{part!r:.80} is not {what}", hint=f"it lacks {', '.join(lacking)}")


def check_directions(connectors: Sequence[Any], topics: Sequence[str], *, push_only: bool, pull_only: bool) -> None:
    """That a node can do what it is to do.

    Raises:
        ConfigError: the settings exclude each other.
    """
    if push_only and pull_only:
        raise ConfigError("push_only and pull_only exclude each other", hint="leave both out to do both")
    if connectors and not topics:
        raise ConfigError("a node with connectors needs topics", hint='for example topics=["orders"]')


def check_links(names: Sequence[str]) -> None:
    """That each connector has a name of its own, under which the store keeps what was read there.

    Raises:
        ConfigError: two have one.
    """
    if twice := next((each for each in names if names.count(each) > 1), ""):
        raise ConfigError(
            f"the connector {twice} is named twice", hint="a broker is known by its URL without user and options"
        )


def check_group(group: Any, connectors: Sequence[Connector]) -> None:
    """That it can be a group's name, and that every connector has groups.

    Raises:
        ConfigError: it is no text.
        FeatureUnsupported: a connector has no groups.
    """
    if not isinstance(group, str):
        raise ConfigError(f"group={group!r:.80} is not a name", hint='for example group="billing"')
    for connector in connectors if group else ():
        if not connector.features.groups:
            raise FeatureUnsupported(
                f"{type(connector).__name__} has no groups", hint="leave group out, and let every node read everything"
            )


def check_bridge(connectors: Sequence[Any], group: str, bridge: Any) -> None:
    """That there is something to be bridged, and that it is read whole.

    Raises:
        ConfigError: it is not True or False, there are no two connectors, or the node reads only a group's share.
    """
    if not isinstance(bridge, bool):
        raise ConfigError(f"bridge={bridge!r:.80} is neither True nor False")
    if bridge and len(connectors) < 2:
        raise ConfigError(
            "a bridge needs two connectors or more", hint='connectors=["nats://127.0.0.1:4222", "redis://127.0.0.1"]'
        )
    if bridge and group:
        raise ConfigError("a bridge reads every log whole, and not a group's share", hint="leave group or bridge out")


def check_trim(trim: Any, connectors: Sequence[Connector]) -> None:
    """That some connector can, where it is asked for.

    Raises:
        ConfigError: it is neither True nor False.
        FeatureUnsupported: no connector can.
    """
    if not isinstance(trim, bool):
        raise ConfigError(f"trim={trim!r:.80} is neither True nor False")
    if trim and not any(connector.features.trims for connector in connectors):
        raise FeatureUnsupported(
            "no connector of this node trims a log by what everybody has",
            hint="leave trim out, and let the broker's own retention do it",
        )


def check_packing(packing: str) -> None:
    """That it is one that we know.

    Raises:
        ConfigError: it is not.
    """
    if packing not in PACKINGS:
        raise ConfigError(f"packing {packing!r:.80} is unknown", hint=f"choose one of {', '.join(PACKINGS)}")


def check_count(name: str, number: Any, *, least: int) -> None:
    """That it is a whole number, and not too small.

    Raises:
        ConfigError: it is not.
    """
    if type(number) is not int or number < least:
        raise ConfigError(f"{name}={number!r:.80} is not a whole number from {least} on")


def check_seconds(name: str, seconds: Any) -> None:
    """That it is a time that ends, and has begun.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ConfigError(f"{name}={seconds!r:.80} is not a number of seconds above 0")


def check_projections(projections: Sequence[AnyProjection]) -> None:
    """That every projection is one, with a name of its own.

    Raises:
        ConfigError: one lacks something, two have the same name, or one has none.
    """
    check_list("projections", projections, "[Totals()]")
    for projection in projections:
        check_part("a projection", projection, PROJECTION)
        check_list(f"{projection.name!r:.80}: topics", projection.topics, '("orders",)')
        check_list(f"{projection.name!r:.80}: types", projection.types, '("order.placed",)')
    names = [projection.name for projection in projections]
    twice = sorted({name for name in names if names.count(name) > 1 or not name})
    if twice:
        raise ConfigError(f"projections share a name or have none: {', '.join(map(repr, twice))}")
