"""`MODULE:NAME`, and the service that it names; or in words why there is none.

Whoever mistypes a name is told what there is instead. What a module raises while it is imported is shown with its
traceback, from its own first line on: that of the import machinery and of this program helps nobody.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from synckit_streams.errors import ConfigError, SyncKitError
from synckit_streams.ports.operation import Service

EXAMPLE = "write it as MODULE:NAME, as in shop.billing:app"

_target = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*(\.[^\W\d]\w*)*)").fullmatch


def load(target: str, *, workers: int = 1) -> Service:
    """Import the module, and take the service from it.

    Args:
        target: As in "shop.billing:app"; modules of the working directory are found.
        workers: How many processes are to run it.

    Raises:
        ConfigError: there is no such service, or not so many processes may run it.
        SyncKitError: what the module itself raised when it made the service.
    """
    module_name, name = split(target)
    service = _service(_module(module_name), name)
    if workers > 1 and not service.shared:
        raise ConfigError(
            f"{workers} workers cannot run {service.name!r}: its store belongs to one process at a time",
            hint="keep it in a store that processes share (postgresql://…), or run it with --workers 1",
        )
    return service


def split(target: str) -> tuple[str, str]:
    """The module and the name.

    Raises:
        ConfigError: it is not written as that.
    """
    path, _, name = target.partition(":")
    if path.endswith(".py") or os.sep in path:
        module = path.removesuffix(".py").removeprefix(f".{os.sep}").strip(os.sep).replace(os.sep, ".")
        raise ConfigError(f"{path!r} is a file, and not a module", hint=f"write {module}:{name or 'app'}")
    found = _target(target)
    if found is not None:
        return found["module"], found["name"]
    if target and ":" not in target:
        raise ConfigError(f"which service of the module {target!r}?", hint=f"write {target}:app")
    raise ConfigError(f"{target!r} names no service", hint=EXAMPLE)


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"there is no module {error.name!r}",
                hint=f"run it from the folder in which it lies, or install it; this is {here}",
            ) from error
        raise ConfigError(f"the module {name!r} cannot be imported\n{_shown(error)}") from error
    except SyncKitError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"the module {name!r} cannot be imported\n{_shown(error)}") from error


def _shown(error: BaseException) -> str:
    """The traceback from the first line that is the user's own."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if each.filename != __file__ and "importlib" not in each.filename]
    lines = traceback.format_list(own) + traceback.format_exception_only(error)
    return "".join(lines).rstrip()


def _service(module: ModuleType, name: str) -> Service:
    found: object = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(f"{module.__name__!r} has no {name!r}", hint=_instead(module, part)) from None
    if isinstance(found, Service) and not isinstance(found, type):
        return found
    kind = "a class" if isinstance(found, type) else "a function" if callable(found) else f"of {type(found).__name__!r}"
    raise ConfigError(f"{module.__name__}:{name} is {kind}, and no service", hint=_instead(module, ""))


def _instead(module: ModuleType, wanted: str) -> str:
    there = vars(module)
    services = [name for name, each in there.items() if isinstance(each, Service) and not isinstance(each, type)]
    if services:
        return f"the module has {', '.join(services)}"
    close = difflib.get_close_matches(wanted, [name for name in there if not name.startswith("_")], n=1)
    if close:
        return f"did you mean {close[0]}?"
    return 'a service is made in the module, as in `app = App("billing", …)`'
