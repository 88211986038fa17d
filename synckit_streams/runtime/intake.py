"""What a reader has taken from a log and not yet committed: arrivals, echoes of our own messages, and deliveries."""

from __future__ import annotations

from synckit_streams.model.exchange import Arrival, Place, PlaceRun
from synckit_streams.ports.connector import Delivery
from synckit_streams.runtime.echoes import Echoes
from synckit_streams.runtime.envelope import Parcel, arrivals
from synckit_streams.sync.places import Same
from synckit_streams.sync.protocol import reader_name


class Intake:
    """One commit's worth of one partition.

    Args:
        link: The link's name.
        topic: Of the log.
        partition: Of the log.
        echoes: Our own messages.
    """

    def __init__(self, link: str, topic: str, partition: int, echoes: Echoes) -> None:
        self.partition = partition
        self.taken: list[Delivery] = []
        self.arrivals: list[Arrival] = []
        self.events = 0
        self.bytes = 0
        self._topic = topic
        self._reader = reader_name(link, topic, partition)
        self._sent = echoes
        self._echoes: list[PlaceRun] = []
        # An event a message, the next number at the next position: a run that goes on.
        self._origin = ""
        self._first = self._next = self._start = self._stop = 0

    def add(self, delivery: Delivery) -> None:
        """One more message; what it holds is known from our own sending, or decoded."""
        message = delivery.message
        self.taken.append(delivery)
        self.bytes += len(message.body)
        parcel = self._sent.take(message, self._topic)
        if parcel is not None:
            self.events += parcel.events
            self._echo(parcel, delivery.position)
            return
        found = arrivals(message, self._topic, Place(self._reader, delivery.position))
        self.arrivals += found
        self.events += len(found)

    def _echo(self, parcel: Parcel, position: int) -> None:
        first, events = parcel.first, parcel.events
        if events > 1:
            positions = Same(position, events)
            self._echoes.append(PlaceRun(self._reader, self._topic, first.origin, first.seq, positions))
        elif position == self._stop and first.seq == self._next and first.origin == self._origin:
            self._stop += 1
            self._next += 1
        else:
            self._end_run()
            self._origin, self._first, self._next = first.origin, first.seq, first.seq + 1
            self._start, self._stop = position, position + 1

    def _end_run(self) -> None:
        if self._origin:
            run = range(self._start, self._stop)
            self._echoes.append(PlaceRun(self._reader, self._topic, self._origin, self._first, run))
        self._origin = ""

    def echoes(self) -> list[PlaceRun]:
        """Where our own events were read."""
        self._end_run()
        return self._echoes
