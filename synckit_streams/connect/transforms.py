"""What becomes of a record on its way: pure functions, each made from what the pipeline's file says.

A transform gives the record that goes on, or None for one that is passed over. What cannot be transformed raises, and
goes to the dead letter.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import msgspec

from synckit_streams.connect.record import Record
from synckit_streams.connect.spec import FIELD_NAMES, AnyTransform, Filter, Map, Mask, Route
from synckit_streams.errors import Invalid, SyncKitError
from synckit_streams.model.pointer import point

Transform = Callable[[Record], Record | None]

REDACTED = "***"
HASH_HEX = 32
_encode = msgspec.json.Encoder(order="deterministic").encode


class _Absent:
    """Nothing stands there."""


ABSENT = _Absent()


def transform_for(spec: AnyTransform) -> Transform:
    """The function that a part of a file describes."""
    if isinstance(spec, Filter):
        return partial(_filter, spec)
    if isinstance(spec, Map):
        return partial(_map, spec)
    if isinstance(spec, Route):
        return partial(_route, spec)
    return partial(_mask, spec)


def transformed(record: Record, transforms: Sequence[Transform]) -> Record | None:
    """A record behind all of them; None if one passes it over.

    Raises:
        Invalid, PayloadUndecodable, TooLarge: one cannot do its work with this record.
    """
    for transform in transforms:
        try:
            changed = transform(record)
        except SyncKitError:
            raise
        except Exception as error:
            # A number of ten thousand digits, for one. It is this record, and no other one shall wait for it.
            raise Invalid(f"cannot be transformed: {type(error).__name__}: {error}") from error
        if changed is None:
            return None
        record = changed
    return record


def field_of(record: Record, field: str) -> Any:
    """What stands at a pointer into the data, or one of the record's own; `ABSENT` if nothing does."""
    if field in FIELD_NAMES:
        return (record.routed or record.topic) if field == "topic" else getattr(record, field)
    try:
        return point(record.data, field)
    except Invalid:
        return ABSENT


def _filter(spec: Filter, record: Record) -> Record | None:
    return record if _fulfils(spec, field_of(record, spec.field)) else None


def _fulfils(spec: Filter, found: Any) -> bool:
    value = spec.value
    match spec.op:
        case "exists":
            return found is not ABSENT
        case "missing":
            return found is ABSENT
        case "eq":
            return _same(found, value)
        case "ne":
            return not _same(found, value)
        case "in":
            return isinstance(value, list) and any(_same(found, each) for each in value)
        case "not_in":
            return not (isinstance(value, list) and any(_same(found, each) for each in value))
        case "matches":
            return isinstance(found, str) and fnmatchcase(found, str(value))
        case op:
            return _in_order(found, op, value)


def _same(found: Any, value: Any) -> bool:
    """As JSON sees it: true is not 1."""
    return isinstance(found, bool) == isinstance(value, bool) and bool(found == value)


def _in_order(found: Any, op: str, value: Any) -> bool:
    """Numbers among themselves, and texts; what cannot be compared fulfils nothing."""
    if isinstance(found, bool) or isinstance(value, str) != isinstance(found, str):
        return False
    if not isinstance(found, int | float | str):
        return False
    below, above = bool(found < value), bool(found > value)
    return {"lt": below, "le": not above, "gt": above, "ge": not below}[op]


def _map(spec: Map, record: Record) -> Record:
    data = record.data
    own: dict[str, str] = {}
    for source, target in spec.rename.items():
        found = _take(data, source)
        if found is not ABSENT:
            data = _set(data, own, target, found)
    for target, value in spec.set.items():
        data = _set(data, own, target, value)
    for pointer in spec.drop:
        _take(data, pointer)
    routed = own.pop("topic", record.routed)
    return msgspec.structs.replace(record.with_data(data), routed=routed, **own)


def _set(data: Any, own: dict[str, str], target: str, value: Any) -> Any:
    if target in FIELD_NAMES:
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise Invalid(f"what becomes the {target} is neither text nor a whole number")
        own[target] = str(value)
        return data
    return _put(data, target, value)


def _steps(pointer: str) -> list[str]:
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def _put(data: Any, pointer: str, value: Any) -> Any:
    """Objects on the way are made where there are none."""
    *way, last = _steps(pointer)
    here = data
    for step in way:
        if isinstance(here, dict):
            here = here.setdefault(step, {})
        elif isinstance(here, list) and step.isdecimal() and int(step) < len(here):
            here = here[int(step)]
        else:
            raise Invalid(f"nothing can be put at {pointer}: what stands before it is no object")
    if isinstance(here, dict):
        here[last] = value
    elif isinstance(here, list) and last.isdecimal() and int(last) < len(here):
        here[int(last)] = value
    else:
        raise Invalid(f"nothing can be put at {pointer}: what stands before it is no object")
    return data


def _take(data: Any, pointer: str) -> Any:
    """Take out what stands there."""
    *way, last = _steps(pointer)
    here = data
    try:
        for step in way:
            here = here[int(step)] if isinstance(here, list) else here[step]
        if isinstance(here, list):
            return here.pop(int(last))
        return here.pop(last) if isinstance(here, dict) else ABSENT
    except (KeyError, IndexError, ValueError, TypeError):
        return ABSENT


def _route(spec: Route, record: Record) -> Record:
    found = field_of(record, spec.field)
    text = found if isinstance(found, str) else "" if found is ABSENT else _encode(found).decode()
    for pattern, topic in spec.routes.items():
        if found is not ABSENT and fnmatchcase(text, pattern):
            return msgspec.structs.replace(record, routed=topic)
    if not spec.otherwise:
        raise Invalid(
            f"there is no route for {spec.field} = {text!r:.80}",
            hint="add one, or a topic for what fits none: otherwise",
        )
    return msgspec.structs.replace(record, routed=spec.otherwise)


def _mask(spec: Mask, record: Record) -> Record:
    data = record.data
    changed = False
    for pointer in spec.fields:
        try:
            found = point(data, pointer)
        except Invalid:
            continue
        data = _put(data, pointer, REDACTED if spec.how == "redact" else _hash(spec.key, found))
        changed = True
    return record.with_data(data) if changed else record


def _hash(key: str, value: Any) -> str:
    """Equal values give equal texts, and nobody without the key can try which value it was."""
    return hmac.new(key.encode(), _encode(value), "sha256").hexdigest()[:HASH_HEX]
