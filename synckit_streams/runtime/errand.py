"""What a visitor asks of a node, and what it answers: one line of JSON each; see `door`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import msgspec

from synckit_streams.errors import SyncKitError
from synckit_streams.model.clock import VersionVector, keys_bytes, keys_from_bytes
from synckit_streams.model.codec import check_draft, encode_metadata, encode_payload
from synckit_streams.model.event import Draft
from synckit_streams.model.seen import Intervals
from synckit_streams.runtime.result import SyncResult
from synckit_streams.runtime.switch import Want

REQUEST_BYTES_MAX = 4 * 1024 * 1024
"""The largest payload, in base64, with the largest metadata, is 1.4 MB; reading a line of 4 MiB takes about 20 ms."""


class DraftLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """A draft, with its payload as the bytes that will be hashed."""

    topic: str
    type: str
    aggregate_id: str
    payload: bytes
    metadata: Mapping[str, Any] = {}
    id: str | None = None
    context: bytes | None = None
    after: bytes = b""
    schema_version: int = 1

    @classmethod
    def of(cls, draft: Draft) -> DraftLine:
        """Raises what `append` would: a draft that cannot be written is refused before it is sent."""
        check_draft(draft)
        encode_metadata(draft.metadata)
        return cls(
            topic=draft.topic,
            type=draft.type,
            aggregate_id=draft.aggregate_id,
            payload=encode_payload(draft.data),
            metadata=draft.metadata,
            id=draft.id,
            context=None if draft.context is None else draft.context.to_bytes(),
            after=keys_bytes(draft.after),
            schema_version=draft.schema_version,
        )

    def draft(self) -> Draft:
        """The reverse of `of`."""
        return Draft(
            topic=self.topic,
            type=self.type,
            aggregate_id=self.aggregate_id,
            data=self.payload,
            metadata=self.metadata,
            id=self.id,
            context=None if self.context is None else VersionVector.from_bytes(self.context),
            after=keys_from_bytes(self.after),
            schema_version=self.schema_version,
        )


class AskAbout(msgspec.Struct, frozen=True, tag_field="ask", tag="about"):
    """Who are you?"""


class AskAppend(msgspec.Struct, frozen=True, tag_field="ask", tag="append"):
    """Write these, in one durable commit."""

    drafts: list[DraftLine]


class AskSync(msgspec.Struct, frozen=True, tag_field="ask", tag="sync"):
    """One whole meeting, over the node's own connector."""

    timeout_s: float = 30.0


class AskSwitch(msgspec.Struct, frozen=True, tag_field="ask", tag="switch"):
    """Let projections pause, run, be rebuilt or be made empty."""

    projections: list[str]
    want: Want
    position: int = 0


Request: TypeAlias = AskAbout | AskAppend | AskSync | AskSwitch


class About(msgspec.Struct, frozen=True):
    """Who has the store.

    Args:
        node: The node id.
        process: Its process id.
        topics: What it replicates; empty for a local-only node that takes every topic.
        connectors: Names of its connectors: URLs without credentials and options.
        bridge: Whether it meets over all of them at once.
    """

    node: str
    process: int
    topics: tuple[str, ...]
    connectors: tuple[str, ...]
    bridge: bool = False


class Receipt(msgspec.Struct, frozen=True):
    """What an append did: how many of the events are new; the others were there already."""

    events: int
    fresh: int


class Trouble(msgspec.Struct, frozen=True):
    """An error, as it travels."""

    code: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Trouble:
        """Of any exception."""
        if isinstance(error, SyncKitError):
            return cls(error.code, error.message, error.hint)
        return cls(SyncKitError.code, f"{type(error).__name__}: {error}")

    def error(self) -> SyncKitError:
        """As an exception of the class that has this code."""
        return _classes().get(self.code, SyncKitError)(self.message, hint=self.hint)


class Synced(msgspec.Struct, frozen=True):
    """A `SyncResult`, as it travels."""

    events_pushed: int
    events_pulled: int
    conflicts_resolved: int
    duration_s: float
    complete: bool
    missing: dict[str, Intervals]
    missing_by_topic: dict[str, dict[str, Intervals]]
    reasons: tuple[str, ...]
    errors: tuple[Trouble, ...]

    @classmethod
    def of(cls, result: SyncResult) -> Synced:
        """Of a result."""
        fields = {name: getattr(result, name) for name in cls.__struct_fields__}
        return cls(**{**fields, "errors": tuple(Trouble.of(error) for error in result.errors)})

    def result(self) -> SyncResult:
        """The reverse of `of`."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return SyncResult(**{**fields, "errors": tuple(trouble.error() for trouble in self.errors)})


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Exactly one of its fields is there."""

    about: About | None = None
    receipt: Receipt | None = None
    synced: Synced | None = None
    error: Trouble | None = None


Part = TypeVar("Part", About, Receipt, Synced)

encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(Request).decode
decode_answer = msgspec.json.Decoder(Answer).decode


def _classes() -> dict[str, type[SyncKitError]]:
    def under(root: type[SyncKitError]) -> Iterator[type[SyncKitError]]:
        for child in root.__subclasses__():
            yield from under(child)
        yield root

    # Ours come last, so that an application's own subclass does not stand for the code that it inherits.
    found = sorted(under(SyncKitError), key=lambda each: each.__module__ == SyncKitError.__module__)
    return {each.code: each for each in found}
