"""Files of pipelines, read and checked as a whole: every problem at once, each with its place and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from synckit_streams.connect import spec
from synckit_streams.connect.assembly import topics_of
from synckit_streams.connect.document import Document, Problem, Way
from synckit_streams.connect.places import Places
from synckit_streams.errors import ConfigError
from synckit_streams.runtime.ownership import IN_FILES, scheme_of

SUFFIXES = (".yaml", ".yml")
FILE_BYTES_MAX = 1_000_000
"""Of one file of pipelines."""


class Declared(NamedTuple):
    """A pipeline that a file declares.

    Args:
        pipeline: What it is.
        places: Where what it names is.
    """

    pipeline: spec.Pipeline
    places: Places


class Loaded(NamedTuple):
    """What some files declare, and what is wrong with them."""

    declared: Sequence[Declared]
    problems: Sequence[Problem]


class Known(NamedTuple):
    """What was met in the files so far: names, and stores with whether their owner shares them, each with its place."""

    names: dict[str, Problem]
    stores: dict[str, tuple[Problem, bool]]


def files_in(paths: Sequence[Path]) -> list[Path]:
    """The files that are meant: themselves, and those in a folder.

    Raises:
        ConfigError: one is not there, or there is none in a folder.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES and each.is_file())
            if not inside:
                raise ConfigError(
                    f"there is no YAML file in {path}", hint="name one, as in synckit connect orders.yaml"
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"there is no file {path}")
    return list(dict.fromkeys(found))


def load(paths: Sequence[Path], environment: Mapping[str, str], state: Path | None = None) -> Loaded:
    """Read and check files and folders of pipelines.

    Args:
        paths: Files, and folders of them.
        environment: The variables that they may name.
        state: Where their state folders are; None is beside each file.

    Raises:
        ConfigError: a file is not there, or cannot be read.
    """
    declared: list[Declared] = []
    problems: list[Problem] = []
    known = Known({}, {})
    for file in files_in(paths):
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from error
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            problems.append(Problem(file, raw[: error.start].count(b"\n") + 1, 1, "not UTF-8"))
            continue
        if len(raw) > FILE_BYTES_MAX:
            problems.append(Problem(file, 0, 0, f"larger than {FILE_BYTES_MAX} bytes"))
            continue
        document = Document(file, text, environment)
        first = list(document.problems)
        declared += _declared(document, Places(file, state), known)
        # Of one place the first: what a missing variable would have said may look wrong as well.
        places = {(each.line, each.column) for each in first}
        problems += first + [each for each in document.problems if (each.line, each.column) not in places]
    return Loaded(declared, sorted(set(problems)))


def _declared(document: Document, places: Places, known: Known) -> Iterator[Declared]:
    root = document.value
    given: list[tuple[Way, Any]]
    if isinstance(root, dict) and "pipelines" in root:
        for key in root:
            if key != "pipelines":
                document.problem((key,), f"unknown key {key!r:.80}", "beside `pipelines` there is nothing", key=True)
        if not isinstance(root["pipelines"], list) or not root["pipelines"]:
            document.problem(("pipelines",), "`pipelines` is a list of pipelines")
            return
        given = [(("pipelines", at), each) for at, each in enumerate(root["pipelines"])]
    elif isinstance(root, dict):
        given = [((), root)]
    elif document.problems:
        return
    else:
        document.problem((), "a file is one pipeline, or a list of them under `pipelines`")
        return
    for way, value in given:
        try:
            pipeline = spec.Pipeline.model_validate(value)
        except ValidationError as error:
            for each in error.errors(include_input=False, include_url=False):
                _tell(document, way, each)
            continue
        declared = Declared(pipeline, places)
        _check(document, way, declared, known)
        yield declared


# ------------------------------------------------------------------------------------------------- what pydantic says


def _tell(document: Document, prefix: Way, error: ErrorDetails) -> None:
    """A problem of pydantic's, at its place and in words for whoever writes the file."""
    here, kind = _without_kind(tuple(error["loc"]))
    way = (*prefix, *here)
    name = here[-1] if here else "the pipeline"
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            known = sorted(set().union(*(model.model_fields for model in _models_at(here[:-1], kind))))
            near = get_close_matches(str(name), known, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
            document.problem(way, f"unknown key {str(name)!r:.80}", hint, key=True)
        case "missing":
            document.problem(way[:-1], f"`{name}` is missing", _meaning(here, kind))
        case "union_tag_invalid":
            kinds = sorted(_kind(model) for model in _models_at(here, ""))
            near = get_close_matches(str(context.get("tag", "")), kinds, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(kinds)}"
            document.problem((*way, "kind"), f"unknown kind of {_noun(here)}", hint)
        case "union_tag_not_found":
            kinds = sorted(_kind(model) for model in _models_at(here, ""))
            said = f"`kind` is missing: it says which {_noun(here)} it is"
            document.problem(way, said, f"one of {', '.join(kinds)}")
        case "value_error":
            document.problem(way, str(context.get("error", error["msg"])), key=error["loc"][-1:] == ("[key]",))
        case _:
            said = f"`{name}`: {error['msg'][:1].lower()}{error['msg'][1:]}"
            document.problem(way, said, _meaning(here, kind))


def _without_kind(loc: Way) -> tuple[Way, str]:
    """Where something stands in the file, and the kind of the part that it stands in: pydantic puts that between."""
    loc = tuple(step for step in loc if step != "[key]")
    at = {"source": 1, "sink": 1, "dead_letter": 1, "transforms": 2}.get(str(loc[0]), len(loc)) if loc else 0
    return (*loc[:at], *loc[at + 1 :]), str(loc[at]) if at < len(loc) else ""


def _models(annotation: Any) -> set[type[BaseModel]]:
    """Every model in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return set().union(*(_models(each) for each in get_args(annotation))) if get_args(annotation) else set()


def _kind(model: type[BaseModel]) -> str:
    field = model.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field is not None else ""


def _models_at(way: Way, kind: str) -> set[type[BaseModel]]:
    """The models that may stand at a place: that of the kind, where there is one."""
    here: set[type[BaseModel]] = {spec.Pipeline}
    for step in way:
        if isinstance(step, str):
            fields = [model.model_fields[step] for model in here if step in model.model_fields]
            here = set().union(*(_models(field.annotation) for field in fields))
    return {model for model in here if _kind(model) == kind} or here


def _meaning(way: Way, kind: str) -> str:
    """The text of a key."""
    for model in _models_at(way[:-1], kind):
        field = model.model_fields.get(str(way[-1])) if way else None
        if field is not None and field.description:
            return field.description
    return ""


def _noun(loc: Way) -> str:
    return {"transforms": "transform", "dead_letter": "dead letter"}.get(str(loc[0]), str(loc[0])) if loc else "part"


# --------------------------------------------------------------------------------------- what only the whole can tell


def _check(document: Document, way: Way, declared: Declared, known: Known) -> None:
    pipeline, places = declared
    taken, stores = known
    mark = document.mark((*way, "name"))
    if first := taken.get(pipeline.name):
        document.problem(
            (*way, "name"), f"there are two pipelines {pipeline.name!r}", f"the first is at {first.file}:{first.line}"
        )
    taken.setdefault(pipeline.name, Problem(document.file, *mark, ""))
    for part, key, url, group in _urls(pipeline):
        _check_url(document, (*way, *part, key), url, group)
    sink = pipeline.sink
    if isinstance(sink, spec.TopicSink) and not topics_of(pipeline, sink):
        document.problem((*way, "sink"), "the sink has no topic", "give it `topic`, or `topics`")
    if isinstance(sink, spec.StoreSink) and not sink.topic and not _have_topics(pipeline):
        document.problem((*way, "sink"), "the sink has no topic, and the records have none", "give it `topic`")
    if isinstance(pipeline.dead_letter, spec.TopicSink | spec.StoreSink) and not pipeline.dead_letter.topic:
        document.problem((*way, "dead_letter"), "the dead letter has no topic", "a letter has none of its own")
    for part, store, may_share in _own_stores(pipeline):
        at = (*way, *part, "store")
        key = f"{scheme_of(store)} {places.url(store)}"
        taken_by, shares = stores.setdefault(key, (Problem(document.file, *document.mark(at), ""), may_share))
        if (taken_by.file, taken_by[1:3]) != (document.file, document.mark(at)) and not (may_share and shares):
            document.problem(
                at,
                "this store is another thing's already",
                f"a store has one owner; the other one is at {taken_by.file}:{taken_by.line}",
            )


def _have_topics(pipeline: spec.Pipeline) -> bool:
    """Whether records may have a topic when they come to the sink."""
    if not isinstance(pipeline.source, spec.FileSource | spec.HttpSource):
        return True
    return any(
        isinstance(each, spec.Route) or (isinstance(each, spec.Map) and "topic" in {*each.set, *each.rename.values()})
        for each in pipeline.transforms
    )


def _own_stores(pipeline: spec.Pipeline) -> Iterator[tuple[Way, str, bool]]:
    """The stores that a pipeline owns: where each is named, its URL, and whether several may own it at a time."""
    for part, key, url, _ in _urls(pipeline):
        value = getattr(pipeline, str(part[0])) if part else pipeline
        if key == "store" and not isinstance(value, spec.OutboxSource):
            scheme = scheme_of(url)
            # Servers are shared by nature; a node that has a file open writes for the others.
            by_door = scheme == "sqlite" and isinstance(value, spec.StoreSink)
            yield part, url, by_door or scheme not in (*IN_FILES, "redis", "rediss")


def _urls(pipeline: spec.Pipeline) -> Iterator[tuple[Way, str, str, str]]:
    """Every URL of a store or a broker: where it stands, its key, itself, and the group of entry points."""
    parts: list[tuple[Way, Any]] = [
        ((), pipeline),
        (("source",), pipeline.source),
        (("sink",), pipeline.sink),
        (("dead_letter",), pipeline.dead_letter),
    ]
    for part, value in parts:
        for key, group in (("store", "stores"), ("connector", "connectors")):
            if url := getattr(value, key, ""):
                yield part, key, url, group


def _check_url(document: Document, way: Way, url: str, group: str) -> None:
    known = sorted({each.name for each in entry_points(group=f"synckit_streams.{group}")})
    scheme = scheme_of(url)
    if ":" in url and scheme in known:
        if scheme == "memory" and group == "stores":
            document.problem(way, "a store in memory is gone with the process", "name one that lasts")
        return
    near = get_close_matches(scheme, known, 1)
    document.problem(
        way,
        f"no {group[:-1]} for {scheme}:" if ":" in url else f"that is not the URL of a {group[:-1]}",
        f"did you mean {near[0]}:?" if near else f"known: {', '.join(known)}",
    )
