"""For tests, yours and ours: what a store and a connector must do, real servers, and the simulator.

```python
from synckit_streams.testing import ConnectorContract, FaultProxy, NatsServer, StoreContract
```

The contract suites need pytest and hypothesis (`pip install 'synckit-streams[test]'`); they are imported only when they
are asked for, so this package is part of every installation. The fixtures of `pytest_plugin` come by themselves.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from synckit_streams.errors import MissingDependency

if TYPE_CHECKING:
    from synckit_streams.testing.brokers import NatsServer, RedisServer
    from synckit_streams.testing.connector_contract import ConnectorContract
    from synckit_streams.testing.fault_proxy import FaultProxy
    from synckit_streams.testing.harness import TestApp
    from synckit_streams.testing.kafka_server import KafkaServer
    from synckit_streams.testing.postgres_server import PostgresServer
    from synckit_streams.testing.store_contract import StoreContract

__all__ = [
    "ConnectorContract",
    "FaultProxy",
    "KafkaServer",
    "NatsServer",
    "PostgresServer",
    "RedisServer",
    "StoreContract",
    "TestApp",
]

_MODULES = {
    "ConnectorContract": "connector_contract",
    "FaultProxy": "fault_proxy",
    "KafkaServer": "kafka_server",
    "NatsServer": "brokers",
    "PostgresServer": "postgres_server",
    "RedisServer": "brokers",
    "StoreContract": "store_contract",
    "TestApp": "harness",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as missing:
        raise MissingDependency(f"{name} needs {missing.name}", hint="pip install 'synckit-streams[test]'") from missing


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
