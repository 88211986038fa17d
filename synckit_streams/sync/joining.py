"""Whether a log is still the one that was read, and from where it is read on.

A broker that was restored, rewound or made anew has other messages at the positions that the store remembers. What was
read there does not count as being in the log any more, and it is read from its beginning.
"""

from __future__ import annotations

from typing import NamedTuple

from synckit_streams.model.event import Offset
from synckit_streams.model.seen import Seen
from synckit_streams.sync import protocol
from synckit_streams.sync.channel import Channel
from synckit_streams.sync.protocol import Alarm, AlarmKind


class TakenUp(NamedTuple):
    """What comes of it.

    Args:
        alarms: About logs that are not what they were.
        forget: Readers whose places count no more.
        offsets: Where readers begin anew.
    """

    alarms: list[Alarm]
    forget: list[str]
    offsets: dict[str, Offset]


def take_up(channel: Channel, given: protocol.Joined) -> TakenUp:
    """Put the channel where each of its logs is to be read on."""
    alarms: list[Alarm] = []
    forget: list[str] = []
    offsets: dict[str, Offset] = {}
    for partition, (identity, first, end) in given.bounds.items():
        reader = protocol.reader_name(given.link, given.topic, partition)
        stored = given.stored.get(partition)
        lost = _lost(given, partition)
        if stored is None or lost is not None:
            channel.position[partition] = 0
            # The identity is kept even when the log is empty: another one later is then noticed.
            offsets[reader] = Offset(identity, 0)
        else:
            channel.position[partition] = stored.position
        if lost is not None:
            forget.append(reader)
            channel.places.forget(partition)
            channel.sent_before = Seen()
            alarms.append(Alarm(lost, given.topic, f"{given.link} stood at {stored}, the log is {first}..{end - 1}"))
        elif stored is not None and stored.position + 1 < first:
            gone = f"{given.link} had read to {stored.position}, the log begins at {first}"
            alarms.append(Alarm(AlarmKind.TRIMMED, given.topic, gone))
            channel.said = None
    return TakenUp(alarms, forget, offsets)


def _lost(given: protocol.Joined, partition: int) -> AlarmKind | None:
    """Whether the log is not the one that was read, and which way."""
    identity, first, end = given.bounds[partition]
    stored = given.stored.get(partition)
    if stored is None:
        return None
    if stored.log != identity:
        return AlarmKind.RECREATED
    if given.witness.get(partition) is False:
        return AlarmKind.REWOUND
    if stored.position == 0:
        return None
    if stored.position >= end:
        return AlarmKind.REWOUND
    if stored.position >= first and given.witness.get(partition) is not True:
        return AlarmKind.REWOUND
    return None
