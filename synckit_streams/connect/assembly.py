"""From what a file says to the parts of a pipeline."""

from __future__ import annotations

from synckit_streams.connect import spec
from synckit_streams.connect.draft_sinks import StoreSink, TopicSink
from synckit_streams.connect.file_sink import FileSink
from synckit_streams.connect.file_source import FileSource
from synckit_streams.connect.group_source import GroupSource
from synckit_streams.connect.http_sink import HttpSink
from synckit_streams.connect.log_sources import OutboxSource, TopicSource
from synckit_streams.connect.pipeline import Pace, Parts
from synckit_streams.connect.places import Places
from synckit_streams.connect.postgres_outbox import PostgresOutboxSource
from synckit_streams.connect.record import Sink, Source
from synckit_streams.connect.state import State
from synckit_streams.connect.transforms import transform_for
from synckit_streams.connect.webhook import HttpSource, Inbox
from synckit_streams.errors import ConfigError
from synckit_streams.ports.telemetry import Observer
from synckit_streams.runtime.ownership import shown


def parts_of(given: spec.Pipeline, places: Places, *, once: bool, observer: Observer | None = None) -> Parts:
    """The parts of a pipeline, none of them opened.

    Args:
        given: What the file says.
        places: Where that is.
        once: Whether the sources end.
        observer: Told of what the nodes do that read and write topics.

    Raises:
        ConfigError: a part cannot be made.
        MissingDependency: an extra is not installed.
    """
    source, dead_letter = given.source, given.dead_letter
    inbox = None
    if isinstance(source, spec.HttpSource):
        inbox = Inbox(source, places.kept(f"{given.name}.inbox", source.store), given.name)
    return Parts(
        source=_source(given, places, inbox, once=once, observer=observer),
        transforms=[transform_for(each) for each in given.transforms],
        sink=_sink(given, given.sink, places, "sink", observer),
        dead_letter=FileSink(places.dead_letter(given.name), topic=f"{given.name}.dead")
        if dead_letter is None
        else _sink(given, dead_letter, places, "dead", observer),
        state=State(places.kept(given.name, given.store), given.name, shared=_is_shared(source)),
        pace=Pace(given.batch.records, given.batch.seconds, given.rate),
        inbox=inbox,
    )


def _is_shared(source: spec.AnySource) -> bool:
    """Whether several runners may have the pipeline at a time."""
    return isinstance(source, spec.TopicSource) and bool(source.group)


def _source(
    given: spec.Pipeline, places: Places, inbox: Inbox | None, *, once: bool, observer: Observer | None
) -> Source:
    source = given.source
    match source:
        case spec.FileSource():
            return FileSource(source, places.path(source.path), given.name, once=once)
        case spec.OutboxSource():
            return OutboxSource(source, places.url(source.store), f"{source.topic} {shown(source.store)}".strip())
        case spec.TopicSource():
            name = f"{source.topic} at {shown(source.connector)}"
            if source.group:
                return GroupSource(source, f"{name}, group {source.group}", once=once)
            url = places.kept(f"{given.name}.source", source.store)
            return TopicSource(source, url, name, once=once, observer=observer)
        case spec.PostgresOutboxSource():
            return PostgresOutboxSource(source, f"{source.table} at {shown(source.url)}")
        case spec.HttpSource():
            assert inbox is not None
            return HttpSource(inbox.queue, f"/hooks/{given.name}")


def _sink(given: spec.Pipeline, sink: spec.AnySink, places: Places, role: str, observer: Observer | None) -> Sink:
    match sink:
        case spec.StoreSink():
            return StoreSink(sink, places.url(sink.store), shown(sink.store))
        case spec.TopicSink():
            topics = topics_of(given, sink)
            if not topics:
                raise ConfigError(f"the sink of {given.name} has no topic", hint="give it topic, or topics")
            url = places.kept(f"{given.name}.{role}", sink.store)
            name = f"{sink.topic or ', '.join(topics)} at {shown(sink.connector)}"
            return TopicSink(sink, url, topics, name, observer)
        case spec.FileSink():
            return FileSink(places.path(sink.path), topic=sink.topic, rotate_bytes=sink.rotate_bytes)
        case spec.HttpSink():
            return HttpSink(sink, shown(sink.url))


def topics_of(given: spec.Pipeline, sink: spec.TopicSink) -> list[str]:
    """Every topic to which a sink may have to write."""
    topics = [sink.topic, *sink.topics]
    for each in given.transforms:
        if isinstance(each, spec.Route):
            topics += [*each.routes.values(), each.otherwise]
        elif isinstance(each, spec.Map):
            topics.append(str(each.set.get("topic", "")))
    if not sink.topic and isinstance(given.source, spec.TopicSource | spec.OutboxSource):
        topics.append(given.source.topic)
    return [topic for topic in dict.fromkeys(topics) if topic]
