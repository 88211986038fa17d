"""The way to a Redis server: one connection, used by one thread at a time, and the driver's errors as ours.

The driver would replace a connection that was lost without a word, and send a command again that had been done. Here
whoever uses a connection learns that it was lost, since only he knows what that means.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from synckit_streams.errors import (
    MissingDependency,
    StoreBusy,
    StoreCorrupt,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from synckit_streams.stores.redis_scripts import Script
from synckit_streams.stores.redis_url import Target

CONNECT_S = 5.0
ANSWER_S = 20.0
"""How long the server may take for an answer before the connection is given up."""


def require_redis() -> Any:
    """The driver.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import redis
    except ImportError as missing:
        raise MissingDependency(
            "the Redis store needs redis-py", hint="pip install 'synckit-streams[redis]'"
        ) from missing
    return redis


def is_lost(error: BaseException) -> bool:
    """Whether the connection was lost, so that it is open what became of the command."""
    driver = require_redis().exceptions
    if isinstance(error, driver.AuthenticationError | driver.BusyLoadingError):
        return False
    return isinstance(error, driver.ConnectionError | driver.TimeoutError | OSError)


def translate(error: BaseException, name: str) -> BaseException:
    """A driver's error as one of ours, with what to do; any other as it is."""
    driver = require_redis().exceptions
    if not isinstance(error, driver.RedisError | OSError) or isinstance(error, StoreError):
        return error
    said = str(error) or type(error).__name__
    if isinstance(error, driver.AuthenticationError) or said.startswith(("WRONGPASS", "NOAUTH")):
        return StoreDenied(f"{name}: {said}", hint="check user and password in the URL")
    if isinstance(error, driver.NoPermissionError):
        return StoreDenied(
            f"{name}: {said}",
            hint="the user needs the keys ~sk-store:* and the channels &sk-store:*, and +@all -@admin -@dangerous "
            "+info +config|get",
        )
    if isinstance(error, driver.OutOfMemoryError) or said.startswith("OOM") or "maxmemory" in said:
        return StoreFull(
            f"{name}: {said}", hint="raise maxmemory on the server, or make room; the node goes on by itself"
        )
    if "No space left" in said:
        return StoreFull(f"{name}: {said}", hint="the server's disk is full; the node goes on by itself")
    if isinstance(error, driver.ReadOnlyError) or "read only replica" in said:
        return StoreUnavailable(f"{name} cannot be written: {said}", hint="a node needs the primary, not a replica")
    if said.startswith(("BUSY ", "UNBLOCKED ")):
        return StoreBusy(f"{name}: {said}", hint="another client's script keeps the server; see SCRIPT KILL")
    if isinstance(error, driver.AskError):  # MOVED is one of these
        return StoreError(
            f"{name} is on another node of a Redis Cluster: {said}",
            hint="name a server that has the store's slot: a cluster of one node, or a server without a cluster",
        )
    if "WRONGTYPE" in said:
        return StoreCorrupt(
            f"{name} has a key that is not ours: {said}", hint="give the store a name of its own: ?name=till-7"
        )
    if "DB index" in said or "SELECT is not allowed" in said:
        return StoreError(f"{name}: {said}", hint="the server has no such database; write redis://host:6379/0")
    for_now = driver.BusyLoadingError | driver.ClusterDownError | driver.MasterDownError | driver.TryAgainError
    if is_lost(error) or isinstance(error, for_now) or said.startswith(("MISCONF", "NOREPLICAS")):
        return StoreUnavailable(f"{name}: {said}")
    return StoreError(f"{name}: {said}", hint="nothing of this call was written")


class Link:
    """One connection.

    Args:
        target: Where to.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connection: Any = None
        self.keys = [target.key(), target.key("order"), target.key("head"), target.key("claim")]

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None

    def connect(self) -> None:
        """Make the connection, unless there is one."""
        if self._connection is None:
            connection = self._made()
            connection.connect()
            self._connection = connection

    def _made(self) -> Any:
        driver = require_redis()
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        target, options = self._target, self._target.options
        tls = {
            "ssl_ca_certs": options.tls_ca or None,
            "ssl_certfile": options.tls_cert or None,
            "ssl_keyfile": options.tls_key or None,
        }
        kind = driver.SSLConnection if target.tls else driver.Connection
        return kind(
            host=target.host,
            port=target.port,
            db=target.database,
            protocol=2,
            socket_connect_timeout=CONNECT_S,
            socket_timeout=ANSWER_S,
            retry=Retry(NoBackoff(), 0),
            **target.secrets,
            **(tls if target.tls else {}),
        )

    def drop(self) -> None:
        """Without a word to the server."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.disconnect()

    def ask(self, *command: Any) -> Any:
        """What the server answers to one command. A connection that fails is dropped."""
        connection = self._connection
        try:
            connection.send_packed_command(connection.pack_command(*command), check_health=False)
            return connection.read_response()
        except BaseException as error:
            if not isinstance(error, require_redis().exceptions.ResponseError):
                self.drop()
            raise

    def ask_all(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """What the server answers to each of some commands, errors included, sent in one go."""
        connection = self._connection
        pack = connection.pack_command
        answers: list[Any] = []
        try:
            packed = [part for command in commands for part in pack(*command)]
            connection.send_packed_command([b"".join(packed)], check_health=False)
            for _ in commands:
                try:
                    answers.append(connection.read_response())
                except require_redis().exceptions.ResponseError as error:
                    answers.append(error)
        except BaseException:
            self.drop()
            raise
        return answers

    def run(self, script: Script, *arguments: Any) -> Any:
        """What a script answers, which the server knows from the second time on."""
        try:
            return self.ask("EVALSHA", script.sha, len(self.keys), *self.keys, *arguments)
        except require_redis().exceptions.NoScriptError:
            return self.ask("EVAL", script.text, len(self.keys), *self.keys, *arguments)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of some rows."""
        found: list[bytes | None] = self.ask("HMGET", self.keys[0], *keys) if keys else []
        return found

    def subscribe(self, channel: str) -> None:
        """Listen; see `heard`."""
        self.ask("SUBSCRIBE", channel)

    def heard(self, wait_s: float) -> bool:
        """Whether something came on the channel within so long."""
        if not self._connection.can_read(timeout=wait_s):
            return False
        self._connection.read_response()
        return True
