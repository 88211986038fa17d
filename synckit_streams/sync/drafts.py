"""Local events: from what a caller wrote to what can be numbered, and every way in which it can be wrong.

Two steps before the writing, so that callers who share a group commit are isolated from one another. `prepare` looks at
the draft alone, before anything is looked up for it; `check` compares it with the ledger. Both raise, and neither
changes anything; what passes both is certain to be written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TypeAlias

import msgspec

from synckit_streams.errors import CauseUnknown, IdReused, Invalid, TooLarge
from synckit_streams.model.clock import COUNTER_MAX, Key, keys_bytes, vector_bytes
from synckit_streams.model.codec import (
    CONTEXT_BYTES_MAX,
    TRACEPARENT_BYTES_MAX,
    check_draft,
    content_hash,
    encode_metadata,
    encode_payload,
    event_content_hash,
)
from synckit_streams.model.event import Draft, Event, Stored
from synckit_streams.sync.changes import Changes, Row
from synckit_streams.sync.facts import Facts, Known
from synckit_streams.sync.ledger import Ledger
from synckit_streams.sync.stream import Stream
from synckit_streams.sync.turn import Turn

_encode = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode
_has_null = re.compile(b"null").search

ORIGIN_BYTES_MAX = 128
"""More than an origin of ours and its counter need in a context."""

WRITERS_FEW = 100
PLAIN_BYTES_MAX = 10_000
FIRST_VERSION = 1
"""The default of `Draft.schema_version`; compared by identity, so that True is not taken for it."""


Prepared: TypeAlias = tuple[Draft, bytes, bytes, bytes, bytes | None, str]
"""A draft with its payload, metadata, `after` and context in bytes, and its trace; the context is None when the store's
own is wanted. A plain tuple, since there is one for each event of a bulk load."""


def prepare(drafts: Sequence[Draft], traceparent: str = "") -> list[Prepared]:
    """The drafts of one request in bytes.

    Args:
        drafts: As they were given.
        traceparent: W3C trace context that their events carry.

    Raises:
        Invalid, TooLarge: something in a draft, or in the trace context, that the protocol does not allow.
    """
    if len(traceparent) > TRACEPARENT_BYTES_MAX:
        raise TooLarge(f"the trace context has {len(traceparent)} characters")
    if not traceparent.isascii() or not traceparent.isprintable():
        raise Invalid(f"the trace context {traceparent!r} is not printable ASCII")
    prepared: list[Prepared] = []
    plain: list[bytes] = []
    topic = type_ = None
    for draft in drafts:
        if not isinstance(draft, Draft):
            raise Invalid(f"{draft!r:.80} is not a Draft")
        aggregate_id = draft.aggregate_id
        # Looked at in full only when something about it is out of the ordinary.
        if (
            draft.topic is not topic
            or draft.type is not type_
            or draft.id is not None
            or type(aggregate_id) is not str
            or not aggregate_id.isascii()
            or not aggregate_id.isprintable()
            or not 0 < len(aggregate_id) < 1000
            or draft.context is not None
            or draft.after
            or draft.schema_version is not FIRST_VERSION
        ):
            check_draft(draft)
            topic, type_ = draft.topic, draft.type
            draft = _plain_names(draft)
        data = draft.data
        payload = b""
        if type(data) is dict:
            try:
                payload = _encode_json(data)
            except (TypeError, ValueError, RecursionError, OverflowError, msgspec.MsgspecError):
                payload = encode_payload(data)  # a model inside it; or it says what is wrong
        if 0 < len(payload) <= PLAIN_BYTES_MAX:
            plain.append(payload)
        else:
            payload = encode_payload(data)
        metadata = encode_metadata(draft.metadata) if draft.metadata else b""
        after = keys_bytes(Key(*cause) for cause in draft.after) if draft.after else b""
        context: bytes | None = None
        if draft.context is not None:
            context = vector_bytes(draft.context)
            if len(context) > CONTEXT_BYTES_MAX:
                raise TooLarge(f"the context has {len(context)} bytes; at most {CONTEXT_BYTES_MAX} are allowed")
        prepared.append((draft, payload, metadata, after, context, traceparent))
    if _has_null(b"".join(plain)):  # perhaps a NaN: one search over all of them costs less than one over each
        for draft, *_ in prepared:
            encode_payload(draft.data)
    return prepared


def _plain_names(draft: Draft) -> Draft:
    """A draft whose names are `str` itself: an enumeration's member, say, is stored and hashed as its text."""
    names = (draft.topic, draft.type, draft.aggregate_id, draft.id)
    if all(type(name) is str or name is None for name in names):
        return draft
    return msgspec.structs.replace(
        draft,
        topic=draft.topic[:],
        type=draft.type[:],
        aggregate_id=draft.aggregate_id[:],
        id=draft.id and draft.id[:],
    )


def check(ledger: Ledger, prepared: Sequence[Prepared], facts: Facts, changes: Changes) -> dict[str, Stored]:
    """That the drafts of one request can be written; gives the events of those that are in the log already, by id.

    Raises:
        IdReused, TooLarge, CauseUnknown: nothing of the request may be written.
    """
    repeats: dict[str, Stored] = {}
    digests: dict[str, bytes] = {}
    # Few writers cannot make a context too long, so few are not measured.
    wide = any(len(ledger.streams.get(topic, ())) > WRITERS_FEW for topic in {draft.topic for draft, *_ in prepared})
    for draft, payload, metadata, *_ in prepared:
        if draft.after:
            for cause in draft.after:
                if Key(*cause) not in ledger:
                    raise CauseUnknown(f"`after` names {tuple(cause)}, which this store has never seen")
        if draft.context is not None:
            for origin, seq in draft.context.items():
                cause = Key(draft.topic, origin, seq)
                # A void one is in the context of whatever was released in its stead, so a caller may have read it.
                if cause not in ledger and cause not in ledger.voids:
                    raise CauseUnknown(f"the context names {origin}:{seq}, which this store has never seen")
        elif wide:
            known = ledger.known((draft.topic, draft.aggregate_id), facts, changes)
            if known is not None and len(vector_bytes(known.last)) > CONTEXT_BYTES_MAX - ORIGIN_BYTES_MAX:
                raise TooLarge(
                    f"the aggregate {draft.aggregate_id!r:.80} has {len(known.last)} writers, too many to name",
                    hint="pass Draft.context with those that you have read",
                )
        if (id := draft.id) is not None:
            digest = content_hash(draft.topic, draft.type, draft.aggregate_id, payload, metadata, draft.schema_version)
            if (repeat := changes.ids.get(id) or facts.by_id(id)) is not None:
                repeats[id] = repeat
                digests.setdefault(id, event_content_hash(repeat.event))
            if digests.setdefault(id, digest) != digest:
                raise IdReused(f"the id {id!r} belongs to an event with other content")
    return repeats


def write(turn: Turn, prepared: Sequence[Prepared], repeats: Mapping[str, Stored], *, now_ms: int) -> None:
    """Number the drafts that `check` passed, and put them at the end of the log.

    Args:
        turn: Of the request.
        prepared: The drafts.
        repeats: What `check` gave.
        now_ms: The wall clock.
    """
    ledger, changes, facts = turn.ledger, turn.changes, turn.facts
    stored = turn.appended
    if repeats and all(draft.id in repeats for draft, *_ in prepared):
        stored.extend(repeats[draft.id or ""] for draft, *_ in prepared)
        turn.topics.update(draft.topic for draft, *_ in prepared)
        return
    origin, log, now = ledger.own_origin(), ledger.log, now_ms << 16
    rows, late, waiting, aggregates = changes.rows, changes.late, ledger.waiting, ledger.aggregates
    nothing_known = facts.nothing_known
    new_ids = iter(ledger.new_ids(sum([draft.id is None for draft, *_ in prepared]), now_ms))
    clock, position = ledger.at_packed, ledger.position
    topic, stream, seq = "", Stream(), 0
    hashes: list[bytes] = []  # of what the stream does not know yet
    for draft, payload, metadata, after, context, traceparent in prepared:
        id = draft.id
        if id is None:
            id = next(new_ids)
        elif (repeat := repeats.get(id) or changes.ids.get(id)) is not None:
            stored.append(repeat)
            turn.topics.add(draft.topic)
            continue
        if draft.topic != topic:
            stream.extend(hashes)
            stream.at_packed = clock
            turn.fresh += len(hashes)
            hashes.clear()
            topic = draft.topic
            stream = ledger.stream(topic, origin)
            seq = stream.last
            changes.streams.add((topic, origin))
            turn.topics.add(topic)
        aggregate_id = draft.aggregate_id
        fork = (topic, aggregate_id)
        known = aggregates.get(fork)
        if known is None:
            known = late.get(fork) if nothing_known else ledger.known(fork, facts, changes)
        latest = prev = 0
        if known is not None:
            prev = known.last.get(origin, 0)
            latest = known.at_packed
        if context is not None:
            latest = _latest_in(turn, draft, known)
        elif known is not None:
            last = known.last
            context = _encode([*last.items()]) if len(last) == 1 else vector_bytes(last)
        if after:
            latest = max(latest, turn.latest(Key(*cause) for cause in draft.after))
        if latest > clock:
            clock = latest
        if now > clock:
            clock = now
        if clock < COUNTER_MAX:  # a clock at its end stays there: an event from afar must not stop the writing
            clock += 1
        else:
            clock = COUNTER_MAX
        seq += 1
        event = Event(
            id, topic, draft.type, aggregate_id, payload, metadata, origin, seq, prev, context or b"",
            after, clock, draft.schema_version, traceparent,
        )  # fmt: skip
        body = _encode(event)
        hash = sha256(body).digest()
        hashes.append(hash)
        position += 1
        rows.append(Row(position, event, hash, False, body))
        here = Stored(event, position, log)
        stored.append(here)
        if draft.id is not None:
            changes.ids[id] = here
        if known is None:
            late[fork] = Known({origin: seq}, clock)
        else:
            known.last[origin] = seq
            if known.at_packed < clock:
                known.at_packed = clock
        if waiting:
            ledger.at_packed, ledger.position = clock, position
            stream.extend(hashes)
            stream.at_packed = clock
            turn.fresh += len(hashes)
            hashes.clear()
            turn.release(event.key)
            position = ledger.position
    stream.extend(hashes)
    stream.at_packed = clock
    turn.fresh += len(hashes)
    ledger.at_packed, ledger.position = clock, position


def _latest_in(turn: Turn, draft: Draft, known: Known | None) -> int:
    """The greatest hybrid time in the context that a caller gave."""
    assert draft.context is not None
    if not draft.context:
        return 0
    if known is not None and dict(draft.context) == known.last:  # nothing came between the reading and the writing
        return known.at_packed
    return turn.latest(Key(draft.topic, origin, seq) for origin, seq in draft.context.items())
