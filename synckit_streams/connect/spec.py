"""What a file may say: every key of a pipeline, its meaning and its default. `docs/reference/connect.md` lists them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from synckit_streams.errors import SyncKitError
from synckit_streams.model.codec import PAYLOAD_BYTES_MAX, check_node_id, check_topic
from synckit_streams.model.pointer import check_pointer
from synckit_streams.runtime.envelope import PACKINGS

BATCH_RECORDS_MAX = 10_000
"""Records that move at a time."""
KEPT_BYTES = 64 * 1024 * 1024
KEPT_BYTES_MAX = 1024 * 1024 * 1024
"""What waits in the inbox of a webhook; it has to fit into the memory."""
PIPELINE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
"""A name is part of file names and of URLs."""


def _checked(check: Callable[[str], object], noun: str) -> AfterValidator:
    """A check of ours as one of pydantic's. What was given is not repeated: it may be a secret."""

    def checked(text: str) -> str:
        try:
            if text:
                check(text)
        except SyncKitError as error:
            raise ValueError(f"that is not {noun}{' (' + error.hint + ')' if error.hint else ''}") from None
        return text

    return AfterValidator(checked)


def _check_word(text: str) -> None:
    if text.startswith("/"):
        check_pointer(text)


FIELD_NAMES = ("id", "type", "aggregate_id", "topic")
"""What a transform may name beside places in the data."""


def _check_field(text: str) -> None:
    if text not in FIELD_NAMES:
        check_pointer(text)


Pointer = Annotated[str, _checked(check_pointer, "a JSON pointer")]
Word = Annotated[str, Field(min_length=1), _checked(_check_word, "a JSON pointer")]
FieldName = Annotated[
    str, Field(min_length=1), _checked(_check_field, f"a JSON pointer, nor one of {', '.join(FIELD_NAMES)}")
]
Topic = Annotated[str, _checked(check_topic, "the name of a topic: at most 100 bytes")]
TopicName = Annotated[Topic, Field(min_length=1)]
NodeId = Annotated[str, _checked(check_node_id, "the id of a node: at most 64 bytes without white space, @ and ~")]
Url = Annotated[str, Field(min_length=1)]
NODE_TEXT = "The node's id, unique among those that share the topic. Default: the store's own; drawn for a new store."


class Spec(BaseModel):
    """A part of a file: nothing that is not known, and nothing of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


# ------------------------------------------------------------------------------------------------------------- sources


class FileSource(Spec):
    """A file that grows, and is rotated: JSON Lines, CSV, or lines of CloudEvents."""

    kind: Literal["file"]
    path: str = Field(min_length=1, description="The file. It need not be there yet.")
    format: Literal["jsonl", "csv", "cloudevents"] = Field("jsonl", description="How a record is written in it.")
    type: Word | None = Field(None, description="The records' type, or a pointer into the data. Not for cloudevents.")
    aggregate_id: Pointer | None = Field(None, description="Pointer to what a record is about. Not for cloudevents.")
    id: Pointer = Field("", description="Pointer to the producer's own id. Default: derived from where it lies.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="Between two fields of a CSV.")
    rotated: str = Field(
        "", description="Which files beside it are its earlier parts, as a glob. Default: `NAME[.-]*`."
    )

    @model_validator(mode="after")
    def _has_a_shape(self) -> Self:
        if self.format != "cloudevents":
            missing = [name for name in ("type", "aggregate_id") if not getattr(self, name)]
            if missing:
                raise ValueError(f"format {self.format} needs {' and '.join(missing)}")
        elif self.type or self.aggregate_id or self.id:
            raise ValueError("a CloudEvent says its type, subject and id itself: leave type, aggregate_id and id out")
        return self


class OutboxSource(Spec):
    """The log of a store of ours, read beside the node that writes it."""

    kind: Literal["outbox"]
    store: Url = Field(description="The store's URL.")
    topic: Topic = Field("", description="Only this topic. Default: all.")


class TopicSource(Spec):
    """A topic of ours at a broker, by a node of the pipeline's own."""

    kind: Literal["topic"]
    connector: Url = Field(description="The broker's URL.")
    topic: TopicName = Field(description="Which topic.")
    node: NodeId = Field("", description=NODE_TEXT)
    store: str = Field("", description="URL of the node's store. Default: a file in the state folder.")
    group: str = Field("", description="Share the topic with every runner that names the same group.")

    @model_validator(mode="after")
    def _is_a_node_or_a_member(self) -> Self:
        if self.group and (self.node or self.store):
            raise ValueError("a member of a group has no node and no store: leave node and store out")
        return self


class PostgresOutboxSource(Spec):
    """A table of yours in PostgreSQL, in the shape of Debezium's outbox.

    Its columns are id, aggregatetype, aggregateid, type and payload. A row becomes an event of the topic aggregatetype.
    """

    kind: Literal["postgres_outbox"]
    url: Url = Field(description="The database, postgresql://user:password@host/database.")
    table: str = Field(
        "outbox", pattern=r"^[^.\x00]+(\.[^.\x00]+)?$", description="The table, with its schema if it has one."
    )
    order: str = Field("id", min_length=1, description="The column that orders the rows that are there.")
    after: Literal["delete", "mark"] = Field("delete", description="What becomes of a row that was delivered.")
    mark: str = Field(
        "published_at", min_length=1, description="With `after: mark`: a timestamp column, null at first."
    )
    channel: str = Field("", description="NOTIFY channel that wakes the pipeline. Default: it only looks now and then.")
    poll_seconds: float = Field(1.0, gt=0, le=3600, description="How often it looks.")


class HttpSource(Spec):
    """A webhook, at /hooks/NAME of the pipeline: answered with 202 when what came is on the disk."""

    kind: Literal["http"]
    type: Word = Field(description="The records' type, or a pointer into the data.")
    aggregate_id: Pointer = Field(min_length=1, description="Pointer to what a record is about.")
    id: Pointer = Field("", description="Pointer to the producer's own id.")
    id_header: str = Field("", description="Header that has the producer's own id, as X-GitHub-Delivery.")
    secret: str = Field("", description="Key of the HMAC-SHA-256 that the sender signs the body with.")
    signature_header: str = Field("x-hub-signature-256", description="Header that has the signature, in hex.")
    token: str = Field("", description="What the sender gives as Authorization: Bearer.")
    store: str = Field("", description="URL of the store that keeps what came. Default: a file in the state folder.")
    kept_bytes: int = Field(
        KEPT_BYTES,
        ge=PAYLOAD_BYTES_MAX,
        le=KEPT_BYTES_MAX,
        description="At most so much waits to be passed on; beyond it the answer is 503.",
    )

    @model_validator(mode="after")
    def _is_guarded_once(self) -> Self:
        if self.id and self.id_header:
            raise ValueError("id and id_header exclude each other")
        return self


AnySource = Annotated[
    FileSource | OutboxSource | TopicSource | PostgresOutboxSource | HttpSource, Field(discriminator="kind")
]


# ---------------------------------------------------------------------------------------------------------- transforms


class Filter(Spec):
    """Lets through what fulfils a condition; the rest is passed over."""

    kind: Literal["filter"]
    field: FieldName = Field(description="Where to look: a pointer, or `id`, `type`, `aggregate_id`, `topic`.")
    op: Literal["eq", "ne", "lt", "le", "gt", "ge", "in", "not_in", "matches", "exists", "missing"] = Field(
        "eq", description="How to compare. `matches` is a pattern with * and ?."
    )
    value: JsonValue = Field(None, description="With what; not for exists and missing.")

    @model_validator(mode="after")
    def _can_compare(self) -> Self:
        if self.op in ("in", "not_in") and not isinstance(self.value, list):
            raise ValueError(f"op {self.op} needs a list as value")
        if self.op == "matches" and not isinstance(self.value, str):
            raise ValueError("op matches needs a text as value")
        if self.op in ("lt", "le", "gt", "ge") and (
            isinstance(self.value, bool) or not isinstance(self.value, int | float | str)
        ):
            raise ValueError(f"op {self.op} needs a number or a text as value")
        return self


class Map(Spec):
    """Renames, sets and drops fields, in this order."""

    kind: Literal["map"]
    rename: dict[Pointer, FieldName] = Field({}, description="From pointer to pointer, or to `type`, `aggregate_id`.")
    set: dict[FieldName, JsonValue] = Field({}, description="Pointer, or `type`, `aggregate_id`, to value.")
    drop: list[Pointer] = Field([], description="Pointers of what is taken out; what is not there is no error.")

    @model_validator(mode="after")
    def _keeps_identity(self) -> Self:
        if "id" in {*self.rename.values(), *self.set}:
            raise ValueError("an id is not changed on the way: it makes a repetition the same event")
        return self


class Route(Spec):
    """Chooses the topic by a field."""

    kind: Literal["route"]
    field: FieldName = Field("type", description="Where to look.")
    routes: dict[str, TopicName] = Field(
        min_length=1, description="From pattern (with * and ?) to topic; the first that fits."
    )
    otherwise: Topic = Field("", description="For what fits none. Default: it goes to the dead letter.")


class Mask(Spec):
    """Hides fields; what is not there is no error."""

    kind: Literal["mask"]
    fields: list[Pointer] = Field(min_length=1, description="Pointers of what is hidden.")
    how: Literal["hash", "redact"] = Field("redact", description="A keyed hash (equal stays equal), or nothing at all.")
    key: str = Field("", description="Of the hash; without one, guessing what was hashed is easy.")

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if self.how == "hash" and not self.key:
            raise ValueError("how: hash needs a key")
        return self


AnyTransform = Annotated[Filter | Map | Route | Mask, Field(discriminator="kind")]


# --------------------------------------------------------------------------------------------------------------- sinks


class TopicSink(Spec):
    """A topic of ours: written to a node's store at once, and synced over a broker when there is one."""

    kind: Literal["topic"]
    connector: Url = Field(description="The broker's URL.")
    topic: Topic = Field("", description="Where records go that no transform routes. Default: their own topic.")
    topics: list[TopicName] = Field([], description="Further topics, where the records say theirs.")
    node: NodeId = Field("", description=NODE_TEXT)
    store: str = Field("", description="URL of the node's store. Default: a file in the state folder.")
    packing: Annotated[str, Field(pattern=f"^({'|'.join(PACKINGS)})$")] = Field(
        "event", description="`event` sends readable messages, `batch` packed frames."
    )


class StoreSink(Spec):
    """A store of ours: as its node, or through the node that has it open."""

    kind: Literal["store"]
    store: Url = Field(description="The store's URL.")
    topic: Topic = Field("", description="Where records go that no transform routes. Default: their own topic.")
    node: NodeId = Field("", description=NODE_TEXT)


class HttpSink(Spec):
    """A URL that takes batches of CloudEvents by POST."""

    kind: Literal["http"]
    url: str = Field(pattern=r"^https?://", description="Where to.")
    headers: dict[str, str] = Field({}, description="Sent along.")
    topic: Topic = Field("", description="As for the other sinks; it stands in the CloudEvents' source.")
    timeout_seconds: float = Field(30.0, gt=0, le=3600, description="Longest wait for an answer.")


class FileSink(Spec):
    """A file of CloudEvents, one a line."""

    kind: Literal["file"]
    path: str = Field(min_length=1, description="The file.")
    topic: Topic = Field("", description="As for the other sinks; it stands in the CloudEvents' source.")
    rotate_bytes: int = Field(0, ge=0, description="Begin a new file at this size. Default 0: never.")


AnySink = Annotated[TopicSink | StoreSink | HttpSink | FileSink, Field(discriminator="kind")]
AnyDeadLetter = Annotated[TopicSink | StoreSink | FileSink, Field(discriminator="kind")]


# ------------------------------------------------------------------------------------------------------------ the whole


class Batch(Spec):
    """How much moves at a time."""

    records: int = Field(500, ge=1, le=BATCH_RECORDS_MAX, description="At most so many records.")
    seconds: float = Field(
        0.0, ge=0, le=60, description="Behind a batch that was not full, so long others are waited for."
    )


class Pipeline(Spec):
    """From one source, through the transforms, into one sink."""

    name: str = Field(pattern=PIPELINE_NAME, description="Its own: letters, digits, - and _.")
    source: AnySource = Field(description="Where records come from.")
    transforms: list[AnyTransform] = Field([], description="What becomes of each, in this order.")
    sink: AnySink = Field(description="Where they go.")
    batch: Batch = Field(Batch.model_validate({}), description="How much moves at a time.")
    rate: float = Field(0.0, ge=0, description="At most so many records a second. Default 0: as fast as it goes.")
    dead_letter: AnyDeadLetter | None = Field(
        None, description="Where records go that cannot be delivered. Default: a file in the state folder."
    )
    store: str = Field("", description="URL of the store that keeps the position. Default: a file in the state folder.")


SOURCES = (FileSource, OutboxSource, TopicSource, PostgresOutboxSource, HttpSource)
TRANSFORMS = (Filter, Map, Route, Mask)
SINKS = (TopicSink, StoreSink, HttpSink, FileSink)
