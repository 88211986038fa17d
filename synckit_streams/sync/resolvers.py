"""The resolvers that come with the library. Ties break by (hybrid time, origin, seq), the same on every replica."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import msgspec

from synckit_streams.errors import ConfigError, PayloadUndecodable
from synckit_streams.model.clock import Dot
from synckit_streams.model.event import Event
from synckit_streams.sync.conflict import Conflict, Decision, Resolution

_encode = msgspec.json.Encoder(order="deterministic").encode


def _data(event: Event) -> Any:
    """An event's data; None when the payload is not JSON (it is stored and shown as such, and folds pass it over)."""
    try:
        return event.data
    except PayloadUndecodable:
        return None


def _keep(winner: Event, conflict: Conflict, why: str) -> Resolution:
    if len(conflict.heads) == 1:
        return Resolution(winner, _data(winner), conflict.heads, Decision.NOOP, ("one head",))
    others = len(conflict.heads) - 1
    reason = f"{why}: {winner.id} of {winner.origin} over {others} other head{'s' if others > 1 else ''}"
    return Resolution(winner, _data(winner), conflict.heads, Decision.KEEP, (reason,))


class LastWriteWins:
    """The greatest head: the write that came last by the hybrid clock."""

    name = "last-write-wins"
    version = 1

    def resolve(self, conflict: Conflict) -> Resolution:
        """See `ConflictResolver`."""
        return _keep(max(conflict.heads, key=lambda head: head.canonical_order), conflict, "last write")


class FirstWriteWins:
    """The aggregate's first root, and the greatest head that descends from it.

    A root is an event without a cause in its aggregate. It is judged over roots and not over heads: over heads the
    winner would lose its place as soon as it is updated. Provisional until no older root can arrive any more, and it
    says so.
    """

    name = "first-write-wins"
    version = 1

    def resolve(self, conflict: Conflict) -> Resolution:
        """See `ConflictResolver`."""
        roots = [event for event in conflict.events if not event.context_bytes] or list(conflict.events)
        first = min(roots, key=lambda event: event.canonical_order)
        family = _family(first, conflict)
        heirs = [head for head in conflict.heads if head.dot in family]
        winner = max(heirs or conflict.heads, key=lambda head: head.canonical_order)
        kept = _keep(winner, conflict, f"descends from the first write {first.id}")
        if kept.decision is Decision.NOOP:
            return kept
        return msgspec.structs.replace(kept, reasons=(*kept.reasons, "provisional: an older write may still arrive"))


class AdditiveMerge:
    """Adds what everybody wrote, instead of choosing.

    Every event of the aggregate counts, each id once. `sum` adds numbers (integers exactly; with a float among them,
    by exact summation); `union` gives a list without repeats in order of first appearance; every other field is the
    last write's.

    Args:
        fields: Name to "sum" or "union".

    Raises:
        ConfigError: another kind, or no field.
    """

    name = "additive-merge"
    version = 1

    def __init__(self, fields: Mapping[str, str]) -> None:
        wrong = {field: kind for field, kind in fields.items() if kind not in ("sum", "union")}
        if wrong or not fields:
            raise ConfigError(f"AdditiveMerge cannot fold {wrong or 'no field'}", hint='kinds are "sum" and "union"')
        self.fields = dict(fields)
        # What it does depends on the fields: replicas that fold other fields must notice.
        self.name = "additive-merge:" + ",".join(f"{field}={kind}" for field, kind in sorted(self.fields.items()))

    def resolve(self, conflict: Conflict) -> Resolution:
        """See `ConflictResolver`."""
        counted: dict[str, None] = {}
        numbers: dict[str, list[int | float]] = {}
        lists: dict[str, dict[bytes, Any]] = {}
        merged: dict[str, Any] = {}
        skipped = 0
        for event in conflict.events:
            if event.id in counted:
                continue
            counted[event.id] = None
            data = _data(event)
            if not isinstance(data, dict):
                skipped += 1
                continue
            for field, value in data.items():
                kind = self.fields.get(field)
                if kind == "sum" and isinstance(value, int | float) and not isinstance(value, bool):
                    numbers.setdefault(field, []).append(value)
                elif kind == "union":
                    found = lists.setdefault(field, {})
                    for item in value if isinstance(value, list) else [value]:
                        # Equal as JSON: 1, 1.0 and true are three items, and the order of an object's names is none.
                        found.setdefault(_encode(item), item)
                elif kind is None:
                    merged[field] = value
        merged.update({field: _total(values) for field, values in numbers.items()})
        merged.update({field: list(found.values()) for field, found in lists.items()})
        reasons = [f"folded {len(counted)} event{'s' if len(counted) > 1 else ''}"]
        if skipped:
            reasons.append(f"passed over {skipped} whose data is not an object")
        if len(counted) == 1:
            return Resolution(conflict.events[0], merged, conflict.heads, Decision.NOOP, ("one event",))
        return Resolution(None, merged, conflict.heads, Decision.MERGE, tuple(reasons))


def _family(first: Event, conflict: Conflict) -> set[Dot]:
    """An event and all that descend from it, through whichever copy of a fact."""
    family: set[Dot] = set()
    least: dict[str, int] = {}

    def join(event: Event) -> None:
        family.add(event.dot)
        for copy in (event, *conflict.copies.get(event.dot, ())):
            least[copy.origin] = min(copy.seq, least.get(copy.origin, copy.seq))

    def descends(event: Event) -> bool:
        # A context that covers any event of an origin covers the least one, so that one alone need be kept.
        return any(
            seq >= least.get(origin, seq + 1)
            for copy in (event, *conflict.copies.get(event.dot, ()))
            if copy.context_bytes
            for origin, seq in copy.context.items()
        )

    join(first)
    grows = True
    while grows:
        grows = False
        # Canonical order is a linear extension of causality: one pass finds them all, except through copies.
        for event in conflict.events:
            if event.dot not in family and descends(event):
                join(event)
                grows = bool(conflict.copies)
    return family


def _total(values: list[int | float]) -> int | float:
    """Integers exactly; with a float among them, the exact sum rounded once, whatever the order."""
    if all(isinstance(value, int) for value in values):
        return sum(values)
    # fsum makes a float of an integer first, which is exact up to here.
    if all(isinstance(value, float) or abs(value) <= 2**53 for value in values):
        try:
            return math.fsum(values)
        except OverflowError:  # perhaps only half-way
            pass
    exact = sum(map(Fraction, values))
    try:
        return float(exact)
    except OverflowError:  # beyond every float
        return int(exact)
