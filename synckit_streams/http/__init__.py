"""What this library serves over HTTP. It takes callables for what it shows, and knows neither apps nor nodes.

Raises:
    MissingDependency: at import, if the `http` extra is not installed.
"""

from __future__ import annotations

from importlib.util import find_spec

from synckit_streams.errors import MissingDependency

if find_spec("starlette") is None or find_spec("uvicorn") is None:
    raise MissingDependency("serving HTTP needs starlette and uvicorn", hint="pip install 'synckit-streams[http]'")
