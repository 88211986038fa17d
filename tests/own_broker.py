"""Brokers of a test's own, as the contract wants them."""

from __future__ import annotations

import asyncio

from synckit_connectors.memory import MemoryConnector, memory_broker
from synckit_streams.ports.connector import Connector
from synckit_streams.runtime.registry import connector_for
from synckit_streams.testing.server import Server
from tests.administration import delete


class ServerBroker:
    """A real server."""

    def __init__(self, server: Server, options: str = "") -> None:
        self._server = server
        self._url = server.url + options

    def connector(self) -> Connector:
        return connector_for(self._url)

    async def restart(self) -> None:
        await asyncio.to_thread(self._server.restart)

    async def delete(self, topic: str) -> None:
        await delete(self._server, topic)


class BrokerInMemory:
    """The one in this process: what a restart is to it is that everybody is cut off."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._keeper = MemoryConnector(f"memory://{name}")

    def connector(self) -> Connector:
        return MemoryConnector(f"memory://{self._name}")

    async def restart(self) -> None:
        memory_broker(self._name).down = True
        await asyncio.sleep(0)
        memory_broker(self._name).down = False

    async def delete(self, topic: str) -> None:
        memory_broker(self._name).recreate(topic)
