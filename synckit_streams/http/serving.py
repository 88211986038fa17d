"""Serve an ASGI application from inside an event loop that has other things to do.

The port is bound before anything else, so that one which is taken is said at once and in words. Signals stay with
whoever called, and the end comes within its time, whatever a client does.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

from synckit_streams.errors import ConfigError

END_S = 2.0
"""How long requests that are under way may still take when serving ends."""
CONNECTIONS_MAX = 1_000
"""Connections at the same time; whoever comes then is answered with 503."""
HEADER_BYTES_MAX = 64 * 1024
"""Request line and headers of one request."""
_PORT_LAST = 65_535


@asynccontextmanager
async def serve(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, end_s: float = END_S) -> AsyncIterator[str]:
    """Serve while the block runs; gives the URL.

    Args:
        app: What is served.
        host: A name or address of this machine; "0.0.0.0" or "::" for all of them.
        port: 0 takes a free one.
        end_s: How long requests that are under way may still take when the block ends; then they are cut off.

    Raises:
        ConfigError: the port is taken, or cannot be had.
    """
    listening = await _bound(host, port)
    shown = f"[{host}]" if ":" in host else host
    server = _Server(
        uvicorn.Config(
            app,
            lifespan="off",
            http="h11",  # the one that bounds the headers
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS_MAX,
            h11_max_incomplete_event_size=HEADER_BYTES_MAX,
            timeout_graceful_shutdown=math.ceil(end_s),
        )
    )
    serving = asyncio.create_task(server.serve([listening]), name="http")
    try:
        await server.up.wait()
        yield f"http://{shown}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    """One that tells when it is up, and takes no signals."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to whoever called."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        try:
            await super().startup(sockets)
        finally:
            self.up.set()


async def _bound(host: str, port: int) -> socket.socket:
    if not 0 <= port <= _PORT_LAST:
        raise ConfigError(f"there is no port {port}", hint=f"from 1 to {_PORT_LAST}, or 0 for any that is free")
    try:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        listening = socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = "--port takes another one, --port 0 any that is free, --no-http none"
            raise ConfigError(f"port {port} of {host} is taken by another program", hint=hint) from error
        raise ConfigError(f"cannot listen on port {port} of {host}: {error.strerror or error}") from error
    listening.setblocking(False)
    return listening
