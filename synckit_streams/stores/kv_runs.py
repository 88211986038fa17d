"""An index from numbers to positions of the log, by runs.

Nearly always events that follow one another have numbers that follow one another: the `seq` of an origin, and the ids
that one batch was given. So a row of the index says "from number n at position p on, so many": a thousand events that
were written together cost a few rows, and those that came one by one cost one each.

What a row says is never taken back. An event that moved, or that was removed, is found not to be at that position, and
whoever looks goes on to the next candidate.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from struct import Struct

from synckit_streams.stores import kv_keys as keys
from synckit_streams.stores.kv_medium import Medium, Range

RUN_MAX = 256
"""Events of a run. A look-up reads the runs that begin so many numbers before, since they may reach so far."""

_pair = Struct(">QQ")
_count = Struct(">H")


def write(prefix: bytes, pairs: Iterable[tuple[int, int]], writes: MutableMapping[bytes, bytes | None]) -> None:
    """Add numbers and their positions to the index, in the order of the log.

    Args:
        prefix: Of the index.
        pairs: Each a number, from 0 to 2^64 - 1, and a position.
        writes: Where the rows go.
    """
    first = at = count = 0
    for number, position in pairs:
        if count and number == first + count and position == at + count and count < RUN_MAX:
            count += 1
            continue
        if count:
            writes[prefix + _pair.pack(first, at)] = _count.pack(count)
        first, at, count = number, position, 1
    if count:
        writes[prefix + _pair.pack(first, at)] = _count.pack(count)


def positions(medium: Medium, wanted: Mapping[bytes, Iterable[int]]) -> dict[bytes, dict[int, list[int]]]:
    """Where numbers may be: for each index, by number, the positions to look at, in the order of the log.

    Args:
        medium: To look in.
        wanted: By the prefix of an index, the numbers that are asked for.
    """
    asked: list[tuple[bytes, list[int]]] = []
    ranges: list[Range] = []
    for prefix, numbers in wanted.items():
        for span in _spans(sorted(set(numbers))):
            asked.append((prefix, span))
            first = max(span[0] - RUN_MAX + 1, 0)
            ranges.append((prefix + keys.number(first), prefix + keys.number(span[-1]) + b"\xff" * 9))
    found: dict[bytes, dict[int, list[int]]] = {prefix: {} for prefix in wanted}
    for (prefix, span), pairs in zip(asked, medium.pages(ranges) if ranges else (), strict=True):
        of_prefix = found[prefix]
        for key, value in pairs:
            first, at = _pair.unpack_from(key, len(prefix))
            (count,) = _count.unpack(value)
            for index in range(bisect_left(span, first), len(span)):
                number = span[index]
                if number >= first + count:
                    break
                of_prefix.setdefault(number, []).append(at + number - first)
    for of_prefix in found.values():
        for candidates in of_prefix.values():
            candidates.sort()
    return found


def interval(medium: Medium, prefix: bytes, first: int, last: int, limit: int) -> tuple[dict[int, list[int]], int]:
    """The next numbers of an interval that are in the index.

    Args:
        medium: To look in.
        prefix: Of the index.
        first: Of the interval.
        last: Of the interval.
        limit: About how many numbers are wanted.

    Returns:
        By number, in their order, the positions to look at; and up to which number that is all there is.
    """
    start = prefix + keys.number(max(first - RUN_MAX + 1, 0))
    end = prefix + keys.number(last) + b"\xff" * 9
    rows = RUN_MAX + limit
    while True:
        pairs = medium.page(start, end, rows)
        upto = last
        if len(pairs) == rows:  # what begins with the last row's number may have more rows
            upto = _pair.unpack_from(pairs[-1][0], len(prefix))[0] - 1
        if upto >= first:
            break
        rows *= 4
    found: dict[int, list[int]] = {}
    for key, value in pairs:
        begin, at = _pair.unpack_from(key, len(prefix))
        (count,) = _count.unpack(value)
        for number in range(max(begin, first), min(begin + count - 1, upto) + 1):
            found.setdefault(number, []).append(at + number - begin)
    return {number: sorted(found[number]) for number in sorted(found)}, upto


def _spans(numbers: Sequence[int]) -> list[list[int]]:
    """The numbers, divided where more than a run lies between two of them."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number - spans[-1][-1] <= RUN_MAX:
            spans[-1].append(number)
        else:
            spans.append([number])
    return spans
