"""What moves in from another store: taken as it stood there, and not judged anew.

A log is not always in causal order: where two events had one key, the one that keeps it may stand behind an event that
knows it. So rows that were received once more would be held and come out in another order, and whoever had read up to
some position would miss one or count it twice. Here a row keeps its position, and with it every reader his place.
"""

from __future__ import annotations

from synckit_streams.errors import StoreError
from synckit_streams.model.clock import Key
from synckit_streams.model.exchange import Moved
from synckit_streams.sync.changes import Aside
from synckit_streams.sync.ledger import Ledger
from synckit_streams.sync.turn import Turn


def check(ledger: Ledger, moved: Moved) -> None:
    """That there is room for the rows behind the end of the log.

    Raises:
        StoreError: there is not.
    """
    end = ledger.position
    if moved.rows and ledger.waiting:
        raise StoreError("events are held here already", hint="the log moves first, and then what lies beside it")
    for stored, _ in moved.rows:
        if stored.position <= end:
            raise StoreError(
                f"position {stored.position} is not behind {end}, the end of this log",
                hint="somebody else has written here: move into an empty store",
            )
        end = stored.position


def adopt(turn: Turn, moved: Moved) -> None:
    """Take it all."""
    ledger, changes = turn.ledger, turn.changes
    for stored, hash in moved.rows:
        event = stored.event
        turn.topics.add(event.topic)
        ledger.position = stored.position - 1
        stream = ledger.stream(event.topic, event.origin)
        if event.seq in stream:  # its key was given away while the log was being read
            turn.place(event, hash, None)
        else:
            turn.store(event, hash, stream)
    for key in moved.voids:
        if key not in ledger.voids:
            ledger.voids.add(key)
            changes.voids.append(key)
            turn.topics.add(key.topic)
    for event, hash in moved.held:
        turn.topics.add(event.topic)
        if hash in ledger.waiting:
            turn.duplicates += 1
        elif (cause := ledger.missing(event)) is None:  # it was let go while the log was being read
            turn.take(event, hash)
        else:
            ledger.waiting.add(event, hash, cause)
            changes.held_added[hash] = event
            turn.held.append(event.key)
    for _, reason, reader, place, raw, refused in moved.quarantine:
        changes.asides.append(Aside(reason, reader, place, raw, refused))
        if refused is not None:
            _refuse(turn, refused, reason)
    changes.runs.extend(moved.runs)
    changes.offsets.update(moved.offsets)
    changes.alarms.extend(moved.alarms)


def _refuse(turn: Turn, key: Key, reason: str) -> None:
    """Unless the key came later with a content that may be stored."""
    if key not in turn.ledger:
        turn.ledger.refused[key] = reason
        turn.topics.add(key.topic)
