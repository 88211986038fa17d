"""What becomes of the places of a key that was given to two events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from synckit_streams.model.exchange import PlaceRun, Reuse
from synckit_streams.sync import protocol
from synckit_streams.sync.channel import Channel
from synckit_streams.sync.places import NOWHERE
from synckit_streams.sync.protocol import Effect


def misplaced(reused: Sequence[Reuse], cause: object, channels: Iterable[Channel]) -> list[Effect]:
    """Two events had one key: which of them lies in the other logs under it, we cannot know any more.

    So neither does, as far as is known: the one that keeps the key goes there again. In the log from which one of
    them came we do know, unless it waited here first: its place was noted before it met the other.
    """
    runs: list[PlaceRun] = []
    for key, _, _, held in reused:
        for channel in channels:
            came = isinstance(cause, protocol.Received) and channel.link == cause.link and not held
            partition = channel.places.partition_of(key.origin, key.seq)
            if channel.topic == key.topic and not came and partition is not None:
                channel.places.add(key.origin, key.seq, NOWHERE, partition)
                reader = protocol.reader_name(channel.link, channel.topic, partition)
                runs.append(PlaceRun(reader, key.topic, key.origin, key.seq, NOWHERE))
    return [protocol.Persist(echoes=runs)] if runs else []
