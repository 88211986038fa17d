"""What of an append is worth an alarm, in words."""

from __future__ import annotations

from synckit_streams.model.exchange import AppendResult
from synckit_streams.sync.protocol import Alarm, AlarmKind, Effect


def alarms_of(result: AppendResult, topic: str) -> list[Effect]:
    """What somebody should be told of an append."""
    alarms: list[Effect] = []
    for key, kept, reissued, _ in result.reused:
        text = f"{key.origin}:{key.seq} has two contents; {kept.hex()[:8]} stays, {reissued.id} is {reissued.origin}:1"
        alarms.append(Alarm(AlarmKind.DOT_REUSED, key.topic, text))
    for key, id in result.twins:
        alarms.append(Alarm(AlarmKind.TWINS, key.topic, f"the id {id} was written twice with other content"))
    if result.quarantined:
        text = f"{len(result.quarantined)} set aside: {result.quarantined[0]}"
        alarms.append(Alarm(AlarmKind.QUARANTINED, topic, text))
    if result.dropped:
        alarms.append(Alarm(AlarmKind.HELD_FULL, topic, f"{len(result.dropped)} let go; they come again"))
    return alarms
