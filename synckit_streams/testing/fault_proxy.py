"""A TCP proxy between a connector and a real server, that breaks on demand.

Theory of operation. What arrives on one side of a connection waits in a short queue until the other side may have it.
Every fault is a property of the proxy that is looked at when a piece is handed on, so it takes hold of connections that
are open already and lets go of them again. Nothing is ever dropped from the middle of a stream: TCP does not do that
either. Where nothing is carried, neither are the ends of connections: whoever sits at one side cannot tell somebody who
is silent from one who is gone. Queues are bounded; when one is full its sender is not read, as with TCP.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import struct
from contextlib import suppress
from types import TracebackType
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from synckit_streams.errors import ConfigError, ConnectorError
from synckit_streams.testing.server import Server

Direction = Literal["up", "down"]
"""Up is from the client to the server."""

PIECE_BYTES: Final = 16 * 1024
PIECES_MAX: Final = 16
"""So many pieces wait in a direction of a connection; what else was sent waits with its sender."""
TICKS_PER_S: Final = 20
"""How finely a bandwidth is portioned."""
PORTS: Final = Server.ports
PORT_TRIES_MAX: Final = 20
BACKLOG: Final = 128


class FaultProxy:
    """Carries connections to a server on, until it is told not to. It listens on 127.0.0.1.

    ```python
    async with FaultProxy(server) as proxy:
        node = SyncNode("till-7", store="memory:", connectors=[proxy.url], topics=["orders"])
        proxy.freeze()      # half-open: connections stay, and carry nothing
        proxy.heal()
    ```

    Everything but `open` and `close` takes effect at once and does not wait; call it from the proxy's own event loop.
    While the server is down, a client is accepted and then reset; only `refuse` lets it be refused.

    Args:
        target: The server, or its URL. Of a `Server` the URL is looked up for each connection, so it need not run yet.
        port: 0 takes a free one.
        seed: Of the jitter.

    Raises:
        ConfigError: The URL does not name exactly one host and port.
    """

    def __init__(self, target: Server | str, *, port: int = 0, seed: int = 0) -> None:
        self._target = target
        if isinstance(target, str):
            _endpoint(target)
        self.port = port
        self.accepted = 0
        """Connections that were ever accepted."""
        self.bytes_up = 0
        """Carried from clients to the server."""
        self.bytes_down = 0
        """Carried from the server to clients."""
        self._dice = random.Random(seed)
        self._listener: socket.socket | None = None
        self._carriages: dict[asyncio.Task[None], _Carriage] = {}
        self._stopped: frozenset[Direction] = frozenset()
        self._delay_s = 0.0
        self._jitter_s = 0.0
        self._bytes_per_s = 0.0
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        """The server's URL with the proxy's port."""
        parts = urlsplit(self._target_url)
        login, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}").geturl()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._carriages)

    # --- opening and closing -----------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Listen, with no fault.

        Raises:
            ConnectorError: There is no free port, or the chosen one is taken.
        """
        if self._listener is None:
            # As with `Server`: nobody gets the port by chance while connections are refused.
            ports = [self.port] if self.port else random.SystemRandom().sample(PORTS, PORT_TRIES_MAX)
            for port in ports:
                if self._listen(port):
                    self.port = port
                    break
            else:
                raise ConnectorError(f"no port for the proxy: {', '.join(map(str, ports))} taken")
        self.heal()
        return self

    async def close(self) -> None:
        """Cut every connection and stop listening. May be called twice."""
        self._deafen()
        tasks = list(self._carriages)
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- faults ------------------------------------------------------------------------------------------------------

    def cut(self) -> int:
        """Reset every open connection on both sides; new ones are carried. Gives how many there were."""
        for task, carriage in self._carriages.items():
            carriage.reset()
            task.cancel()
        return len(self._carriages)

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay."""
        self._deafen()

    def freeze(self, direction: Direction | Literal["both"] = "both") -> None:
        """Carry nothing in that direction, also not that somebody hung up; connections stay, and new ones are accepted.

        In both directions that is a half-open connection. With "up" only the server is heard, with "down" only the
        client. What was sent meanwhile arrives when it is healed.
        """
        self._stopped = frozenset(("up", "down")) if direction == "both" else frozenset((direction,))
        self._change()

    def slow(self, *, delay_ms: float = 0.0, jitter_ms: float = 0.0, bytes_per_s: float = 0.0) -> None:
        """Carry everything later, in its order.

        Args:
            delay_ms: In each direction.
            jitter_ms: Up to so much more, drawn for each piece.
            bytes_per_s: For each direction of each connection; 0 is as fast as it goes.

        Raises:
            ValueError: One of them is negative.
        """
        if min(delay_ms, jitter_ms, bytes_per_s) < 0:
            raise ValueError("a delay and a bandwidth are 0 or more")
        self._delay_s, self._jitter_s, self._bytes_per_s = delay_ms / 1000, jitter_ms / 1000, bytes_per_s
        self._change()

    def heal(self) -> None:
        """End every fault. What waited is carried on.

        Raises:
            ConnectorError: Somebody else took the port while connections were refused.
        """
        if self._listener is None and not self._listen(self.port):
            raise ConnectorError(f"port {self.port} was taken while the proxy refused connections")
        self._stopped = frozenset()
        self._delay_s = self._jitter_s = self._bytes_per_s = 0.0
        self._change()

    # --- within ------------------------------------------------------------------------------------------------------

    @property
    def _target_url(self) -> str:
        return self._target if isinstance(self._target, str) else self._target.url

    def _change(self) -> None:
        """Let whoever waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self, seconds: float | None = None) -> None:
        """Until some fault changes, or so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def _passable(self, direction: Direction) -> None:
        while direction in self._stopped:
            await self._wait()

    def _listen(self, port: int) -> bool:
        listener = socket.socket()
        listener.setblocking(False)
        # A port on which connections ended a moment ago is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept)
        return True

    def _deafen(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:  # it left before we came
            return
        self.accepted += 1
        carriage = _Carriage(self, client)
        task = asyncio.create_task(carriage.run(), name="synckit-fault-proxy")
        self._carriages[task] = carriage
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        # Also where the task was cancelled before it began.
        self._carriages.pop(task).reset()


class _Carriage:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client: socket.socket | None = client
        self._writers: list[asyncio.StreamWriter] = []

    def reset(self) -> None:
        """End both sides with RST: whatever is under way is lost."""
        for writer in self._writers:
            abrupt = writer.get_extra_info("socket")
            with suppress(OSError):
                abrupt.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        if self._client is not None:
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._client.close()
            self._client = None

    async def run(self) -> None:
        """Until both sides have hung up, or one is lost."""
        proxy = self._proxy
        client, self._client = self._client, None
        assert client is not None
        client.setblocking(False)
        # From here on asyncio closes it, also if we are cancelled.
        near, near_out = await asyncio.open_connection(sock=client, limit=PIECE_BYTES)
        self._writers.append(near_out)
        while len(proxy._stopped) == 2:
            await proxy._wait()
        try:
            far, far_out = await asyncio.open_connection(*_endpoint(proxy._target_url), limit=PIECE_BYTES)
        except OSError:
            await proxy._passable("down")
            return
        self._writers.append(far_out)
        both = [
            asyncio.create_task(_Flow(proxy, "up", near, far_out).run()),
            asyncio.create_task(_Flow(proxy, "down", far, near_out).run()),
        ]
        try:
            # The first that is lost takes the other one with it.
            await asyncio.gather(*both)
        except OSError:
            return
        finally:
            for flow in both:
                flow.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            with suppress(OSError):
                await writer.wait_closed()


class _Flow:
    """One direction of a connection."""

    def __init__(
        self, proxy: FaultProxy, direction: Direction, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._direction: Direction = direction
        self._source = source
        self._sink = sink
        self._pieces: asyncio.Queue[tuple[float, float, bytes | OSError]] = asyncio.Queue(PIECES_MAX)

    async def run(self) -> None:
        """Until the source hung up, which the sink is then told.

        Raises:
            OSError: One of both was lost, and the other side may know.
        """
        taking = asyncio.create_task(self._take())
        try:
            await self._give()
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    async def _take(self) -> None:
        now = asyncio.get_running_loop().time
        piece: bytes | OSError = b"more"
        while piece and isinstance(piece, bytes):
            try:
                piece = await self._source.read(PIECE_BYTES)
            except OSError as lost:
                piece = lost
            await self._pieces.put((now(), self._proxy._dice.random(), piece))

    async def _give(self) -> None:
        proxy = self._proxy
        while True:
            came, draw, piece = await self._pieces.get()
            await self._due(came, draw)
            if isinstance(piece, OSError):
                raise piece
            if not piece:
                self._sink.write_eof()
                return
            try:
                await self._write(piece)
            except OSError:
                # The sink is lost; the source hears of it when the way back to it is free.
                await proxy._passable("up" if self._direction == "down" else "down")
                raise

    async def _due(self, came: float, draw: float) -> None:
        """Wait until what came then may go on, by the faults as they are now."""
        proxy = self._proxy
        now = asyncio.get_running_loop().time
        while True:
            await proxy._passable(self._direction)
            rest = came + proxy._delay_s + draw * proxy._jitter_s - now()
            if rest <= 0:
                return
            await proxy._wait(rest)

    async def _write(self, piece: bytes) -> None:
        proxy = self._proxy
        while piece:
            portion = len(piece)
            if rate := proxy._bytes_per_s:
                portion = min(portion, max(1, int(rate / TICKS_PER_S)))
                await proxy._wait(portion / rate)
                await proxy._passable(self._direction)
            self._sink.write(piece[:portion])
            await self._sink.drain()
            if self._direction == "up":
                proxy.bytes_up += portion
            else:
                proxy.bytes_down += portion
            piece = piece[portion:]


def _endpoint(url: str) -> tuple[str, int]:
    """The host and the port that a URL names.

    Raises:
        ConfigError: It names none, or several.
    """
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.hostname and parts.port and "," not in parts.netloc:
            return parts.hostname, parts.port
    raise ConfigError(f"a proxy stands before one server, not before {url!r:.80}", hint="nats://127.0.0.1:4222")
