"""What this library serves over HTTP. It takes callables for what it shows, and knows neither apps nor nodes.

Raises:
    MissingDependency: at import, if the `http` extra is not installed.
"""

from __future__ import annotations

from importlib import import_module

from synckit_streams.errors import MissingDependency

for _name in ("starlette", "uvicorn"):
    try:
        import_module(_name)
    except ModuleNotFoundError:
        raise MissingDependency(f"serving HTTP needs {_name}", hint="pip install 'synckit-streams[http]'") from None
