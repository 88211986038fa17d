"""What a Redis server says of itself, and whether a store can live there: how safe is what it has acknowledged?"""

from __future__ import annotations

from typing import NamedTuple

from synckit_streams.errors import FeatureUnsupported, StoreError, StoreUnavailable
from synckit_streams.stores.redis_link import Link, require_redis

VERSION_MIN = (7, 0)
"""From then on a script that finds no room writes nothing at all, and one may ask for several settings at once."""

_LOST = {
    "": "keeps no append-only file: what came after its last snapshot is lost when it ends",
    "everysec": "brings what it writes to its disk each second: when its machine fails, the last second is lost",
    "no": "leaves it to its system when what it writes comes to the disk: when its machine fails, that is lost",
    "?": "does not show its configuration: it is not known whether what it has acknowledged can be lost",
}
"""By what a server does: what it means for an append that was acknowledged."""


class Server(NamedTuple):
    """A server, as one connection finds it.

    Args:
        identity: Another one when it was started again, or became a primary; "" if it does not say.
        durable: Whether an append that was acknowledged is on the disk.
        risk: What could be lost, in words; "" for nothing.
    """

    identity: str
    durable: bool
    risk: str


def look_at(link: Link, name: str, durability: str, *, to_read: bool = False) -> Server:
    """What a server is.

    Args:
        link: To it.
        name: For messages.
        durability: What the store was asked to promise; see `RedisStoreOptions`.
        to_read: Only to look on.

    Raises:
        StoreUnavailable: it is a replica.
        StoreError: it is too old, or may throw the store away to make room.
        FeatureUnsupported: it cannot promise what is asked.
    """
    said = dict(line.split(":", 1) for line in link.ask("INFO").decode(errors="replace").splitlines() if ":" in line)
    version = _version(said.get("redis_version", ""))
    if version < VERSION_MIN:
        raise StoreError(
            f"{name} is on Redis {said['redis_version']}",
            hint=f"it has to be {VERSION_MIN[0]}.{VERSION_MIN[1]} or newer, or any Valkey",
        )
    identity = f"{said['run_id']} {said['master_replid']}" if {"run_id", "master_replid"} <= said.keys() else ""
    if to_read:
        return Server(identity, durable=False, risk="")
    if said.get("role", "master") != "master":
        raise StoreUnavailable(f"{name} is on a replica", hint="a node needs the primary")
    policy = said.get("maxmemory_policy", "noeviction")
    if policy.startswith("allkeys"):
        raise StoreError(
            f"{name} is on a cache: its server throws away any key when it needs room (maxmemory-policy {policy})",
            hint="set maxmemory-policy to noeviction, or take a server for it that is no cache",
        )
    fsync = _fsync(link) if said.get("aof_enabled") == "1" else ""
    if fsync == "always":
        return Server(identity, durable=True, risk="")
    if durability == "full":
        # One could wait for the disk after each commit (WAITAOF), but with `everysec` Redis 7.4 and Valkey 9.1 answer
        # before it has anything: https://github.com/redis/redis/pull/13793, and seen with our own test server.
        raise FeatureUnsupported(
            f"{name} cannot have durability=full: the server {_LOST[fsync]}",
            hint="set appendonly yes and appendfsync always on the server",
        )
    return Server(identity, durable=False, risk=f"the server {_LOST[fsync]}")


def _version(said: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in said.split(".")[:2])
    except ValueError:
        return VERSION_MIN  # a build of somebody's own


def _fsync(link: Link) -> str:
    """How the append-only file comes to the disk; "?" if the server does not say."""
    try:
        found = link.ask("CONFIG", "GET", "appendfsync")
    except (
        require_redis().exceptions.ResponseError
    ):  # no right to it, or no such command: many who rent a server out do that
        return "?"
    said = dict(zip(found[::2], found[1::2], strict=True)).get(b"appendfsync", b"?").decode()
    return said if said in _LOST or said == "always" else "?"
