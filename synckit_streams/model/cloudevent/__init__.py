"""Events as CloudEvents 1.0 and back, and other people's CloudEvents as drafts.

An event of ours is a CloudEvent with extensions (`skseq`, `skhlc`, …) for what the core attributes have no room for, so
that the round trip gives the identical event: every hashed byte, and the hash that its sender claims. There are two
forms. *Binary mode* puts the attributes into message headers and the payload, untouched, into the body. *Structured
mode* is one JSON object, in which a JSON payload stands byte for byte.

What CloudEvents forbids in a text attribute (control characters, Unicode's noncharacters) we allow in ids, types and
aggregate ids. There it stands percent-encoded, and so does `%` itself; whoever percent-decodes gets our text back. The
header encoding of binary mode comes on top of that and ends with the transport.

Reading never checks the hash: whoever reads compares it with `event_hash`, and keeps what does not match.

Source: CloudEvents 1.0.2 (core, JSON event format, HTTP and Kafka bindings); binary mode on NATS, which 1.0.2 lacks,
follows the binding's text for 1.0.3.
"""

from __future__ import annotations

from synckit_streams.model.cloudevent.attributes import is_timestamp
from synckit_streams.model.cloudevent.foreign import draft_from_structured
from synckit_streams.model.cloudevent.headers import KAFKA_PREFIX, PREFIX, from_headers, to_headers
from synckit_streams.model.cloudevent.structured import STRUCTURED_BYTES_MAX, from_structured, to_structured

__all__ = [
    "KAFKA_PREFIX",
    "PREFIX",
    "STRUCTURED_BYTES_MAX",
    "draft_from_structured",
    "from_headers",
    "from_structured",
    "is_timestamp",
    "to_headers",
    "to_structured",
]
