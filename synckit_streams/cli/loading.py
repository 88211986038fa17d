"""`MODULE:APP`, and the app that it names; whoever mistypes it is told what there is instead."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from synckit_streams.app.app import App
from synckit_streams.errors import ConfigError, SyncKitError

EXAMPLE = "write MODULE:APP, as in shop.billing:app"


def load_app(target: str) -> App:
    """Import the module, and take the app from it.

    Args:
        target: As in "shop.billing:app"; modules of the working directory are found.

    Raises:
        ConfigError: there is no such module, it cannot be imported, or it has no such app.
        SyncKitError: what the module itself raised when it made the app.
    """
    module_name, colon, name = target.partition(":")
    if not colon or not all(each.isidentifier() for each in (*module_name.split("."), name)):
        raise ConfigError(f"{target!r} names no app", hint=EXAMPLE)
    module = _module(module_name)
    found = getattr(module, name, None)
    if isinstance(found, App):
        return found
    there = [each for each, value in vars(module).items() if isinstance(value, App)]
    hint = f"the module has {', '.join(there)}" if there else 'an app is made in the module: app = App("billing", …)'
    if found is None:
        raise ConfigError(f"{module_name!r} has no {name!r}", hint=hint)
    raise ConfigError(f"{target} is of {type(found).__name__!r}, and no app", hint=hint)


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except SyncKitError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"the module {name!r} needs {error.name!r}, which is not installed") from error
        raise ConfigError(
            f"there is no module {error.name!r}", hint=f"run it from the folder in which it lies; this is {here}"
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"the module {name!r} cannot be imported: {type(error).__name__}: {error}") from error
