"""Headers are read as nats-py reads them, only faster."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from synckit_connectors.nats_wire import _new_client

LINES = st.lists(
    st.sampled_from([b"a", b"Nats-X", b":", b" ", b"\t", b"\r", b"\n", b"\r\n", b"\xc3\xa4", b"\xff", b"\x1f", b"\x85"])
)


@given(LINES, st.binary(max_size=40))
def test_headers_are_read_as_nats_py_reads_them(parts: list[bytes], more: bytes) -> None:
    """Good ones, and whatever else somebody may have written."""
    theirs: Any = Client
    for raw in (b"".join(parts), more, b"".join(parts) + b"\r\nce-id: 1\r\n\r\n"):
        assert _new_client(lambda: None)._parse_header_lines(raw) == theirs._parse_header_lines(raw)
