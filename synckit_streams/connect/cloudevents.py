"""A record as a CloudEvent in structured mode, for files and for the web."""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from synckit_streams.connect.record import Record
from synckit_streams.model.cloudevent.attributes import base64_of, is_json

_encode = msgspec.json.Encoder().encode


def as_cloudevent(record: Record, topic: str) -> dict[str, object]:
    """What is to be encoded; JSON stands in it as it is.

    Args:
        record: The record.
        topic: Where it goes, if no transform routed it.
    """
    event: dict[str, object] = {
        "specversion": "1.0",
        "id": record.id,
        "source": f"/topics/{quote(record.routed or topic or record.topic, safe='')}",
        "type": record.type,
        "subject": record.aggregate_id,
    }
    if record.metadata:
        event["skmeta"] = _encode(record.metadata).decode()
    if record.schema_version != 1:
        event["skver"] = record.schema_version
    if is_json(record.payload):
        payload = record.payload
        if b"\n" in payload or b"\r" in payload:  # one event is one line
            payload = msgspec.json.format(payload, indent=-1)
        return {**event, "datacontenttype": "application/json", "data": msgspec.Raw(payload)}
    return {**event, "datacontenttype": "application/octet-stream", "data_base64": base64_of(record.payload)}
