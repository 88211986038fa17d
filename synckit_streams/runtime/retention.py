"""Taking away from a broker what every node has read, where the node was told to and the connector can.

Nothing is lost by it: whoever comes later, or was away for too long, gets what he lacks from the stores of the others,
by way of the digests. But a log that only one node has read is the second copy of its events, and stays.
"""

from __future__ import annotations

from synckit_streams.errors import ConnectorError, Rejected, Unauthorised
from synckit_streams.ports.connector import Connector
from synckit_streams.runtime.driver import Driver, logger


class Retention:
    """Of one session.

    Args:
        link: Its name.
        connector: Open.
        driver: Of the node.
    """

    def __init__(self, link: str, connector: Connector, driver: Driver) -> None:
        self._link = link
        self._connector = connector
        self._driver = driver
        self._trims = driver.settings.trim and connector.features.trims
        self._below: dict[str, dict[int, int]] = {}
        """Per topic: up to where it was trimmed."""

    async def trim(self, topic: str) -> None:
        """Take away what everybody has, if that has become more. That it cannot be done now is nobody's failure."""
        if not self._trims:
            return
        below = self._driver.replica.read_by_all(self._link, topic)
        if not below or below == self._below.get(topic):
            return
        try:
            await self._connector.trim(topic, below=below)
            self._below[topic] = below
        except (Rejected, Unauthorised) as error:
            self._trims = False  # until the next session: it would be said at every digest
            logger.warning("%s: %s is not trimmed: %s", self._driver.settings.node, topic, error)
        except ConnectorError as error:
            logger.debug("%s: %s is not trimmed now: %s", self._driver.settings.node, topic, error)
