"""What a reader has taken from a log and not yet committed: arrivals, echoes of our own messages, and deliveries."""

from __future__ import annotations

from synckit_streams.model.exchange import Arrival, Place, PlaceRun
from synckit_streams.ports.connector import Delivery
from synckit_streams.runtime.echoes import Echo, Echoes
from synckit_streams.runtime.envelope import arrivals
from synckit_streams.sync.places import Same
from synckit_streams.sync.protocol import reader_name


class Intake:
    """One commit's worth, of one partition.

    Args:
        link: The link's name.
        topic: Of the log.
    """

    def __init__(self, link: str, topic: str) -> None:
        self.taken: list[Delivery] = []
        self.arrivals: list[Arrival] = []
        self.events = 0
        self.bytes = 0
        self._link = link
        self._topic = topic
        self._readers: dict[int, str] = {}
        self.echoes: list[PlaceRun] = []
        """Where our own events were read."""

    def add(self, delivery: Delivery, echoes: Echoes) -> None:
        """One more message; what it holds is known from our own sending, or decoded."""
        message = delivery.message
        self.taken.append(delivery)
        self.bytes += len(message.body)
        partition = delivery.partition
        reader = self._readers.get(partition)
        if reader is None:
            reader = self._readers[partition] = reader_name(self._link, self._topic, partition)
        echo = echoes.take(message, self._topic)
        if echo is not None:
            self.events += echo.events
            self._echo(echo, reader, delivery.position)
            return
        found = arrivals(message, self._topic, Place(reader, delivery.position))
        self.arrivals += found
        self.events += len(found)

    def _echo(self, echo: Echo, reader: str, position: int) -> None:
        if echo.events == 1 and self.echoes:
            # An event a message: the next number at the next position goes on with the last run.
            last = self.echoes[-1]
            at = last.positions
            if (
                isinstance(at, range)
                and at.stop == position
                and last.first + len(at) == echo.first
                and last.origin == echo.origin
            ):
                self.echoes[-1] = last._replace(positions=range(at.start, position + 1))
                return
        positions = range(position, position + 1) if echo.events == 1 else Same(position, echo.events)
        self.echoes.append(PlaceRun(reader, echo.topic, echo.origin, echo.first, positions))
