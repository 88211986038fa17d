"""What every connector has to do, as a class of tests: subclass it, say how to make a connector, run pytest.

```python
import pytest
from synckit_streams.testing import ConnectorContract


class TestMyConnector(ConnectorContract):
    @pytest.fixture
    def connector_factory(self, my_broker):
        return lambda: MyConnector(my_broker.url)
```

A connector with groups also overrides `impatient_connector_factory`, one that can tap somebody else's topic `foreign`,
and each of them `own_broker`, a broker that the test may restart. Each call of a factory gives a new connector, not yet
open, to the same broker. The tests choose topics that nobody had before, so the broker may be shared. They look at what
`features` declares: what is declared is tried, and what is not has to raise `FeatureUnsupported`.
"""

from __future__ import annotations

from synckit_streams.testing.connector_contract.breaking import Breaking, OwnBroker
from synckit_streams.testing.connector_contract.carrying import Carrying
from synckit_streams.testing.connector_contract.digests import Digests
from synckit_streams.testing.connector_contract.groups import Groups
from synckit_streams.testing.connector_contract.kit import (
    Factory,
    Foreign,
    bodies,
    heard,
    message,
    messages,
    opened,
    read,
)
from synckit_streams.testing.connector_contract.living import Living
from synckit_streams.testing.connector_contract.places import Places
from synckit_streams.testing.connector_contract.trimming import Trimming

__all__ = [
    "ConnectorContract",
    "Factory",
    "Foreign",
    "OwnBroker",
    "bodies",
    "heard",
    "message",
    "messages",
    "opened",
    "read",
]


class ConnectorContract(Carrying, Places, Living, Groups, Trimming, Digests, Breaking):
    """The promises of `synckit_streams.ports.connector`. See the module for how to use it."""
