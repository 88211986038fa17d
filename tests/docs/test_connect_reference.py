"""The page on files of pipelines has every key that there is, with its default and meaning, and no other.

`python -m tests.docs.test_connect_reference` prints the tables as they should be.
"""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from synckit_streams.connect import spec

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "connect.md"
WORDS = {str: "text", int: "whole number", float: "number"}
PARTS: list[tuple[str, type[BaseModel]]] = [
    ("The pipeline", spec.Pipeline),
    ("Batch", spec.Batch),
    *[(f"Source {model.__name__}", model) for model in spec.SOURCES],
    *[(f"Transform {model.__name__}", model) for model in spec.TRANSFORMS],
    *[(f"Sink {model.__name__}", model) for model in spec.SINKS],
]


def kind_of(model: type[BaseModel]) -> str:
    return str(get_args(model.model_fields["kind"].annotation)[0])


def said(annotation: Any) -> str:
    """A type, for people."""
    if annotation in WORDS:
        return WORDS[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a [{annotation.__name__.lower()}](#{annotation.__name__.lower()})"
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inside)
    if origin is list:
        return f"a list of {said(inside[0])}s".replace("a part", "part")
    if origin is dict:
        return f"{said(inside[0])} to {said(inside[1])}"
    if origin in (Union, types.UnionType):
        models = [each for each in inside if isinstance(each, type) and issubclass(each, BaseModel)]
        return "a part" if models else said(inside[0])
    if hasattr(annotation, "__metadata__"):
        return said(inside[0])
    return "any value"


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.default if field.default is not PydanticUndefined else None
    return "" if value in ("", None, {}, []) or isinstance(value, BaseModel) else f"`{value}`"


def table(model: type[BaseModel]) -> list[str]:
    """The lines of a model's table."""
    rows = ["| key | value | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        text = re.sub(r"\|", r"\\|", field.description or "")
        assert text, f"{model.__name__}.{name} says nothing"
        rows.append(f"| `{name}` | {said(field.annotation)} | {default(field)} | {text} |")
    return rows


def test_the_page_has_every_key_and_no_other() -> None:
    page = PAGE.read_text(encoding="utf-8")
    tables = [found for found in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE) if found.startswith("| key |")]
    wanted = ["\n".join(table(model)) + "\n" for _, model in PARTS]
    for (name, _), expected in zip(PARTS, wanted, strict=True):
        assert expected in tables, f"{name}:\n{expected}"
    assert len(tables) == len(wanted)


KINDS: list[type[BaseModel]] = [*spec.SOURCES, *spec.TRANSFORMS, *spec.SINKS]


def test_every_kind_has_a_heading() -> None:
    headings = re.findall(r"^### `(\w+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [kind_of(model) for model in KINDS]


if __name__ == "__main__":
    for _, model in PARTS:
        print(f"### `{kind_of(model)}`\n" if "kind" in model.model_fields else "")  # noqa: T201
        print(model.__doc__, "\n", *table(model), sep="\n")  # noqa: T201
