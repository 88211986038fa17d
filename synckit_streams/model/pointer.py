"""JSON Pointers (RFC 6901): where in a JSON value something stands, as in `/order/lines/0`."""

from __future__ import annotations

from typing import Any

from synckit_streams.errors import Invalid


def check_pointer(pointer: str) -> None:
    """That it is one.

    Raises:
        Invalid: it does not begin with a slash, or has a ~ that is not ~0 or ~1.
    """
    if not pointer.startswith("/") or "~" in pointer.replace("~0", "").replace("~1", ""):
        raise Invalid(
            f"{pointer!r:.80} is not a JSON pointer", hint="for example /order/id; write ~1 for / and ~0 for ~"
        )


def point(value: Any, pointer: str) -> Any:
    """What stands there.

    Raises:
        Invalid: nothing does.
    """
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and name == str(int(name)) and int(name) < len(value):
            value = value[int(name)]
        else:
            raise Invalid(f"there is nothing at {pointer}")
    return value
