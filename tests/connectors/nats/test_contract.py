"""The NATS connector keeps the contract on a real server."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from nats.js.api import StreamConfig

from synckit_connectors.nats_jetstream import NatsConnector
from synckit_streams.testing.brokers import NatsServer
from synckit_streams.testing.connector_contract import ConnectorContract, Factory, Foreign, OwnBroker
from tests.connectors.nats.kit import (
    administrator,
)
from tests.own_broker import ServerBroker


class TestContract(ConnectorContract):
    @pytest.fixture
    def connector_factory(self, nats_url: str) -> Factory:
        return lambda: NatsConnector(nats_url)

    @pytest.fixture
    def impatient_connector_factory(self, nats_url: str) -> Factory:
        return lambda: NatsConnector(nats_url, ack_wait_s=self.ack_wait_s)

    @pytest.fixture
    def foreign(self, nats_url: str) -> Foreign:
        async def write(source: str, written: Sequence[bytes]) -> None:
            async with administrator(nats_url) as admin:
                await admin.add_stream(StreamConfig(name=source, subjects=[f"{source}.>"]))
                for body in written:
                    await admin.publish(f"{source}.any.thing", body)

        return write

    @pytest.fixture
    def own_broker(self, nats_server: NatsServer) -> OwnBroker:
        return ServerBroker(nats_server)
