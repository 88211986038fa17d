"""A YAML file as values, each with its line and column, and with what `${NAME}` stands for put in.

`${NAME}` is a variable of the environment and `${NAME:-text}` one that may be missing; `$${` is `${` itself. They are
put in before anything is checked, so a number may come from there. A message never repeats a value: it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Way = tuple[str | int, ...]
"""To a value: the keys and numbers that lead there."""

NODES_MAX = 100_000
"""Values in one file, aliases counted as often as they stand there."""

_variable = re.compile(r"\$(?:\$\{|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})").sub


class Problem(NamedTuple):
    """Something wrong in a file.

    Args:
        file: Which.
        line: From 1; 0 is the whole file.
        column: From 1.
        message: What.
        hint: What to do about it; "" if the message says that.
    """

    file: Path
    line: int
    column: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else str(self.file)
        return f"{where}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class Mark(NamedTuple):
    """Line and column, from 1."""

    line: int
    column: int


class Document:
    """What a file says.

    Args:
        file: Its name in messages.
        text: Its content.
        environment: The variables.
    """

    def __init__(self, file: Path, text: str, environment: Mapping[str, str]) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.value: Any = None
        self._environment = environment
        self._marks: dict[Way, Mark] = {}
        self._keys: dict[Way, Mark] = {}
        self._nodes = 0
        loader = yaml.SafeLoader(text) if text.isprintable() or _is_yaml_text(text) else None
        if loader is None:
            self.problem((), "there are control characters in it")
            return
        try:
            node = loader.get_single_node()
            if node is not None:
                self.value = self._value(loader, node, (), frozenset())
        except yaml.MarkedYAMLError as error:
            at = error.problem_mark or error.context_mark
            mark = Mark(at.line + 1, at.column + 1) if at else Mark(0, 0)
            said = ", ".join(each for each in (error.context, error.problem) if each)
            self.problems.append(Problem(file, *mark, f"not YAML: {said}"))
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            self.problem((), f"not YAML: {type(error).__name__}")
        finally:
            loader.dispose()

    def mark(self, way: Way, *, key: bool = False) -> Mark:
        """Where something stands; the nearest that is there, if it is missing."""
        if key and way in self._keys:
            return self._keys[way]
        while way not in self._marks and way:
            way = way[:-1]
        return self._marks.get(way, Mark(1, 1))

    def problem(self, way: Way, message: str, hint: str = "", *, key: bool = False) -> None:
        """Note what is wrong at a place."""
        self.problems.append(Problem(self.file, *self.mark(way, key=key), message, hint))

    def _value(self, loader: yaml.SafeLoader, node: yaml.Node, way: Way, above: frozenset[int]) -> Any:
        self._nodes += 1
        if id(node) in above or self._nodes > NODES_MAX:
            self.problem(way, "an alias stands for itself, or for too much")
            return None
        self._marks[way] = Mark(node.start_mark.line + 1, node.start_mark.column + 1)
        above |= {id(node)}
        if isinstance(node, yaml.MappingNode):
            loader.flatten_mapping(node)
            return self._mapping(loader, node, way, above)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(loader, each, (*way, at), above) for at, each in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(loader, node, way)

    def _mapping(self, loader: yaml.SafeLoader, node: yaml.MappingNode, way: Way, above: frozenset[int]) -> Any:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
            at = Mark(key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not key:
                self.problems.append(Problem(self.file, *at, "a key is text"))
                continue
            if key in found:
                self.problems.append(Problem(self.file, *at, f"the key {key!r:.80} stands twice"))
            self._keys[*way, key] = at
            found[key] = self._value(loader, value_node, (*way, key), above)
        return found

    def _scalar(self, loader: yaml.SafeLoader, node: yaml.ScalarNode, way: Way) -> Any:
        text = _variable(lambda found: self._variable(found, way), node.value)
        if text != node.value:
            # What is not in quotes may be a number, also when a variable says it.
            resolve: Callable[..., str] = loader.resolve
            tag = resolve(yaml.ScalarNode, text, (True, False)) if node.style is None else node.tag
            node = yaml.ScalarNode(tag, text, node.start_mark, node.end_mark, node.style)
        return loader.construct_object(node, deep=True)

    def _variable(self, found: re.Match[str], way: Way) -> str:
        name, default = found[1], found[2]
        if name is None:
            return "${"
        value = self._environment.get(name)
        if value is None and default is None:
            self.problem(way, f"the variable {name} is not set", f"set it, or write ${{{name}:-default}}")
        return value if value is not None else default or ""


def _is_yaml_text(text: str) -> bool:
    return yaml.reader.Reader.NON_PRINTABLE.search(text) is None
